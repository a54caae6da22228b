//! The operators' door: what it answers while a node starts, serves, suffers and drains.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use millrace::admin::{Admin, Listener, NodeStatus, Readiness, StatusSource};
use millrace::telemetry::Metrics;
use millrace::{pull, store, upstream};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use prometheus_client::metrics::counter::Counter;
use tower::ServiceExt;

/// A node that always tells the same.
struct Canned(NodeStatus);

impl StatusSource for Canned {
    fn status(&self) -> NodeStatus {
        self.0.clone()
    }
}

fn admin(status: NodeStatus) -> (Admin, Readiness) {
    let readiness = Readiness::starting(["the store"]);
    let metrics = Metrics::new(|registry| {
        registry.register("millrace_test_pulls", "Pulls", Counter::<u64>::default());
    });
    let admin = Admin {
        source: Arc::new(Canned(status)),
        readiness: readiness.clone(),
        metrics: Some(("/m".to_owned(), metrics)),
    };
    (admin, readiness)
}

async fn get(admin: &Admin, uri: &str) -> (StatusCode, String, String) {
    let request = Request::get(uri)
        .body(Body::empty())
        .expect("valid request");
    let response = admin
        .clone()
        .router()
        .oneshot(request)
        .await
        .expect("infallible");
    let media_type = response.headers()["content-type"].to_str().expect("text");
    let (status, media_type) = (response.status(), media_type.to_owned());
    let body = response.into_body().collect().await.expect("in memory");
    let text = String::from_utf8(body.to_bytes().into()).expect("text");
    (status, media_type, text)
}

fn fresh() -> NodeStatus {
    NodeStatus {
        version: "1.2.3",
        started: SystemTime::UNIX_EPOCH,
        uptime: Duration::from_secs(3720),
        listeners: vec![Listener {
            name: "clients",
            address: "127.0.0.1:5000".to_owned(),
            admits: "everyone",
        }],
        tls: None,
        htpasswd: None,
        store: None,
        pull: None,
        upstreams: Vec::new(),
        cluster: None,
        peers: None,
    }
}

fn quiet(name: &str) -> upstream::Status {
    let url = format!("https://{name}/");
    upstream::Status {
        name: name.to_owned(),
        credential: serde_json::from_str("\"anonymous\"").expect("a credential id"),
        away: false,
        in_flight: 0,
        max_requests: 64,
        lasting_downloads: 0,
        endpoints: vec![upstream::EndpointStatus {
            url: url.parse().expect("a URL"),
            breaker: upstream::BreakerState::Closed,
            allowance: None,
            allowance_told: None,
            limited: None,
        }],
        last_error: None,
    }
}

/// A node on a bad day.
fn suffering() -> NodeStatus {
    let mut hub = quiet("docker.io");
    hub.away = true;
    hub.in_flight = 64;
    hub.endpoints[0].breaker = upstream::BreakerState::Open;
    hub.endpoints[0].allowance = Some(upstream::Allowance {
        limit: Some(100),
        remaining: Some(0),
        window_seconds: Some(21600),
        source: None,
    });
    hub.endpoints[0].limited = Some(upstream::LimitStatus {
        limit: upstream::Limit::Pulls,
        seconds_left: 42,
        told: None,
    });
    hub.last_error = Some(upstream::LastError {
        at: SystemTime::UNIX_EPOCH,
        message: "connection\n\u{1b}refused ".repeat(20),
    });
    let digest = |number: u64| format!("sha256:{number:0>64}").parse::<Digest>();
    let transfer = |age_seconds| pull::TransferStatus {
        digest: digest(age_seconds).expect("a digest"),
        origins: vec![format!("docker.io/library/{}", "long".repeat(40))],
        source: Some(pull::Source::Peer),
        size_bytes: Some(256_000_000),
        received_bytes: 115_000_000,
        relayed: false,
        queued: false,
        waiters: 3,
        age_seconds,
    };
    let names = [
        "quay.io",
        "ghcr.io",
        "gcr.io",
        "registry.k8s.io",
        "lscr.io",
        "nvcr.io",
    ];
    let many = names
        .iter()
        .chain(&names)
        .chain(&names)
        .map(|name| quiet(name));
    NodeStatus {
        store: Some(store::Status {
            root: "/var/lib/millrace".into(),
            blobs: 1234,
            blob_bytes: 199_000_000_000,
            growing_bytes: 256_000_000,
            suspended_bytes: 0,
            spared_bytes: 0,
            max_bytes: 200_000_000_000,
            min_free_bytes: 10_000_000_000,
            free_bytes: Some(9_000_000_000),
            index_ready: false,
        }),
        pull: Some(pull::Status {
            transfers: (0..25).map(transfer).collect(),
            holdings: Some(pull::HoldingsStatus {
                members: 3,
                in_sync: 2,
                contents: 4567,
                too_much: vec![NodeId::new([0xab; 32])],
            }),
            distrusted: vec![NodeId::new([0xcd; 32])],
        }),
        upstreams: std::iter::once(hub).chain(many).collect(),
        ..fresh()
    }
}

#[tokio::test]
async fn a_node_is_healthy_at_once_and_ready_when_it_can_serve() {
    let (admin, readiness) = admin(fresh());
    assert_eq!(get(&admin, "/healthz").await.0, StatusCode::OK);
    let (status, _, text) = get(&admin, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text, "starting, waiting for the store\n");
    readiness.done("the store");
    let (status, _, text) = get(&admin, "/readyz").await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "ready\n"));
    readiness.drain();
    let (status, _, text) = get(&admin, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text, "draining\n");
    assert_eq!(get(&admin, "/healthz").await.0, StatusCode::OK);
}

#[tokio::test]
async fn metrics_are_where_the_configuration_puts_them() {
    let (mut admin, _) = admin(fresh());
    let (status, media_type, text) = get(&admin, "/m").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(media_type, Metrics::CONTENT_TYPE);
    assert!(text.contains("millrace_test_pulls_total 0"), "{text}");
    admin.metrics = None;
    let request = Request::get("/m")
        .body(Body::empty())
        .expect("valid request");
    let response = admin.router().oneshot(request).await.expect("infallible");
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn status_is_json_with_stable_names() {
    let (admin, _) = admin(suffering());
    let (status, media_type, text) = get(&admin, "/status").await;
    assert_eq!(
        (status, media_type.as_str()),
        (StatusCode::OK, "application/json")
    );
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for (pointer, value) in [
        ("/state", "\"starting\""),
        ("/waiting_for/0", "\"the store\""),
        ("/version", "\"1.2.3\""),
        ("/started", "\"1970-01-01T00:00:00Z\""),
        ("/uptime_seconds", "3720"),
        ("/listeners/0/address", "\"127.0.0.1:5000\""),
        ("/store/blobs", "1234"),
        ("/pull/transfers/24/waiters", "3"),
        ("/pull/holdings/in_sync", "2"),
        ("/upstreams/0/away", "true"),
        ("/upstreams/0/endpoints/0/breaker", "\"open\""),
    ] {
        let found = json.pointer(pointer).map(ToString::to_string);
        assert_eq!(found.as_deref(), Some(value), "{pointer}");
    }
    let (status, _, _) = get(&admin, "/status?output=xml").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn status_as_text_says_what_is_wrong_in_100_columns() {
    let (admin, readiness) = admin(suffering());
    readiness.done("the store");
    let (status, media_type, text) = get(&admin, "/status?output=text").await;
    assert_eq!(
        (status, media_type.as_str()),
        (StatusCode::OK, "text/plain; charset=utf-8")
    );
    for words in [
        "millrace 1.2.3: ready, up 1h 2m, since 1970-01-01T00:00:00Z\n",
        "clients    127.0.0.1:5000: everyone\n",
        "1234 blobs, 199.3 GB of 200.0 GB taken (99 %)",
        "THE DISK IS FULL",
        "the index is being read",
        "2 of 3 others have told what they hold: 4567 contents\n",
        "abababab HOLDS TOO MUCH to keep in mind, it is asked\n",
        "NO CONTENT IS TAKEN FROM cdcdcdcd",
        "transfers  25\n",
        "115.0 MB of 256.0 MB (44 %)",
        "and 5 younger ones\n",
        "upstreams  19, 1 AWAY\n",
        "  docker.io                AWAY  64 of 64 requests, MORE WAIT (max_requests)\n",
        "https://docker.io/ is NOT ASKED for a while; RATE LIMIT: no pulls for 42s;",
        "0 of 100 pulls",
        "last error 1970-01-01T00:00:00Z: connection ?refused",
        "  quiet: quay.io ghcr.io",
    ] {
        assert!(text.contains(words), "{words}\nis missing in\n{text}");
    }
    let longest = text.lines().map(|line| line.chars().count()).max();
    assert!(longest <= Some(100), "{text}");
}

#[tokio::test]
async fn a_quiet_node_needs_few_lines() {
    let mut status = fresh();
    status.upstreams = vec![quiet("docker.io"), quiet("quay.io")];
    let (admin, readiness) = admin(status);
    readiness.done("the store");
    let (_, _, text) = get(&admin, "/status?output=text").await;
    let expected = "millrace 1.2.3: ready, up 1h 2m, since 1970-01-01T00:00:00Z\n\
                    clients    127.0.0.1:5000: everyone\n\nupstreams  2\n  quiet: docker.io quay.io\n";
    assert_eq!(text, expected);
}
