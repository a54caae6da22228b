//! Passwords: from a file that is followed, for every endpoint, and beside certificates.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use millrace::registry::{Admission, Config, Htpasswd, Terms};
use millrace::task::Tasks;
use millrace::tls::ClientAuth;
use tempfile::TempDir;

use super::door::{Door, open_on};
use super::pki::Pki;
use super::wire::{get, head, send};
use super::{LATER, SOON, eventually, open_with_tls, ping};

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
