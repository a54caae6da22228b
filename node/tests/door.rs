//! How a connection begins and ends at the clients' door, in the clear or by TLS. Who is let in is below:
//! by `certificates`, by `passwords`.

#[path = "door/certificates.rs"]
mod certificates;
#[path = "registry/door.rs"]
mod door;
#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "the upstreams' tests use more of it")]
mod fake;
#[path = "door/passwords.rs"]
mod passwords;
#[path = "door/pki.rs"]
mod pki;
#[path = "registry/wire.rs"]
#[expect(dead_code, reason = "the registry's tests use more of it")]
mod wire;

use std::time::Duration;

use door::{Door, digest_of, large_blob, open_on, provider};
use millrace::registry::{self, Admission, Config, Terms};
use millrace::tls::{ClientAuth, Tls};
use pki::{Pki, talk};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use wire::{get, head};

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
