//! Upstreams over real sockets, against a fake registry that does what healthy ones do not.
//!
//! The pure machines (breaker, budget, challenges, realm rule, addresses) are tested beside their
//! code; here it is shown that the requests which leave the node follow them.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of pulls")]
mod fake;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use fake::{Fake, Reply, Seen};
use millrace::task::Tasks;
use millrace::upstream::error::{Defect, Outage};
use millrace::upstream::{Config, FetchError, Limit, Upstream, Upstreams};
use millrace_protocol::membership::BudgetWord;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest, MediaType, Reference, RepositoryName};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

const MANIFEST: &str = r#"{"schemaVersion":2}"#;

fn install_provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        rustls::crypto::ring::default_provider()
            .install_default()
            .expect("the first provider");
    });
}

/// Sets up the upstream `corp` at `url`, with further keys in YAML.
fn upstreams_at(url: &str, keys: &str) -> Upstreams {
    install_provider();
    let entries = serde_saphyr::from_str(&format!("corp: {{url: '{url}', {keys}}}"));
    let config = Config::with_builtins(entries.expect("valid YAML"), None);
    Upstreams::new(&config.expect("valid configuration"), &Tasks::default()).expect("sets up")
}

fn upstreams(fake: &Fake, keys: &str) -> Upstreams {
    upstreams_at(&fake.url(), keys)
}

fn upstream(fake: &Fake, keys: &str) -> Upstream {
    upstreams(fake, keys).find("corp").expect("configured")
}

fn repository() -> RepositoryName {
    "team/app".parse().expect("a name")
}

fn tag() -> Reference {
    "v1".parse().expect("a tag")
}

fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, b"0123456789")
}

/// A deadline that no passing test reaches.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn manifest() -> Reply {
    Reply::new(200, MANIFEST).header("content-type", MediaType::OCI_MANIFEST)
}

/// Asks for a token where a request has none.
fn challenge(seen: &Seen, realm_host: &str) -> Reply {
    let port = seen.header("host").rsplit(':').next().expect("a port");
    let realm = format!(r#"Bearer realm="http://{realm_host}:{port}/token",service="corp""#);
    Reply::new(401, "").header("www-authenticate", realm)
}

async fn pull(upstream: &Upstream) -> Result<String, FetchError> {
    let manifest = upstream
        .fetch_manifest(&repository(), &tag(), soon())
        .await?;
    Ok(String::from_utf8(manifest.bytes.to_vec()).expect("text"))
}

/// Reads a blob from `offset` to its end; returns where it began and its bytes.
async fn read_blob(upstream: &Upstream, offset: u64) -> Result<(u64, String), FetchError> {
    let mut body = upstream
        .open_blob(&repository(), &digest(), offset, soon())
        .await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next_chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok((body.offset(), String::from_utf8(bytes).expect("text")))
}

#[tokio::test]
async fn a_manifest_comes_as_it_was_sent_and_is_asked_for_with_every_type() {
    let stated = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes());
    let fake =
        Fake::start(move |_| manifest().header("docker-content-digest", stated.to_string())).await;
    let upstream = upstream(&fake, "");
    let found = upstream
        .fetch_manifest(&repository(), &tag(), soon())
        .await
        .expect("a manifest");
    assert_eq!(found.bytes, MANIFEST);
    assert_eq!(found.media_type.as_str(), MediaType::OCI_MANIFEST);
    assert_eq!(found.stated_digest, Some(stated));
    let head = upstream
        .head_manifest(&repository(), &tag(), soon())
        .await
        .expect("a head");
    assert_eq!(
        (head.digest, head.size),
        (Some(stated), Some(MANIFEST.len() as u64))
    );
    let seen = fake.seen("/v2/team/app/manifests/v1");
    assert_eq!([&*seen[0].method, &*seen[1].method], ["GET", "HEAD"]);
    for seen in seen {
        assert!(
            MediaType::MANIFESTS
                .iter()
                .all(|kind| seen.header("accept").contains(kind))
        );
        assert_eq!(seen.header("accept-encoding"), "identity");
    }
}

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

/// A content host, and a registry that redirects blobs to it under `host` after a token dance.
async fn redirecting(host: &'static str) -> (Fake, Fake) {
    let content =
        Fake::start(|_| Reply::new(206, "56789").header("content-range", "bytes 5-9/10")).await;
    let port = content.port();
    let registry = Fake::start(move |seen| match seen.header("authorization") {
        _ if seen.target.starts_with("/token") => Reply::new(200, r#"{"token":"t"}"#),
        "Bearer t" => Reply::new(307, "").header(
            "location",
            format!("http://{host}:{port}/signed?key=hunter2"),
        ),
        _ => challenge(seen, "127.0.0.1"),
    })
    .await;
    (registry, content)
}

#[tokio::test]
async fn a_redirect_to_another_host_keeps_the_range_and_drops_the_authorization() {
    let (registry, content) = redirecting("localhost").await;
    let keys = format!(
        "username: u, password: p, redirect_hosts: ['localhost:{}']",
        content.port()
    );
    let upstream = upstream(&registry, &keys);
    assert_eq!(
        read_blob(&upstream, 5).await.expect("a blob"),
        (5, "56789".to_owned())
    );
    read_blob(&upstream, 5).await.expect("a blob");
    let seen = content.seen("/signed?key=hunter2");
    assert_eq!(seen.len(), 2, "redirects are not remembered");
    for seen in seen {
        assert_eq!(seen.header("authorization"), "");
        assert_eq!(seen.header("range"), "bytes=5-");
    }
    assert_eq!(registry.seen("/blobs/").len(), 3);
}

#[tokio::test]
async fn a_redirect_to_a_private_address_is_refused() {
    for host in ["localhost", "127.0.0.1", "2130706433", "[::1]"] {
        let (registry, content) = redirecting(host).await;
        let upstreams = upstreams(&registry, "");
        let upstream = upstreams.find("corp").expect("configured");
        let error = read_blob(&upstream, 5).await.expect_err("refused");
        let private = matches!(
            error,
            FetchError::BadAnswer {
                defect: Defect::PrivateAddress(_),
                ..
            }
        );
        assert!(private, "{host}: {error}");
        assert!(content.seen("").is_empty(), "{host}");
        let status = serde_json::to_string(&upstreams.status()).expect("serializes");
        assert!(status.contains("private address"), "{status}");
        assert!(!status.contains("hunter2") && !error.to_string().contains("hunter2"));
    }
}

#[tokio::test]
async fn redirects_end() {
    let fake =
        Fake::start(|seen| Reply::new(302, "").header("location", seen.target.clone())).await;
    let error = pull(&upstream(&fake, "")).await.expect_err("a loop");
    assert!(
        matches!(
            error,
            FetchError::BadAnswer {
                defect: Defect::TooManyRedirects,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fake.seen("").len(), 6);
}

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
            "username: u, password: p, timeouts: {{response: 200ms}}, fallback: ['{}', '{}']",
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
    assert!(
        matches!(
            error,
            FetchError::Unavailable {
                reason: Outage::Connect(_),
                ..
            }
        ),
        "{error}"
    );
    assert!(upstream.is_away());
}

/// A certificate authority's PEM file, and what serves TLS with a certificate of it for `localhost`.
fn authority(folder: &std::path::Path) -> (std::path::PathBuf, TlsAcceptor) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let path = folder.join("ca.pem");
    std::fs::write(&path, params.self_signed(&key).expect("signs").pem()).expect("writes");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let names = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = names.signed_by(&key, &issuer).expect("signs");
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a server configuration");
    (path, Arc::new(config).into())
}

#[tokio::test]
async fn an_upstream_with_its_own_authority_is_trusted_by_its_ca_file_only() {
    install_provider();
    let folder = tempfile::tempdir().expect("a folder");
    let (ca, acceptor) = authority(folder.path());
    let fake = Fake::start_tls(acceptor, |seen| match seen.target.contains("/manifests/") {
        true => manifest(),
        false => Reply::new(307, "").header("location", "http://localhost/blob"),
    })
    .await;
    let url = format!("https://localhost:{}", fake.port());
    let corp = |keys: &str| upstreams_at(&url, keys).find("corp").expect("configured");
    let error = pull(&corp("")).await.expect_err("an unknown authority");
    assert!(
        matches!(
            error,
            FetchError::Unavailable {
                reason: Outage::Connect(_),
                ..
            }
        ),
        "{error}"
    );
    let trusting = corp(&format!("ca: '{}'", ca.display()));
    assert_eq!(pull(&trusting).await.expect("a manifest"), MANIFEST);
    let error = read_blob(&trusting, 0).await.expect_err("a downgrade");
    assert!(
        matches!(
            error,
            FetchError::BadAnswer {
                defect: Defect::Downgrade(_),
                ..
            }
        ),
        "{error}"
    );
    let entries = format!("corp: {{url: '{url}', ca: /nonexistent}}");
    let config = Config::with_builtins(serde_saphyr::from_str(&entries).expect("YAML"), None);
    let error = Upstreams::new(&config.expect("valid"), &Tasks::default()).expect_err("no file");
    assert_eq!(
        error.to_string(),
        "upstreams.corp.ca: cannot read /nonexistent"
    );
}

/// Set in the process that this test starts; proxies are read from the environment, which a
/// process must not change under its own threads.
const PROXIED: &str = "MILLRACE_TEST_PROXIED";

#[tokio::test]
async fn proxies_of_the_environment_are_used() {
    if std::env::var_os(PROXIED).is_some() {
        let upstream = upstreams_at("http://registry.invalid", "")
            .find("corp")
            .expect("configured");
        assert_eq!(pull(&upstream).await.expect("through the proxy"), MANIFEST);
        assert_eq!(
            read_blob(&upstream, 0).await.expect("redirected").1,
            "0123456789"
        );
        let error = upstream
            .list_tags(&repository(), "", soon())
            .await
            .expect_err("private");
        assert!(matches!(
            error,
            FetchError::BadAnswer {
                defect: Defect::PrivateAddress(_),
                ..
            }
        ));
        return;
    }
    let proxy = Fake::start(|seen| match seen.target.as_str() {
        "http://cdn.invalid/blob" => Reply::new(200, "0123456789"),
        target if target.contains("/manifests/") => manifest(),
        target if target.contains("/blobs/") => {
            Reply::new(307, "").header("location", "http://cdn.invalid/blob")
        }
        _ => Reply::new(307, "").header("location", "http://10.0.0.1/tags"),
    })
    .await;
    let status = tokio::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "proxies_of_the_environment_are_used"])
        .env("HTTP_PROXY", proxy.url())
        .env("http_proxy", proxy.url())
        .env("NO_PROXY", "")
        .env("no_proxy", "")
        .env(PROXIED, "1")
        .status()
        .await
        .expect("starts");
    assert!(status.success());
    assert_eq!(proxy.seen("http://registry.invalid/v2/team/app/").len(), 3);
    assert!(proxy.seen("10.0.0.1").is_empty());
}

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
    let error = pull(&upstream).await.expect_err("limited");
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
    let error = read_blob(&upstream, 0).await.expect_err("limited");
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
    assert_eq!(fake.seen("").len(), 1);
}

#[tokio::test]
async fn a_range_may_be_answered_by_the_whole() {
    let fake = Fake::start(|_| Reply::new(200, "0123456789")).await;
    let upstream = upstream(&fake, "");
    assert_eq!(
        read_blob(&upstream, 5).await.expect("a blob"),
        (0, "0123456789".to_owned())
    );
    let size = upstream
        .probe_blob(&repository(), &digest(), soon())
        .await
        .expect("it exists");
    assert_eq!(size, Some(10));
    let seen = fake.seen("/blobs/");
    assert_eq!(
        (seen[0].header("range"), seen[1].header("range")),
        ("bytes=5-", "bytes=0-0")
    );
    assert_eq!(
        seen[1].method, "GET",
        "some registries answer HEAD of a blob with 401"
    );
}

#[tokio::test]
async fn a_range_beyond_the_end_is_asked_again_as_the_whole() {
    let fake = Fake::start(|seen| match seen.header("range") {
        "" => Reply::new(200, "0123456789"),
        _ => Reply::new(416, "").header("content-range", "bytes */10"),
    })
    .await;
    let upstream = upstream(&fake, "");
    assert_eq!(
        read_blob(&upstream, 99).await.expect("a blob"),
        (0, "0123456789".to_owned())
    );
    let size = upstream
        .probe_blob(&repository(), &digest(), soon())
        .await
        .expect("it exists");
    assert_eq!(size, Some(10));
}

#[tokio::test]
async fn bodies_that_lie_about_their_length_never_end_quietly() {
    let short = Reply::new(200, "01234").stating(Some(10));
    let short_part = Reply::new(206, "567")
        .header("content-range", "bytes 5-9/10")
        .stating(None);
    let long_part = Reply::new(206, "56789abc")
        .header("content-range", "bytes 5-9/10")
        .stating(None);
    let wrong_part = Reply::new(206, "789").header("content-range", "bytes 7-9/10");
    for (reply, lies) in [
        (short, false),
        (short_part, false),
        (long_part, true),
        (wrong_part, true),
    ] {
        let answer = reply.clone();
        let fake = Fake::start(move |_| answer.clone()).await;
        let error = read_blob(&upstream(&fake, ""), 5).await.expect_err("a lie");
        let interrupted = matches!(
            error,
            FetchError::Unavailable {
                reason: Outage::Interrupted,
                ..
            }
        );
        let bad = matches!(error, FetchError::BadAnswer { .. });
        assert_eq!((interrupted, bad), (!lies, lies), "{reply:?}: {error}");
    }
}

#[tokio::test]
async fn a_body_without_a_length_ends_with_its_connection() {
    let fake = Fake::start(|_| Reply::new(200, "0123456789").stating(None)).await;
    let upstream = upstream(&fake, "");
    let body = upstream
        .open_blob(&repository(), &digest(), 0, soon())
        .await
        .expect("a blob");
    assert_eq!(body.size(), None);
    assert_eq!(
        read_blob(&upstream, 0).await.expect("a blob"),
        (0, "0123456789".to_owned())
    );
}

#[tokio::test]
async fn compressed_content_is_refused() {
    let fake =
        Fake::start(|_| Reply::new(200, "\u{1f}\u{8b}").header("content-encoding", "gzip")).await;
    let upstream = upstream(&fake, "");
    for error in [
        pull(&upstream).await.expect_err("compressed"),
        read_blob(&upstream, 0).await.expect_err("compressed"),
    ] {
        assert!(
            matches!(
                error,
                FetchError::BadAnswer {
                    defect: Defect::Encoded(_),
                    ..
                }
            ),
            "{error}"
        );
    }
    assert_eq!(fake.seen("").len(), 2, "a lie is not worth another try");
}

#[tokio::test]
async fn a_manifest_that_is_too_large_is_refused() {
    let fake = Fake::start(|_| Reply::new(200, vec![b' '; (8 << 20) + 1]).stating(None)).await;
    let error = pull(&upstream(&fake, "")).await.expect_err("too large");
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_head_need_not_say_anything() {
    for reply in [
        Reply::new(200, ""),
        Reply::new(405, ""),
        Reply::new(501, ""),
    ] {
        let answer = reply.clone();
        let fake = Fake::start(move |_| answer.clone()).await;
        let head = upstream(&fake, "")
            .head_manifest(&repository(), &tag(), soon())
            .await;
        assert_eq!(head.map(|head| head.digest).ok(), Some(None), "{reply:?}");
    }
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

#[tokio::test]
async fn tags_come_page_by_page() {
    let fake = Fake::start(|seen| match seen.target.as_str() {
        "/v2/team/app/tags/list?n=2" => Reply::new(200, r#"{"name":"team/app","tags":["a","b"]}"#)
            .header("link", r#"</v2/team/app/tags/list?n=2&last=b>; rel="next""#),
        "/v2/team/app/tags/list?n=2&last=b" => {
            Reply::new(200, r#"{"name":"team/app","tags":null}"#)
        }
        _ => Reply::new(200, "<html>"),
    })
    .await;
    let upstream = upstream(&fake, "");
    let page = upstream
        .list_tags(&repository(), "n=2", soon())
        .await
        .expect("a page");
    assert_eq!(page.tags, ["a", "b"]);
    let next = page.next_query.expect("another page");
    let page = upstream
        .list_tags(&repository(), &next, soon())
        .await
        .expect("a page");
    assert_eq!((page.tags.len(), page.next_query), (0, None));
    let error = upstream
        .list_tags(&repository(), "", soon())
        .await
        .expect_err("no JSON");
    assert!(
        matches!(
            error,
            FetchError::BadAnswer {
                defect: Defect::Malformed(_),
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn referrers_are_never_empty_because_of_an_error() {
    let index = r#"{"schemaVersion":2,"manifests":[{"x":1}]}"#;
    // What the API and the tag schema answer, and what comes of it.
    let cases = [
        ((200, index), (500, ""), Ok(index)),
        ((404, ""), (200, index), Ok(index)),
        ((404, ""), (404, ""), Ok("\"manifests\":[]")),
        ((404, ""), (500, ""), Err(())),
        ((500, ""), (404, ""), Err(())),
        ((403, ""), (404, ""), Err(())),
        ((200, "{}"), (404, ""), Err(())),
        ((200, "<html>"), (404, ""), Err(())),
    ];
    for (api, tag, expected) in cases {
        let fake = Fake::start(move |seen| {
            let (status, body) = if seen.target.contains("/referrers/") {
                api
            } else {
                tag
            };
            Reply::new(status, body)
        })
        .await;
        let found = upstream(&fake, "")
            .referrers(&repository(), &digest(), "", soon())
            .await;
        let found = found.map(|found| String::from_utf8(found.body.to_vec()).expect("text"));
        match expected {
            Ok(part) => assert!(found.expect("referrers").contains(part), "{api:?} {tag:?}"),
            Err(()) => assert!(found.is_err(), "{api:?} {tag:?} {found:?}"),
        }
        if api.0 == 404 {
            let tag = format!(
                "/v2/team/app/manifests/{}",
                digest().to_string().replace(':', "-")
            );
            assert!(!fake.seen(&tag).is_empty());
        }
    }
}

#[tokio::test]
async fn names_and_aliases_find_one_upstream() {
    let fake = Fake::start(|_| manifest()).await;
    let upstreams = upstreams(&fake, "aliases: [intern]");
    for name in ["corp", "intern", &fake.url()["http://".len()..]] {
        assert_eq!(
            upstreams.find(name).expect("known").name(),
            "corp",
            "{name}"
        );
    }
    assert!(upstreams.find("corp.example").is_none());
    let hub = upstreams.default_upstream();
    assert_eq!(hub.name(), "docker.io");
    let canonical =
        |upstream: &Upstream, name: &str| upstream.canonical(name.parse().expect("a name"));
    assert_eq!(canonical(&hub, "alpine").as_str(), "library/alpine");
    assert_eq!(canonical(&hub, "team/app").as_str(), "team/app");
    assert_eq!(
        canonical(&upstreams.find("corp").expect("known"), "alpine").as_str(),
        "alpine"
    );
    assert_eq!(hub.credential().to_string(), "anonymous");
}
