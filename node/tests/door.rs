//! Who comes in at the clients' door: TLS from files, passwords, client certificates.

#[path = "registry/door.rs"]
mod door;
#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "the upstreams' tests use more of it")]
mod fake;
#[path = "door/pki.rs"]
mod pki;
#[path = "registry/wire.rs"]
#[expect(dead_code, reason = "the registry's tests use more of it")]
mod wire;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use door::{Door, digest_of, large_blob, open_on, provider};
use millrace::registry::{self, Admission, Config, Htpasswd, Terms};
use millrace::task::Tasks;
use millrace::tls::{ClientAuth, Tls};
use pki::{Pki, shorten, shown, talk};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use wire::{get, head, send};

/// Longest time for what happens at once.
const SOON: Duration = Duration::from_secs(20);

/// A year in which these tests are not run any more.
const LATER: i32 = 2999;

const V12: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
const V13: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

fn ping() -> Vec<u8> {
    head("GET", "/v2/", &[], "close").into_bytes()
}

async fn open_with_tls(
    pki: &Pki,
    admission: Admission,
    clientauth: Option<ClientAuth>,
) -> (Door, Tls) {
    provider();
    let tls = Tls::load(pki.files(clientauth)).expect("loads");
    let terms = Terms {
        tls: Some(tls.clone()),
        admission,
        ..Terms::default()
    };
    (open_on(Config::default(), terms).await, tls)
}

async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(SOON, looking).await;
    found.expect("within the patience")
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_and_http_in_the_clear_is_told_so() {
    let pki = Pki::new();
    pki.install(&pki.sign("mirror.test", LATER));
    let (door, _) = open_with_tls(&pki, Admission::default(), None).await;
    for version in [&V12, &V13] {
        let mut stream = pki
            .connect(door.address, version, None)
            .await
            .expect("a handshake");
        let answer = talk(&mut stream, &ping()).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let plain = get(door.address, "/v2/", &[]).await;
    assert_eq!(
        (plain.status, plain.text()),
        (400, "https is spoken here, and not http\n")
    );
}

#[tokio::test]
async fn one_port_answers_both_where_that_is_allowed() {
    let pki = Pki::new();
    pki.install(&pki.sign("mirror.test", LATER));
    provider();
    let terms = Terms {
        tls: Some(Tls::load(pki.files(None)).expect("loads")),
        allow_plain: true,
        ..Terms::default()
    };
    let door = open_on(Config::default(), terms).await;
    assert_eq!(get(door.address, "/v2/", &[]).await.status, 200);
    let answer = pki
        .ask(door.address, &ping(), None)
        .await
        .expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_tls_hello_in_the_clear_is_answered_by_http() {
    let door = door::open().await;
    let hello = [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0];
    let mut stream = TcpStream::connect(door.address).await.expect("connects");
    stream.write_all(&hello).await.expect("sent");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    provider();
    let pki = Pki::new();
    let (good, other) = (
        pki.sign("mirror.test", LATER),
        pki.sign("mirror.test", LATER),
    );
    let load = || {
        let error = Tls::load(pki.files(None)).expect_err("cannot be used");
        error
            .to_string()
            .replace(&format!("{}/", pki.folder.path().display()), "")
    };
    assert_eq!(load(), "cannot read cert.pem");
    pki.write("cert.pem", &good.certificate);
    assert_eq!(load(), "cannot read key.pem");
    pki.write("key.pem", &other.key);
    assert_eq!(
        load(),
        "the private key in key.pem does not belong to the certificate in cert.pem"
    );
    pki.write("key.pem", "no key");
    assert_eq!(load(), "key.pem is damaged");
    pki.install(&good);
    shorten(&pki.path("cert.pem"), &good.certificate);
    assert_eq!(load(), "cert.pem is damaged");
    pki.write("cert.pem", "");
    assert_eq!(load(), "cert.pem holds no certificate");
    let expired = pki.sign("mirror.test", 2002);
    pki.install(&expired);
    assert!(
        load().starts_with("certificate 1 in cert.pem is valid from "),
        "{}",
        load()
    );
    // A chain is as good as its last member.
    pki.install(&good);
    pki.write(
        "cert.pem",
        &format!("{}{}", good.certificate, expired.certificate),
    );
    assert!(
        load().starts_with("certificate 2 in cert.pem is valid from "),
        "{}",
        load()
    );
    pki.install(&good);
    pki.write("ca.pem", "");
    let mut files = pki.files(Some(ClientAuth::Require));
    files.clientcas = vec![pki.path("none.pem")];
    let error = Tls::load(files).expect_err("no authority");
    assert!(error.to_string().ends_with("none.pem"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_replaced_under_load_and_a_bad_one_is_not() {
    let pki = Pki::new();
    let (first, second) = (
        pki.sign("mirror.test", LATER),
        pki.sign("mirror.test", LATER),
    );
    pki.install(&first);
    let (door, tls) = open_with_tls(&pki, Admission::default(), None).await;
    let tasks = Tasks::default();
    tasks.spawn(tracing::Span::none(), tls.clone().watch(tasks.stopping()));
    let mut old = pki
        .connect(door.address, &V13, None)
        .await
        .expect("a handshake");
    assert_eq!(shown(&old), *first.der());

    // A certificate that was cut off while it was written.
    shorten(&pki.path("cert.pem"), &second.certificate);
    let refused = eventually(async || tls.status().refused).await;
    assert!(
        refused.message.contains("cert.pem is damaged"),
        "{}",
        refused.message
    );
    let stream = pki
        .connect(door.address, &V13, None)
        .await
        .expect("a handshake");
    assert_eq!(shown(&stream), *first.der());

    pki.install(&second);
    let replaced = async || {
        let mut stream = pki
            .connect(door.address, &V13, None)
            .await
            .expect("no handshake fails");
        let answer = talk(&mut stream, &ping()).await.expect("no request fails");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        (shown(&stream) == *second.der()).then_some(())
    };
    eventually(replaced).await;
    assert!(tls.status().refused.is_none());
    assert_eq!(tls.status().reloads, 1);
    // The connection from before is still good.
    let answer = talk(&mut old, &ping()).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    tasks.stop(SOON).await;
}

#[tokio::test]
async fn who_stalls_in_the_handshake_holds_up_nobody() {
    let pki = Pki::new();
    pki.install(&pki.sign("mirror.test", LATER));
    let (door, _) = open_with_tls(&pki, Admission::default(), None).await;
    let mut stalled = Vec::new();
    for length in 0..40 {
        let mut stream = TcpStream::connect(door.address).await.expect("connects");
        let hello = [0x16, 3, 1, 2, 0, 1];
        stream
            .write_all(&hello[..length % hello.len()])
            .await
            .expect("sent");
        stalled.push(stream);
    }
    let answer = pki
        .ask(door.address, &ping(), None)
        .await
        .expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // They are ended when they have had the time that clients give themselves.
    for mut stream in stalled {
        let ended = tokio::time::timeout(SOON, stream.read(&mut [0; 64])).await;
        assert_eq!(ended.expect("ended").unwrap_or(0), 0);
    }
}

/// Buffers on the way to a client that have hardly any room, whatever the system's settings are.
const NARROW_BYTES: usize = 4096;

/// A door and a connection to it with little room between them.
async fn open_narrow(pki: &Pki, config: Config) -> (Door, TcpStream) {
    provider();
    let terms = Terms {
        tls: Some(Tls::load(pki.files(None)).expect("loads")),
        ..Terms::default()
    };
    let listener = registry::listen(([127, 0, 0, 1], 0).into()).expect("a free port");
    // What is accepted inherits it.
    set_socket_send_buffer_size(&listener, NARROW_BYTES).expect("a smaller buffer");
    let folder = TempDir::new().expect("a folder");
    let door = door::open_at(listener, folder, config, terms).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    let room = NARROW_BYTES.try_into().expect("a small number");
    socket.set_recv_buffer_size(room).expect("a smaller buffer");
    let stream = socket.connect(door.address).await.expect("connects");
    (door, stream)
}

#[tokio::test]
async fn who_stops_reading_does_not_hold_a_connection_that_has_ended() {
    let pki = Pki::new();
    pki.install(&pki.sign("mirror.test", LATER));
    let config = Config {
        // Enough to fill what little room there is.
        drain_timeout: Duration::from_millis(500),
        ..Config::default()
    };
    let (door, stream) = open_narrow(&pki, config).await;
    let mut metrics = prometheus_client::registry::Registry::default();
    door.registry.register_metrics(&mut metrics);
    let stream = pki.greet(stream, &V13, None).await;
    let mut stream = stream.expect("a handshake");
    let url = format!("/v2/library/app/blobs/{}", digest_of(large_blob()));
    let request = head("GET", &url, &[], "keep-alive");
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream.read_exact(&mut [0; 5]).await.expect("an answer");
    door.running.drain().await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics).expect("encodes");
    let line = "millrace_registry_open_connections 0";
    assert!(text.contains(line), "{text}");
    // The end of TLS, which is said last, found no room: that is what nobody waited for.
    let rest = stream.read_to_end(&mut Vec::new()).await;
    let error = rest.expect_err("there was room for all of it");
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{error}");
}

#[tokio::test]
async fn a_certificate_lets_in_and_a_foreign_one_does_not() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    pki.install(&pki.sign("mirror.test", LATER));
    let (own, foreign) = (
        pki.sign("build7.test", LATER),
        stranger.sign("build7.test", LATER),
    );
    let admission = Admission {
        certificates: true,
        certificate_required: true,
        ..Admission::default()
    };
    let (door, _) = open_with_tls(&pki, admission, Some(ClientAuth::Require)).await;
    let answer = pki
        .ask(door.address, &ping(), Some(&own))
        .await
        .expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    for certificate in [None, Some(&foreign)] {
        let answer = pki.ask(door.address, &ping(), certificate).await;
        assert!(answer.is_err(), "{answer:?}");
    }
}

/// Writes a file of users by `htpasswd -B` and returns its path.
fn write_users(folder: &Path, users: &[(&str, &str)]) -> std::path::PathBuf {
    let path = folder.join("htpasswd");
    let lines = users.iter().map(|(name, password)| {
        let hash = bcrypt::hash_with_result(password, 4).expect("hashed");
        format!(
            "{name}:{}\n",
            hash.format_for_version(bcrypt::Version::TwoY)
        )
    });
    let new = folder.join("htpasswd.new");
    fs::write(&new, lines.collect::<String>()).expect("written");
    fs::rename(new, &path).expect("renamed");
    path
}

fn basic(pair: &str) -> String {
    use base64::Engine as _;
    let encoded = base64::prelude::BASE64_STANDARD.encode(pair);
    format!("Authorization: Basic {encoded}")
}

async fn open_with_users(folder: &TempDir, users: &[(&str, &str)]) -> (Door, Htpasswd) {
    let path = write_users(folder.path(), users);
    let htpasswd = Htpasswd::load("the \"mirror\"".to_owned(), path).expect("loads");
    let terms = Terms {
        admission: Admission {
            htpasswd: Some(htpasswd.clone()),
            ..Admission::default()
        },
        ..Terms::default()
    };
    (open_on(Config::default(), terms).await, htpasswd)
}

#[tokio::test]
async fn every_endpoint_challenges_and_a_password_opens_it() {
    let folder = TempDir::new().expect("a folder");
    let (door, _) = open_with_users(&folder, &[("ann", "a secret: §")]).await;
    let urls = [
        "/v2/",
        "/v2",
        "/",
        "/v2/_catalog",
        "/v2/library/app/manifests/v1",
        "/v2/library/app/tags/list",
        "/v2/library/app/blobs/sha256:0",
        "/v2/%ff/x",
        "/v2/library/app/blobs/uploads/",
    ];
    let huge = basic(&format!("ann:{}", "x".repeat(8192)));
    let wrong = [
        None,
        Some(basic("ann:wrong")),
        Some(basic("eve:a secret: §")),
        Some(basic(":")),
        Some(basic("ann:")),
        Some(huge),
        Some("Authorization: Bearer x".to_owned()),
    ];
    for url in urls {
        for header in &wrong {
            for method in ["GET", "HEAD", "POST"] {
                let headers: Vec<&str> = header.as_deref().into_iter().collect();
                let reply = send(door.address, method, url, &headers).await;
                assert_eq!(reply.status, 401, "{method} {url} {header:?}");
                assert_eq!(
                    reply.header("www-authenticate"),
                    r#"Basic realm="the \"mirror\"""#
                );
                assert_eq!(
                    reply.header("docker-distribution-api-version"),
                    "registry/2.0"
                );
                if method == "GET" {
                    assert_eq!(reply.code(), "UNAUTHORIZED");
                }
            }
        }
    }
    assert_eq!(
        door.upstream.seen("").len(),
        0,
        "a stranger's request went upstream"
    );
    let right = basic("ann:a secret: §");
    for url in ["/v2/", "/v2/library/app/manifests/v1"] {
        assert_eq!(get(door.address, url, &[&right]).await.status, 200, "{url}");
    }
    for seen in door.upstream.seen("") {
        assert_eq!(
            seen.header("authorization"),
            "",
            "a client's password went upstream"
        );
    }
}

#[tokio::test]
async fn the_file_of_users_is_followed_and_a_damaged_one_is_not() {
    let folder = TempDir::new().expect("a folder");
    let (door, htpasswd) = open_with_users(&folder, &[("ann", "old"), ("bob", "b")]).await;
    let tasks = Tasks::default();
    tasks.spawn(
        tracing::Span::none(),
        htpasswd.clone().watch(tasks.stopping()),
    );
    let status = async |pair: &str| get(door.address, "/v2/", &[&basic(pair)]).await.status;
    assert_eq!((status("ann:old").await, status("bob:b").await), (200, 200));

    fs::write(folder.path().join("htpasswd"), "ann:hunter2\n").expect("written");
    let refused = eventually(async || htpasswd.status().refused).await;
    assert!(
        refused
            .message
            .contains("htpasswd:1: the password is not hashed by bcrypt"),
        "{}",
        refused.message
    );
    assert!(!refused.message.contains("hunter2"));
    assert_eq!(status("ann:old").await, 200);

    write_users(folder.path(), &[("ann", "new")]);
    eventually(async || (status("ann:old").await == 401).then_some(())).await;
    assert_eq!((status("ann:new").await, status("bob:b").await), (200, 401));
    assert!(htpasswd.status().refused.is_none());
    tasks.stop(SOON).await;
}

#[tokio::test]
async fn a_flood_of_wrong_passwords_keeps_nobody_waiting_who_is_known() {
    let folder = TempDir::new().expect("a folder");
    let (door, _) = open_with_users(&folder, &[("ann", "secret")]).await;
    let right = basic("ann:secret");
    assert_eq!(get(door.address, "/v2/", &[&right]).await.status, 200);
    let address = door.address;
    let guesses = (0..500).map(|number| async move {
        let guess = basic(&format!("ann:guess {number}"));
        get(address, "/v2/", &[&guess]).await.status
    });
    let known = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let began = Instant::now();
            assert_eq!(get(address, "/v2/", &[&right]).await.status, 200);
            slowest = slowest.max(began.elapsed());
        }
        slowest
    };
    let (guessed, slowest) = tokio::join!(futures_util::future::join_all(guesses), known);
    assert!(
        guessed
            .iter()
            .all(|status| *status == 401 || *status == 503),
        "{guessed:?}"
    );
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

#[tokio::test]
async fn either_a_password_or_a_certificate_is_enough_where_that_is_the_rule() {
    let (pki, folder) = (Pki::new(), TempDir::new().expect("a folder"));
    pki.install(&pki.sign("mirror.test", LATER));
    let own = pki.sign("build7.test", LATER);
    let path = write_users(folder.path(), &[("ann", "secret")]);
    let htpasswd = Htpasswd::load("x".to_owned(), path).expect("loads");
    for either in [true, false] {
        let admission = Admission {
            htpasswd: Some(htpasswd.clone()),
            certificates: true,
            either,
            certificate_required: !either,
        };
        let clientauth = if either {
            ClientAuth::IfGiven
        } else {
            ClientAuth::Require
        };
        let (door, _) = open_with_tls(&pki, admission, Some(clientauth)).await;
        let with_password = head("GET", "/v2/", &[&basic("ann:secret")], "close").into_bytes();
        let status = async |request: &[u8], certificate| {
            let answer = pki.ask(door.address, request, certificate).await;
            answer.map_or(0, |answer| answer[9..12].parse().expect("a status"))
        };
        assert_eq!(status(&with_password, Some(&own)).await, 200);
        assert_eq!(
            status(&with_password, None).await,
            if either { 200 } else { 0 }
        );
        assert_eq!(
            status(&ping(), Some(&own)).await,
            if either { 200 } else { 401 }
        );
        assert_eq!(status(&ping(), None).await, if either { 401 } else { 0 });
    }
}
