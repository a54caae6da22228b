//! Connections: what is no HTTP, answers that break off, the end of the door, and how many may come.

use std::time::Duration;

use millrace::registry::Config;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::door::{blob, digest_of, open, open_with};
use super::wire::{exchange, get, head, parse, read_head, read_to_fin};
use super::{SOON, stored_blob};

#[tokio::test]
async fn a_tls_client_hears_that_this_is_http() {
    let door = open().await;
    let mut stream = TcpStream::connect(door.address).await.expect("open");
    let mut hello = vec![0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    hello.resize(205, 0xab);
    stream.write_all(&hello).await.expect("sent");
    let received = tokio::time::timeout(SOON, read_to_fin(&mut stream)).await;
    let received = received.expect("at once").expect("FIN, not a reset");
    assert!(received.starts_with(b"HTTP/"), "{received:?}");
    assert_eq!(parse(&received).status, 400);
}

#[tokio::test]
async fn nothing_that_a_client_writes_ends_the_node() {
    let door = open().await;
    for request in [
        &b"\r\n\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v2/%00%ff/manifests/%2e%2e HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://other/v2/ HTTP/1.1\r\nHost: x\r\nRange: bytes=\xff\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(door.address).await.expect("open");
        stream.write_all(request).await.expect("sent");
        stream.shutdown().await.expect("sent");
        let _ = read_to_fin(&mut stream).await;
    }
    let long = format!("/v2/{}/manifests/v1", "a".repeat(100_000));
    let reply = get(door.address, &long, &[]).await;
    assert!((400..500).contains(&reply.status), "{}", reply.status);
    assert_eq!(get(door.address, "/v2/", &[]).await.status, 200);
}

#[tokio::test]
async fn a_body_that_fails_ends_short_and_by_fin() {
    let door = open().await;
    let url = format!("/v2/cut/app/blobs/{}", digest_of(blob()));
    // What the client has sent meanwhile stays unread, and must not turn FIN into a reset.
    let mut requests = head("GET", &url, &[], "keep-alive");
    while requests.len() < 500_000 {
        requests.push_str(&head("GET", "/v2/", &[], "keep-alive"));
    }
    let reply = exchange(door.address, requests.as_bytes()).await;
    let size = blob().len();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-length"), size.to_string());
    assert!(
        !reply.body.is_empty() && reply.body.len() < size,
        "{}",
        reply.body.len()
    );
    assert!(blob().starts_with(&reply.body));
}

#[tokio::test]
async fn drain_lets_a_running_answer_finish_and_refuses_new_connections() {
    let door = open().await;
    let url = stored_blob(&door).await;
    let mut idle = TcpStream::connect(door.address).await.expect("open");
    idle.write_all(head("GET", "/v2/", &[], "keep-alive").as_bytes())
        .await
        .expect("sent");
    read_head(&mut idle).await;
    let mut busy = TcpStream::connect(door.address).await.expect("open");
    busy.write_all(head("GET", &url, &[], "keep-alive").as_bytes())
        .await
        .expect("sent");
    let reply = read_head(&mut busy).await;
    assert_eq!(reply.status, 200);
    let address = door.address;
    let client = async {
        let left = read_to_fin(&mut idle).await.expect("FIN");
        assert_eq!(
            left, b"{}",
            "the idle connection ends after its last answer"
        );
        let refused = TcpStream::connect(address).await.expect_err("closed");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(read_to_fin(&mut busy).await.expect("FIN"), blob());
    };
    let ((), ()) = tokio::join!(client, door.running.drain());
}

#[tokio::test]
async fn drain_cuts_what_does_not_end_in_time() {
    let config = Config {
        drain_timeout: Duration::from_millis(50),
        ..Config::default()
    };
    let door = open_with(config).await;
    let url = format!("/v2/stalled/app/blobs/{}", digest_of(blob()));
    let mut stream = TcpStream::connect(door.address).await.expect("open");
    stream
        .write_all(head("GET", &url, &[], "keep-alive").as_bytes())
        .await
        .expect("sent");
    assert_eq!(read_head(&mut stream).await.status, 200);
    let client = tokio::time::timeout(SOON, read_to_fin(&mut stream));
    let (received, ()) = tokio::join!(client, door.running.drain());
    let received = received.expect("cut").expect("FIN, not a reset");
    assert!(received.len() < blob().len());
}

#[tokio::test]
async fn a_connection_beyond_the_bound_waits_for_its_turn() {
    let config = Config {
        max_connections: 1,
        ..Config::default()
    };
    let door = open_with(config).await;
    let mut first = TcpStream::connect(door.address).await.expect("open");
    first
        .write_all(head("GET", "/v2/", &[], "keep-alive").as_bytes())
        .await
        .expect("sent");
    read_head(&mut first).await;
    let second = get(door.address, "/v2/", &[]);
    let mut second = std::pin::pin!(second);
    let early = tokio::time::timeout(Duration::from_millis(100), &mut second).await;
    assert!(early.is_err(), "answered beyond the bound");
    drop(first);
    assert_eq!(second.await.status, 200);
}
