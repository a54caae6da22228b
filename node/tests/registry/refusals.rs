//! What clients are told when they do not get what they asked for.

use millrace::registry::{Config, UnavailableBlob};

use super::door::{blob, digest_of, open, open_with};
use super::wire::{exchange, get, head, send};

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
