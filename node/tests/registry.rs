//! The clients' door over real sockets: what leaves it, header by header, and how it ends.

#[path = "registry/door.rs"]
mod door;
#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "the upstreams' tests use more of it")]
mod fake;
#[path = "registry/large.rs"]
mod large;
#[path = "registry/wire.rs"]
mod wire;

use std::time::Duration;

use door::{MANIFEST, MANIFEST_TYPE, REFERRERS, blob, digest_of, open, open_with};
use millrace::registry::{Config, UnavailableBlob};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use wire::{Reply, exchange, get, head, parse, read_head, read_to_fin, send};

/// Longest time for what happens at once.
const SOON: Duration = Duration::from_secs(20);

fn blob_url() -> String {
    format!("/v2/library/app/blobs/{}", digest_of(blob()))
}

/// Pulls the blob, so that it is in the store, and returns its URL.
async fn stored_blob(door: &door::Door) -> String {
    let url = blob_url();
    // The blob becomes visible a moment after its last byte has gone out.
    let stored = |reply: &Reply| reply.header("x-millrace-source") == "local";
    assert_eq!(eventually(door, &url, stored).await.status, 200);
    url
}

/// Asks until the answer is as it should be.
async fn eventually(door: &door::Door, url: &str, is_right: impl Fn(&Reply) -> bool) -> Reply {
    let asking = async {
        loop {
            let reply = get(door.address, url, &[]).await;
            if is_right(&reply) {
                return reply;
            }
        }
    };
    let reply = tokio::time::timeout(SOON, asking).await;
    reply.unwrap_or_else(|_| panic!("{url} never came right"))
}

#[tokio::test]
async fn every_form_reaches_the_upstream_it_names() {
    let door = open().await;
    let digest = digest_of(MANIFEST);
    for (name, namespace) in [
        ("docker.io", "docker.io"),
        ("dockerhub", "docker.io"),
        ("corp", "registry.corp:5000"),
        ("registry.corp:5000", "registry.corp:5000"),
        ("registry.corp_5000", "registry.corp:5000"),
        ("gcr.io", "gcr.io"),
    ] {
        let escaped = name.replace(':', "%3A");
        for url in [
            format!("/v2/team/app/manifests/v1?ns={escaped}"),
            format!("/v2/{name}/team/app/manifests/v1"),
            format!("/{name}/v2/team/app/manifests/{digest}"),
            format!("/{name}/v2/team/app/manifests/v1?ns={escaped}"),
            format!("/v2/{name}/team/app/manifests/v1?ns={escaped}"),
            format!("/{name}/team/app/manifests/v1?ns={escaped}"),
        ] {
            for method in ["GET", "HEAD"] {
                let reply = send(door.address, method, &url, &[]).await;
                assert_eq!(reply.status, 200, "{method} {url}");
                assert_eq!(reply.header("oci-namespace"), namespace, "{method} {url}");
            }
        }
    }
    let reply = get(door.address, "/v2/app/manifests/v1", &[]).await;
    assert_eq!(
        (reply.status, reply.header("oci-namespace")),
        (200, "docker.io")
    );
    assert!(!door.upstream.seen("/v2/library/app/manifests/").is_empty());
    let reply = get(
        door.address,
        "/v2/example.com/p/app/manifests/v1?ns=gcr.io",
        &[],
    )
    .await;
    assert_eq!(
        (reply.status, reply.header("oci-namespace")),
        (200, "gcr.io")
    );
    assert!(
        !door
            .upstream
            .seen("/v2/example.com/p/app/manifests/")
            .is_empty()
    );
}

#[tokio::test]
async fn an_upstream_that_is_not_configured_is_never_asked() {
    let door = open().await;
    for url in [
        "/v2/a/b/manifests/v1?ns=evil.example",
        "/v2/evil.example/a/b/tags/list",
        "/evil.example/v2/a/b/manifests/v1",
        "/v2/127.0.0.1:1/a/manifests/v1",
    ] {
        let reply = get(door.address, url, &[]).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (404, "NAME_UNKNOWN"),
            "{url}"
        );
    }
    assert!(door.upstream.seen("").is_empty());
}

#[tokio::test]
async fn the_ping_says_what_this_is() {
    let door = open().await;
    for url in ["/v2/", "/v2", "/docker.io/v2/", "/nobody.example/v2/"] {
        let reply = get(door.address, url, &[]).await;
        assert_eq!((reply.status, reply.text()), (200, "{}"), "{url}");
        assert_eq!(
            reply.header("docker-distribution-api-version"),
            "registry/2.0"
        );
        let head = send(door.address, "HEAD", url, &[]).await;
        assert_eq!((head.head(), head.text()), (reply.head(), ""));
    }
    assert!(door.upstream.seen("").is_empty());
}

#[tokio::test]
async fn a_manifest_has_its_headers() {
    let door = open().await;
    let digest = digest_of(MANIFEST);
    let accept = "Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5";
    let range = "Range: bytes=0-";
    let types = [
        "Accept: application/vnd.docker.distribution.manifest.v1+json",
        "Accept: x/y",
    ];
    let headers = [accept, range, types[0], types[1]];
    let by_tag = get(door.address, "/v2/library/app/manifests/v1", &headers).await;
    assert_eq!(by_tag.text(), MANIFEST);
    let expected = format!(
        "200\ncontent-length: {}\ncontent-type: {MANIFEST_TYPE}\n\
         docker-content-digest: {digest}\ndocker-distribution-api-version: registry/2.0\n\
         etag: \"{digest}\"\noci-namespace: docker.io\nx-millrace-source: upstream",
        MANIFEST.len()
    );
    assert_eq!(by_tag.head(), expected);
    let local = expected.replace("source: upstream", "source: local");
    let head = send(
        door.address,
        "HEAD",
        "/v2/library/app/manifests/v1",
        &headers,
    )
    .await;
    assert_eq!((head.head(), head.text()), (local.clone(), ""));
    let url = format!("/v2/library/app/manifests/{digest}");
    let by_digest = get(door.address, &url, &headers).await;
    let immutable = "200\ncache-control: max-age=31536000, immutable";
    assert_eq!(by_digest.head(), local.replacen("200", immutable, 1));
}

#[tokio::test]
async fn a_blob_has_its_headers() {
    let door = open().await;
    let (url, digest) = (blob_url(), digest_of(blob()));
    let head_before = send(door.address, "HEAD", &url, &[]).await;
    let reply = get(door.address, &url, &["Accept-Encoding: gzip"]).await;
    assert_eq!(reply.body, blob());
    let expected = format!(
        "200\naccept-ranges: bytes\ncache-control: max-age=31536000, immutable\n\
         content-length: {}\ncontent-type: application/octet-stream\n\
         docker-content-digest: {digest}\ndocker-distribution-api-version: registry/2.0\n\
         etag: \"{digest}\"\noci-namespace: docker.io\nx-millrace-source: upstream",
        blob().len()
    );
    assert_eq!(reply.head(), expected);
    assert_eq!(head_before.head(), expected);
    stored_blob(&door).await;
    let head = send(door.address, "HEAD", &url, &["Range: bytes=0-9"]).await;
    let local = expected.replace("source: upstream", "source: local");
    assert_eq!((head.head(), head.text()), (local, ""));
}

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
async fn what_the_client_has_is_not_sent_again() {
    let door = open().await;
    for (url, digest) in [
        (stored_blob(&door).await, digest_of(blob())),
        (
            "/v2/library/app/manifests/v1".to_owned(),
            digest_of(MANIFEST),
        ),
    ] {
        for method in ["GET", "HEAD"] {
            let known = format!("If-None-Match: \"{digest}\"");
            let reply = send(door.address, method, &url, &[&known]).await;
            assert_eq!((reply.status, reply.text()), (304, ""), "{method} {url}");
            assert_eq!(reply.header("etag"), format!("\"{digest}\""));
            assert_eq!(reply.header("content-length"), "");
            let reply = send(door.address, method, &url, &["If-None-Match: \"x\""]).await;
            assert_eq!(reply.status, 200);
        }
    }
}

#[tokio::test]
async fn a_blob_without_a_stated_size_comes_in_chunks() {
    let door = open().await;
    let url = format!("/v2/sizeless/app/blobs/{}", digest_of(blob()));
    let mut stream = TcpStream::connect(door.address).await.expect("open");
    let request = head("GET", &url, &["Range: bytes=0-"], "keep-alive");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let reply = read_head(&mut stream).await;
    assert_eq!((reply.status, reply.header("content-length")), (200, ""));
    assert_eq!(reply.header("transfer-encoding"), "chunked");
}

#[tokio::test]
async fn tags_are_paged_under_the_name_the_client_used() {
    let door = open().await;
    let reply = get(door.address, "/v2/docker.io/library/app/tags/list", &[]).await;
    let expected = r#"{"name":"docker.io/library/app","tags":["a","b","c"]}"#;
    assert_eq!((reply.text(), reply.header("link")), (expected, ""));
    assert_eq!(reply.header("content-type"), "application/json");
    let url = "/v2/team/app/tags/list?n=2&ns=registry.corp%3A5000";
    let reply = get(door.address, url, &[]).await;
    assert_eq!(reply.text(), r#"{"name":"team/app","tags":["a","b"]}"#);
    let link = reply.header("link");
    let next = "/v2/team/app/tags/list?n=2&last=b&ns=registry.corp:5000";
    assert_eq!(link, format!("<{next}>; rel=\"next\""));
    let reply = get(door.address, next, &[]).await;
    assert_eq!(reply.text(), r#"{"name":"team/app","tags":["c"]}"#);
    assert_eq!(reply.header("link"), "");
    let reply = get(door.address, "/corp/v2/team/app/tags/list?n=0", &[]).await;
    assert_eq!((reply.status, reply.header("link")), (200, ""));
    assert_eq!(reply.text(), r#"{"name":"team/app","tags":[]}"#);
}

#[tokio::test]
async fn the_catalog_names_what_was_pulled() {
    let door = open().await;
    stored_blob(&door).await;
    // The index follows the store a moment later.
    let expected = r#"{"repositories":["docker.io/library/app"]}"#;
    eventually(&door, "/v2/_catalog", |reply| reply.text() == expected).await;
    let reply = get(door.address, "/docker.io/v2/_catalog?n=1", &[]).await;
    assert_eq!(reply.text(), r#"{"repositories":["library/app"]}"#);
    let reply = get(door.address, "/v2/_catalog?last=docker.io/library/app", &[]).await;
    assert_eq!(reply.text(), r#"{"repositories":[]}"#);
}

#[tokio::test]
async fn referrers_are_an_index_filtered_here() {
    let door = open().await;
    let url = format!("/v2/library/app/referrers/{}", digest_of(MANIFEST));
    let reply = get(door.address, &url, &[]).await;
    assert_eq!((reply.status, reply.text()), (200, REFERRERS));
    let index = "application/vnd.oci.image.index.v1+json";
    assert_eq!(reply.header("content-type"), index);
    assert_eq!(reply.header("oci-filters-applied"), "");
    let url = format!("{url}?artifactType=application%2Fx%2Bjson");
    let reply = get(door.address, &url, &[]).await;
    assert_eq!(reply.header("content-type"), index);
    assert_eq!(reply.header("oci-filters-applied"), "artifactType");
    assert!(reply.text().contains("sha256:a") && !reply.text().contains("sha256:b"));
    assert!(door.upstream.seen("artifactType").is_empty());
}

#[tokio::test]
async fn malformed_requests_get_the_code_that_clients_expect() {
    let door = open().await;
    for (url, status, code) in [
        (
            "/v2/library/app/manifests/.INVALID_MANIFEST_NAME",
            404,
            "MANIFEST_UNKNOWN",
        ),
        (
            "/v2/library/app/manifests/sha256:totallywrong",
            400,
            "DIGEST_INVALID",
        ),
        (
            "/v2/library/app/blobs/sha256:totallywrong",
            400,
            "DIGEST_INVALID",
        ),
        (
            "/v2/library/app/referrers/sha256:totallywrong",
            400,
            "DIGEST_INVALID",
        ),
        ("/v2/Library/App/manifests/v1", 404, "NAME_INVALID"),
        ("/v2/library/%ff/manifests/v1", 404, "NAME_INVALID"),
        (
            "/v2/library/app/blobs/uploads/1",
            404,
            "BLOB_UPLOAD_UNKNOWN",
        ),
        ("/v2/_oci/ext/discover", 404, "NAME_UNKNOWN"),
        ("/", 404, "NAME_UNKNOWN"),
    ] {
        let reply = get(door.address, url, &[]).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (status, code),
            "{url}"
        );
        let head = send(door.address, "HEAD", url, &[]).await;
        assert_eq!((head.head(), head.text()), (reply.head(), ""), "{url}");
    }
    assert!(door.upstream.seen("").is_empty());
}

/// Repository, resource, whether the client is docker, and the answer. `BLOB` stands for a blob
/// that exists, `NONE` for one that does not.
const FAILURES: &[(&str, &str, bool, u16, &str)] = &[
    (
        "library/app",
        "manifests/v9",
        false,
        404,
        "MANIFEST_UNKNOWN",
    ),
    ("library/app", "blobs/NONE", false, 404, "BLOB_UNKNOWN"),
    ("private/app", "manifests/v1", false, 404, "NAME_UNKNOWN"),
    ("private/app", "tags/list", false, 404, "NAME_UNKNOWN"),
    ("private/app", "blobs/BLOB", false, 404, "BLOB_UNKNOWN"),
    ("limited/app", "manifests/v1", false, 503, "UNAVAILABLE"),
    ("limited/app", "blobs/BLOB", false, 503, "UNAVAILABLE"),
    ("limited/app", "blobs/BLOB", true, 404, "BLOB_UNKNOWN"),
    ("limited/app", "referrers/BLOB", false, 503, "UNAVAILABLE"),
];

#[tokio::test]
async fn failures_of_the_upstream_move_clients_on() {
    let door = open().await;
    let (blob, none) = (digest_of(blob()).to_string(), digest_of("none").to_string());
    for (repository, resource, is_docker, status, code) in FAILURES {
        let resource = resource.replace("BLOB", &blob).replace("NONE", &none);
        let url = format!("/v2/{repository}/{resource}");
        let agent: &[&str] = if *is_docker {
            &["User-Agent: docker/29.0 go/1.24"]
        } else {
            &[]
        };
        let reply = get(door.address, &url, agent).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (*status, *code),
            "{url}"
        );
        assert_eq!(reply.header("retry-after"), "");
        assert_eq!(reply.header("www-authenticate"), "");
    }
}

#[tokio::test]
async fn the_setting_decides_what_an_unavailable_blob_is() {
    for (unavailable_blob, status) in [
        (UnavailableBlob::NotFound, 404),
        (UnavailableBlob::Unavailable, 503),
    ] {
        let config = Config {
            unavailable_blob,
            ..Config::default()
        };
        let door = open_with(config).await;
        let url = format!("/v2/limited/app/blobs/{}", digest_of(blob()));
        for agent in ["User-Agent: docker/29.0", "User-Agent: x"] {
            assert_eq!(get(door.address, &url, &[agent]).await.status, status);
        }
    }
}

#[tokio::test]
async fn writes_are_refused_unread() {
    let door = open().await;
    for (method, url) in [
        ("POST", "/v2/library/app/blobs/uploads/"),
        ("PUT", "/v2/library/app/manifests/v1"),
        ("PATCH", "/v2/library/app/blobs/uploads/1"),
        ("DELETE", "/v2/library/app/manifests/v1"),
        ("OPTIONS", "/v2/"),
    ] {
        let reply = send(door.address, method, url, &[]).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (405, "UNSUPPORTED"),
            "{method}"
        );
        assert_eq!(reply.header("allow"), "GET, HEAD");
    }
    // A body that is never sent in whole does not keep the answer back.
    let length = "Content-Length: 1000000000000";
    let mut request = head(
        "PUT",
        "/v2/library/app/manifests/v1",
        &[length],
        "keep-alive",
    );
    request.push_str(&"x".repeat(500_000));
    let reply = exchange(door.address, request.as_bytes()).await;
    assert_eq!(reply.status, 405);
}

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

#[tokio::test]
async fn what_leaves_is_counted() {
    let door = open().await;
    let mut metrics = prometheus_client::registry::Registry::default();
    door.registry.register_metrics(&mut metrics);
    stored_blob(&door).await;
    get(door.address, "/v2/library/app/manifests/v9", &[]).await;
    // A connection counts until it has been closed on both sides.
    door.running.drain().await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics).expect("encodes");
    let size = blob().len();
    for line in [
        r#"millrace_registry_requests_total{endpoint="blobs",method="GET",status_class="2xx",source="local"} 1"#.to_owned(),
        r#"millrace_registry_requests_total{endpoint="manifests",method="GET",status_class="4xx",source="none"} 1"#.to_owned(),
        format!(r#"millrace_registry_sent_bytes_total{{source="local"}} {size}"#),
        r#"millrace_registry_first_byte_seconds_count{endpoint="manifests"} 1"#.to_owned(),
        "millrace_registry_open_connections 0".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}
