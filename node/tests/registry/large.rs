//! Large blobs, which leave the node from the page cache: every byte in its place.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::door::{Door, digest_of, large_blob, open};
use super::eventually;
use super::wire::{head, read_head};

/// Requests one behind the other without waiting, and what each body must be.
async fn exchange(door: &Door, requests: &[(&str, &str, &[u8])], url: &str) {
    let mut stream = TcpStream::connect(door.address).await.expect("open");
    let heads: String = requests
        .iter()
        .map(|(method, range, _)| match *range {
            "" => head(method, url, &[], "keep-alive"),
            range => head(method, url, &[range], "keep-alive"),
        })
        .collect();
    stream.write_all(heads.as_bytes()).await.expect("sent");
    for (method, range, expected) in requests {
        let reply = read_head(&mut stream).await;
        let length = reply.header("content-length").parse().expect("a length");
        let mut body = vec![0; if *method == "HEAD" { 0 } else { length }];
        stream.read_exact(&mut body).await.expect("a whole body");
        assert!(body == *expected, "{method} {range}");
    }
}

#[tokio::test]
async fn a_stored_blob_goes_out_whole_and_in_part_on_one_connection() {
    let (door, content) = (open().await, large_blob());
    let url = format!("/v2/library/app/blobs/{}", digest_of(&content));
    let reply = eventually(&door, &url, |reply| {
        assert!(
            reply.body == content,
            "{}",
            reply.header("x-millrace-source")
        );
        reply.header("x-millrace-source") == "local"
    });
    assert_eq!(reply.await.status, 200);
    let size = content.len();
    let requests: [(&str, &str, &[u8]); 7] = [
        ("GET", "", &content),
        ("HEAD", "", &[]),
        ("GET", "Range: bytes=300000-", &content[300_000..]),
        (
            "GET",
            "Range: bytes=1048575-4000000",
            &content[1_048_575..=4_000_000],
        ),
        ("GET", "Range: bytes=5-9", &content[5..10]),
        ("GET", "Range: bytes=-400000", &content[size - 400_000..]),
        ("GET", "", &content),
    ];
    exchange(&door, &requests, &url).await;
}

#[tokio::test]
async fn a_blob_without_a_stated_size_goes_out_in_chunks_while_it_grows() {
    let (door, content) = (open().await, large_blob());
    let url = format!("/v2/sizeless/app/blobs/{}", digest_of(&content));
    let mut stream = TcpStream::connect(door.address).await.expect("open");
    let request = head("GET", &url, &[], "keep-alive");
    stream.write_all(request.as_bytes()).await.expect("sent");
    assert_eq!(
        read_head(&mut stream).await.header("transfer-encoding"),
        "chunked"
    );
    let mut stream = BufReader::new(stream);
    let mut received = Vec::new();
    while received.len() < 4 * 1024 * 1024 {
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("a chunk's size");
        let size = usize::from_str_radix(line.trim_end(), 16).expect("a number");
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).await.expect("a whole chunk");
        assert!(chunk.ends_with(b"\r\n"));
        received.extend_from_slice(&chunk[..size]);
    }
    assert!(content.starts_with(&received));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_harms_nobody() {
    let (door, content) = (open().await, large_blob());
    let url = format!("/v2/library/app/blobs/{}", digest_of(&content));
    for _ in 0..3 {
        let mut stream = TcpStream::connect(door.address).await.expect("open");
        let request = head("GET", &url, &[], "keep-alive");
        stream.write_all(request.as_bytes()).await.expect("sent");
        assert_eq!(read_head(&mut stream).await.status, 200);
    }
    exchange(&door, &[("GET", "", &content)], &url).await;
}
