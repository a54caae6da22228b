//! An upstream that fails, hangs or is not there: fallbacks, retries, the breaker and deadlines.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millrace::upstream::FetchError;
use millrace::upstream::error::Outage;
use tokio::time::Instant;

use super::fake::{Fake, Reply};
use super::{
    MANIFEST, assert_unreachable, manifest, pull, read_blob, repository, tag, upstream,
    upstreams_at,
};

#[tokio::test]
async fn fallbacks_stand_in_order_for_a_primary_that_fails() {
    for failing in [
        Reply::new(503, ""),
        Reply::new(429, "Too Many Requests"),
        Reply::silence(),
    ] {
        let primary = Fake::start(move |_| failing.clone()).await;
        let first = Fake::start(|_| Reply::new(404, "")).await;
        let second = Fake::start(|_| manifest()).await;
        let keys = format!(
            "username: u, password: p, timeouts: {{response: 1s}}, fallback: ['{}', '{}']",
            first.url(),
            second.url()
        );
        let upstream = upstream(&primary, &keys);
        assert_eq!(
            pull(&upstream).await.expect("the second fallback has it"),
            MANIFEST
        );
        assert_eq!((primary.seen("").len(), first.seen("").len()), (1, 1));
        assert_eq!(second.seen("")[0].header("authorization"), "");
        assert!(!upstream.is_away(), "a fallback answers");
    }
}

#[tokio::test]
async fn the_primarys_word_is_final_and_a_fallbacks_is_not() {
    let missing = Fake::start(|_| Reply::new(404, "")).await;
    let other = Fake::start(|_| manifest()).await;
    let upstream_with_fallback = upstream(&missing, &format!("fallback: ['{}']", other.url()));
    let error = pull(&upstream_with_fallback).await.expect_err("missing");
    assert!(matches!(error, FetchError::NotFound { .. }), "{error}");
    assert!(other.seen("").is_empty());

    let broken = Fake::start(|_| Reply::new(502, "")).await;
    let upstream_with_fallback = upstream(&broken, &format!("fallback: ['{}']", missing.url()));
    let error = pull(&upstream_with_fallback).await.expect_err("broken");
    assert!(
        matches!(
            error,
            FetchError::Unavailable {
                reason: Outage::Status(502),
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(missing.seen("").len(), 2, "asked once by each upstream");
}

#[tokio::test]
async fn a_hiccup_is_bridged() {
    let count = AtomicUsize::new(0);
    let fake = Fake::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(503, ""),
        _ => manifest(),
    })
    .await;
    let upstream = upstream(&fake, "");
    assert_eq!(pull(&upstream).await.expect("the second attempt"), MANIFEST);
    assert!(!upstream.is_away());
}

#[tokio::test]
async fn an_upstream_that_keeps_failing_is_left_alone() {
    let fake = Fake::start(|_| Reply::new(500, "")).await;
    let upstream = upstream(&fake, "");
    assert!(!upstream.is_away());
    for _ in 0..2 {
        pull(&upstream).await.expect_err("fails");
        assert!(upstream.is_away());
    }
    let asked = fake.seen("").len();
    assert_eq!(asked, 5);
    let error = pull(&upstream).await.expect_err("breaker");
    assert!(
        matches!(
            error,
            FetchError::Unavailable {
                reason: Outage::BreakerOpen,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fake.seen("").len(), asked);
}

#[tokio::test]
async fn a_host_that_is_not_there_is_away() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let upstream = upstreams_at(&url, "").find("corp").expect("configured");
    let error = pull(&upstream).await.expect_err("refused");
    assert_unreachable(&error);
    assert!(upstream.is_away());
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up() {
    let fake = Fake::start(|_| Reply::new(200, "01234").stalling(10)).await;
    let upstream = upstream(&fake, "timeouts: {idle: 100ms}");
    let error = read_blob(&upstream, 0).await.expect_err("stalled");
    assert!(
        matches!(
            error,
            FetchError::Unavailable {
                reason: Outage::Stalled,
                ..
            }
        ),
        "{error}"
    );
    assert!(upstream.is_away());
}

#[tokio::test]
async fn the_deadline_is_kept() {
    let fake = Fake::start(|_| Reply::silence()).await;
    let upstream = upstream(&fake, "");
    let began = Instant::now();
    let deadline = began + Duration::from_millis(200);
    let error = upstream
        .fetch_manifest(&repository(), &tag(), deadline)
        .await
        .expect_err("silence");
    assert!(
        matches!(
            error,
            FetchError::Unavailable {
                reason: Outage::Deadline,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}
