//! Challenges, tokens and logins: what a request carries, who is asked for a token, and who gets to
//! see the credentials.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace::upstream::FetchError;
use millrace::upstream::error::Outage;

use super::fake::{Fake, Reply};
use super::{MANIFEST, challenge, manifest, pull, upstream};

#[tokio::test]
async fn one_token_serves_all_who_ask_at_once_and_after() {
    let fake = Fake::start(|seen| match seen.header("authorization") {
        _ if seen.target.starts_with("/token") => {
            Reply::new(200, r#"{"token":"t1","expires_in":300}"#)
        }
        "Bearer t1" => manifest(),
        _ => challenge(seen, "127.0.0.1"),
    })
    .await;
    let upstream = upstream(&fake, "");
    let all = futures_util::future::join_all((0..8).map(|_| pull(&upstream))).await;
    assert!(
        all.iter()
            .all(|result| result.as_deref().is_ok_and(|text| text == MANIFEST)),
        "{all:?}"
    );
    let before = fake.seen("/manifests/").len();
    pull(&upstream).await.expect("a manifest");
    assert_eq!(
        fake.seen("/manifests/").len(),
        before + 1,
        "the challenge is remembered"
    );
    let tokens = fake.seen("/token");
    assert_eq!(tokens.len(), 1);
    assert!(
        tokens[0].target.contains("service=corp"),
        "{}",
        tokens[0].target
    );
    assert!(
        tokens[0]
            .target
            .contains("scope=repository%3Ateam%2Fapp%3Apull"),
        "{}",
        tokens[0].target
    );
    assert_eq!(tokens[0].header("authorization"), "");
}

#[tokio::test]
async fn a_token_is_not_used_beyond_its_life() {
    let issued = Arc::new(AtomicUsize::new(0));
    let count = issued.clone();
    let fake = Fake::start(move |seen| {
        if seen.target.starts_with("/token") {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::new(
                200,
                format!(r#"{{"access_token":"t{number}","expires_in":0}}"#),
            );
        }
        let newest = format!("Bearer t{}", count.load(Ordering::SeqCst));
        if seen.header("authorization") == newest {
            manifest()
        } else {
            challenge(seen, "127.0.0.1")
        }
    })
    .await;
    let upstream = upstream(&fake, "");
    for _ in 0..3 {
        pull(&upstream).await.expect("a manifest");
    }
    assert_eq!(issued.load(Ordering::SeqCst), 3);
    assert_eq!(
        fake.seen("/manifests/").len(),
        4,
        "only the first request had to be refused"
    );
}

#[tokio::test]
async fn a_cached_token_that_is_refused_is_replaced_once() {
    for (refusal, replaced) in [(401, true), (403, true), (404, false)] {
        let valid = Arc::new(AtomicUsize::new(1));
        let (count, current) = (AtomicUsize::new(0), valid.clone());
        let fake = Fake::start(move |seen| {
            if seen.target.starts_with("/token") {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                return Reply::new(200, format!(r#"{{"token":"t{number}","expires_in":300}}"#));
            }
            let newest = format!("Bearer t{}", current.load(Ordering::SeqCst));
            match seen.header("authorization") {
                "" => challenge(seen, "127.0.0.1"),
                sent if sent == newest => manifest(),
                _ if refusal == 401 => challenge(seen, "127.0.0.1"),
                _ => Reply::new(
                    refusal,
                    "DENIED: Your Authorization Token has expired. Reauthenticate",
                ),
            }
        })
        .await;
        let upstream = upstream(&fake, "");
        pull(&upstream).await.expect("a manifest");
        valid.store(2, Ordering::SeqCst);
        assert_eq!(pull(&upstream).await.is_ok(), replaced, "{refusal}");
        assert_eq!(
            fake.seen("/token").len(),
            1 + usize::from(replaced),
            "{refusal}"
        );
    }
}

#[tokio::test]
async fn a_fresh_token_that_is_refused_is_a_denial_and_not_a_loop() {
    let fake = Fake::start(|seen| {
        if seen.target.starts_with("/token") {
            Reply::new(200, r#"{"token":"t"}"#)
        } else {
            challenge(seen, "127.0.0.1")
        }
    })
    .await;
    let error = pull(&upstream(&fake, "")).await.expect_err("refused");
    assert!(
        matches!(error, FetchError::Denied { status: 401, .. }),
        "{error}"
    );
    assert!(error.is_denial());
    assert_eq!(
        (fake.seen("/token").len(), fake.seen("/manifests/").len()),
        (1, 2)
    );
}

#[tokio::test]
async fn a_token_service_that_says_no_is_a_denial() {
    let fake = Fake::start(|seen| {
        if seen.target.starts_with("/token") {
            Reply::new(403, "")
        } else {
            challenge(seen, "127.0.0.1")
        }
    })
    .await;
    let upstream = upstream(&fake, "");
    let error = pull(&upstream).await.expect_err("refused");
    assert!(
        matches!(error, FetchError::Denied { status: 403, .. }),
        "{error}"
    );
    assert!(!upstream.is_away(), "a refusal is an answer");
}

#[tokio::test]
async fn credentials_go_to_a_realm_on_the_own_host_only() {
    for (realm_host, login) in [("127.0.0.1", "Basic dTpw"), ("localhost", "")] {
        let fake = Fake::start(move |seen| match seen.header("authorization") {
            _ if seen.target.starts_with("/token") => Reply::new(200, r#"{"token":"t"}"#),
            "Bearer t" => manifest(),
            _ => challenge(seen, realm_host),
        })
        .await;
        // The fallback makes localhost a configured host, which may be contacted but not trusted.
        let keys = format!(
            "username: u, password: p, fallback: ['http://localhost:{}']",
            fake.port()
        );
        pull(&upstream(&fake, &keys)).await.expect("a manifest");
        assert_eq!(
            fake.seen("/token")[0].header("authorization"),
            login,
            "{realm_host}"
        );
        assert_eq!(
            fake.seen("/manifests/")[0].header("authorization"),
            "",
            "not before a challenge"
        );
    }
}

#[tokio::test]
async fn a_realm_at_an_unconfigured_private_address_is_not_contacted() {
    let fake = Fake::start(|seen| challenge(seen, "localhost")).await;
    let error = pull(&upstream(&fake, "username: u, password: p"))
        .await
        .expect_err("refused");
    assert!(
        matches!(
            error,
            FetchError::Unavailable {
                reason: Outage::TokenService(_),
                ..
            }
        ),
        "{error}"
    );
    assert!(fake.seen("/token").is_empty());
}

#[tokio::test]
async fn basic_credentials_are_sent_when_they_are_asked_for() {
    let fake = Fake::start(|seen| match seen.header("authorization") {
        "Basic dTpw" => manifest(),
        _ => Reply::new(401, "").header("www-authenticate", r#"Basic realm="corp""#),
    })
    .await;
    pull(&upstream(&fake, "username: u, password: p"))
        .await
        .expect("a manifest");
    let error = pull(&upstream(&fake, "username: u, password: wrong"))
        .await
        .expect_err("refused");
    assert!(
        matches!(error, FetchError::Denied { status: 401, .. }),
        "{error}"
    );
    let error = pull(&upstream(&fake, "")).await.expect_err("refused");
    assert!(
        matches!(error, FetchError::Denied { status: 401, .. }),
        "{error}"
    );
}
