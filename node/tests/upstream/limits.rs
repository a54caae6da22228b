//! Limits: what a registry allows, what other nodes were told of it, and how many requests this node
//! lets run.

use std::time::Duration;

use millrace::upstream::{FetchError, Limit};
use millrace_protocol::membership::BudgetWord;
use millrace_protocol::node_id::NodeId;
use tokio::time::Instant;

use super::fake::{Fake, Reply};
use super::{digest, manifest, pull, read_blob, repository, soon, tag, upstream, upstreams};

#[tokio::test]
async fn a_pull_limit_stops_pulls_and_nothing_else() {
    let fake =
        Fake::start(
            |seen| match seen.target.contains("/manifests/") && seen.method == "GET" {
                true => Reply::new(429, r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#)
                    .header("retry-after", "7"),
                false => Reply::new(200, "0123456789").header("ratelimit-remaining", "0;w=21600"),
            },
        )
        .await;
    let upstreams = upstreams(&fake, "");
    let upstream = upstreams.find("corp").expect("configured");
    for _ in 0..2 {
        let error = pull(&upstream).await.expect_err("limited");
        let FetchError::RateLimited {
            limit: Limit::Pulls,
            retry_at: Some(at),
            ..
        } = error
        else {
            panic!("{error}")
        };
        let left = at.saturating_duration_since(Instant::now());
        assert!(
            left > Duration::from_secs(3) && left <= Duration::from_secs(7),
            "{left:?}"
        );
    }
    assert_eq!(
        fake.seen("/manifests/").len(),
        1,
        "the second pull does not touch the network"
    );
    upstream
        .head_manifest(&repository(), &tag(), soon())
        .await
        .expect("heads are free");
    read_blob(&upstream, 0).await.expect("blobs are free");
    assert!(!upstream.is_away(), "a limit is an answer");
    let status = serde_json::to_value(upstreams.status()).expect("serializes");
    let corp = status
        .as_array()
        .expect("a list")
        .iter()
        .find(|one| one["name"] == "corp");
    let endpoint = &corp.expect("listed")["endpoints"][0];
    assert_eq!(endpoint["limited"]["limit"], "pulls");
    assert_eq!(endpoint["allowance"]["remaining"], 0);
    let mut registry = prometheus_client::registry::Registry::default();
    upstreams.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
    for line in [
        r#"millrace_upstream_requests_total{upstream="corp",kind="manifest",outcome="rate_limited"} 1"#,
        r#"millrace_upstream_requests_total{upstream="corp",kind="blob",outcome="success"} 1"#,
        r#"millrace_upstream_received_bytes_total{upstream="corp"} 10"#,
        r#"millrace_upstream_rate_limit_remaining{upstream="corp"} 0"#,
        r#"millrace_upstream_breaker_open{upstream="corp"} 0"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn abuse_stops_everything() {
    let fake = Fake::start(|_| Reply::new(429, "Too Many Requests")).await;
    let upstream = upstream(&fake, "");
    for error in [
        pull(&upstream).await.expect_err("limited"),
        read_blob(&upstream, 0).await.expect_err("limited"),
    ] {
        assert!(
            matches!(
                error,
                FetchError::RateLimited {
                    limit: Limit::Requests,
                    ..
                }
            ),
            "{error}"
        );
    }
    assert_eq!(fake.seen("").len(), 1);
}

/// What another node says that was refused under this credential and as this source.
fn refused_word(credential: &str, source: Option<&str>) -> BudgetWord {
    BudgetWord {
        upstream: "corp".to_owned(),
        credential: credential.to_owned(),
        source: source.map(str::to_owned),
        allowance: None,
        pulls_wait_ms: Some(60_000),
        requests_wait_ms: None,
    }
}

#[tokio::test]
async fn a_limit_of_another_node_counts_for_who_is_counted_with_it() {
    let other = NodeId::new([7; 32]);
    let fake = Fake::start(|_| manifest().header("docker-ratelimit-source", "192.0.2.1")).await;
    let upstreams = upstreams(&fake, "");
    let upstream = upstreams.find("corp").expect("configured");
    let same = [refused_word("anonymous", Some("192.0.2.1"))];
    upstreams.hear_budgets(other, &same);
    pull(&upstream)
        .await
        .expect("it does not know yet as whom it is counted");
    for word in [
        refused_word("anonymous", Some("192.0.2.2")),
        refused_word("anonymous", None),
        refused_word("another", Some("192.0.2.1")),
    ] {
        upstreams.hear_budgets(other, &[word]);
        pull(&upstream).await.expect("that is somebody else's");
    }
    upstreams.hear_budgets(other, &same);
    let error = pull(&upstream).await.expect_err("limited");
    assert!(matches!(error, FetchError::RateLimited { .. }), "{error}");
    assert_eq!(fake.seen("/manifests/").len(), 4);
    assert!(
        upstreams.budget_words().is_empty(),
        "what is heard is not told on"
    );
}

#[tokio::test]
async fn an_account_is_counted_as_one_wherever_it_is_used() {
    let fake = Fake::start(|_| manifest()).await;
    let upstreams = upstreams(&fake, "username: ci, password: x");
    let upstream = upstreams.find("corp").expect("configured");
    let word = refused_word(upstream.credential().as_str(), None);
    upstreams.hear_budgets(NodeId::new([7; 32]), &[word]);
    let error = pull(&upstream).await.expect_err("limited");
    assert!(matches!(error, FetchError::RateLimited { .. }), "{error}");
    assert_eq!(fake.seen("/v2/").len(), 0);
}

#[tokio::test]
async fn what_a_registry_tells_this_node_is_told_to_others_without_secrets() {
    let fake = Fake::start(|_| {
        Reply::new(429, "")
            .header("retry-after", "7")
            .header("ratelimit-remaining", "0;w=21600")
            .header("docker-ratelimit-source", "192.0.2.1")
    })
    .await;
    let upstreams = upstreams(&fake, "username: ci, password: hunter2");
    let upstream = upstreams.find("corp").expect("configured");
    assert!(upstreams.budget_words().is_empty());
    pull(&upstream).await.expect_err("limited");
    assert_eq!(upstreams.budget_refusals(), 1);
    let words = upstreams.budget_words();
    let [word] = &words[..] else {
        panic!("{words:?}")
    };
    assert_eq!(word.upstream, "corp");
    assert_eq!(word.credential, upstream.credential().as_str());
    assert_eq!(word.source.as_deref(), Some("192.0.2.1"));
    assert_eq!(word.allowance.and_then(|told| told.remaining), Some(0));
    assert!(
        word.pulls_wait_ms
            .is_some_and(|wait| (1..=7_000).contains(&wait))
    );
    assert!(!format!("{words:?}").contains("hunter2"));
}

#[tokio::test]
async fn no_more_requests_run_than_are_allowed() {
    let fake = Fake::start(|_| Reply::new(200, "0123456789")).await;
    let upstream = upstream(&fake, "max_requests: 1");
    let body = upstream
        .open_blob(&repository(), &digest(), 0, soon())
        .await
        .expect("a blob");
    let deadline = Instant::now() + Duration::from_millis(50);
    let error = upstream
        .fetch_manifest(&repository(), &tag(), deadline)
        .await
        .expect_err("full");
    assert!(
        matches!(error, FetchError::Busy { limit: 1, .. }),
        "{error}"
    );
    assert_eq!(fake.seen("").len(), 1);
    drop(body);
    pull(&upstream).await.expect("room again");
}

#[tokio::test]
async fn blobs_leave_room_for_the_manifest_by_which_another_pull_begins() {
    let fake = Fake::start(|_| Reply::new(200, "0123456789")).await;
    let upstream = upstream(&fake, "max_requests: 8");
    let mut bodies = Vec::new();
    for _ in 0..7 {
        let body = upstream
            .open_blob(&repository(), &digest(), 0, soon())
            .await;
        bodies.push(body.expect("a blob"));
    }
    let deadline = Instant::now() + Duration::from_millis(50);
    let error = upstream
        .open_blob(&repository(), &digest(), 0, deadline)
        .await
        .expect_err("blobs have what they may have");
    assert!(matches!(error, FetchError::Busy { .. }), "{error}");
    pull(&upstream).await.expect("room for a manifest");
}
