//! Ranges of a blob: alone, several at once, and those that cannot be had.

use std::time::Duration;

use http::Request;
use http::header::{CONTENT_LENGTH, RANGE};
use http_body_util::BodyExt;
use millrace::registry::{Config, Terms};
use tempfile::TempDir;

use super::door::{blob, digest_of, open, open_in};
use super::wire::get;
use super::{blob_url, stored_blob};

#[tokio::test]
async fn one_range_is_answered_alone() {
    let door = open().await;
    let (content, size) = (blob(), blob().len());
    for url in [blob_url(), stored_blob(&door).await] {
        for (range, start, end) in [
            ("bytes=0-", 0, size),
            ("bytes=100000-", 100_000, size),
            ("bytes=5-5", 5, 6),
            ("bytes=1000-70000", 1000, 70_001),
            ("bytes=-7", size - 7, size),
        ] {
            let reply = get(door.address, &url, &[&format!("Range: {range}")]).await;
            assert_eq!(reply.status, 206, "{range}");
            assert_eq!(reply.body, content[start..end], "{range}");
            let expected = format!("bytes {start}-{}/{size}", end - 1);
            assert_eq!(reply.header("content-range"), expected);
            assert_eq!(reply.header("content-length"), (end - start).to_string());
            assert_eq!(reply.header("content-type"), "application/octet-stream");
        }
    }
}

#[tokio::test]
async fn a_range_that_does_not_hold_is_refused_or_ignored() {
    let door = open().await;
    let url = stored_blob(&door).await;
    let size = blob().len();
    let reply = get(door.address, &url, &[&format!("Range: bytes={size}-")]).await;
    assert_eq!((reply.status, reply.code().as_str()), (416, "SIZE_INVALID"));
    assert_eq!(reply.header("content-range"), format!("bytes */{size}"));
    for headers in [
        &["Range: bytes=9-1"][..],
        &["Range: lines=1-2"],
        &["Range: bytes=0-9", "If-Range: \"other\""],
    ] {
        let reply = get(door.address, &url, headers).await;
        assert_eq!((reply.status, reply.body.len()), (200, size), "{headers:?}");
    }
    let empty = format!("/v2/library/app/blobs/{}", digest_of(""));
    let reply = get(door.address, &empty, &["Range: bytes=0-"]).await;
    assert_eq!((reply.status, reply.header("content-length")), (200, "0"));
}

#[tokio::test]
async fn several_ranges_come_as_parts() {
    let door = open().await;
    let (url, content) = (stored_blob(&door).await, blob());
    let reply = get(door.address, &url, &["Range: bytes=0-99,1000-1999,-5"]).await;
    assert_eq!(reply.status, 206);
    let media_type = reply.header("content-type");
    let boundary = media_type.strip_prefix("multipart/byteranges; boundary=");
    let boundary = boundary.expect("a multipart type").as_bytes();
    let mut expected = Vec::new();
    let size = content.len();
    for (start, end) in [(0, 100), (1000, 2000), (size - 5, size)] {
        let range = format!("content-range: bytes {start}-{}/{size}", end - 1);
        let kind = "content-type: application/octet-stream";
        for piece in [b"\r\n--", boundary, b"\r\n", kind.as_bytes(), b"\r\n"] {
            expected.extend_from_slice(piece);
        }
        for piece in [range.as_bytes(), b"\r\n\r\n", &content[start..end]] {
            expected.extend_from_slice(piece);
        }
    }
    for piece in [&b"\r\n--"[..], boundary, b"--\r\n"] {
        expected.extend_from_slice(piece);
    }
    assert_eq!(reply.body, expected);
    assert_eq!(reply.header("content-length"), expected.len().to_string());
    let reply = get(door.address, &url, &["Range: bytes=900000-,910000-"]).await;
    assert_eq!((reply.status, reply.body.len()), (200, size), "never 416");
}

#[tokio::test]
async fn several_ranges_of_a_blob_that_is_not_here_are_all_of_it() {
    let door = open().await;
    let reply = get(door.address, &blob_url(), &["Range: bytes=0-99,200-299"]).await;
    assert_eq!((reply.status, reply.body), (200, blob()));
}

#[tokio::test]
async fn a_client_may_take_its_time_until_the_next_part() {
    // Nothing on a tmpfs is read without waiting, so each part is waited for.
    let folder = TempDir::new_in("/dev/shm").expect("a folder in memory");
    let door = open_in(folder, Config::default(), Terms::default()).await;
    let url = stored_blob(&door).await;
    // So many that one that is there by chance makes no difference.
    let ranges: Vec<_> = (10..40).map(|n| format!("{n}000-{n}499")).collect();
    let ranges = format!("bytes={}", ranges.join(","));
    let request = Request::get(&url).header(RANGE, ranges).body(());
    let answer = door.registry.answer(request.expect("a request"));
    let answer = answer.await;
    assert_eq!(answer.status(), 206);
    let length = answer.headers()[CONTENT_LENGTH].clone();
    // Far longer than any client waits for a head.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3600)).await;
    tokio::time::resume();
    // The runtime sees what time it is when it has nothing to do.
    assert_eq!(get(door.address, "/v2/", &[]).await.status, 200);
    let body = answer.into_body().collect().await.expect("every part");
    assert_eq!(body.to_bytes().len().to_string(), length);
}
