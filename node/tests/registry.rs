//! The clients' door over real sockets: what leaves it, header by header, and how it ends.

#[path = "registry/connection.rs"]
mod connection;
#[path = "registry/door.rs"]
mod door;
#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "the upstreams' tests use more of it")]
mod fake;
#[path = "registry/large.rs"]
mod large;
#[path = "registry/ranges.rs"]
mod ranges;
#[path = "registry/refusals.rs"]
mod refusals;
#[path = "registry/wire.rs"]
mod wire;

use std::time::Duration;

use door::{MANIFEST, MANIFEST_TYPE, REFERRERS, blob, digest_of, open};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use wire::{Reply, get, head, read_head, send};

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
