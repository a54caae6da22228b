//! Upstreams over real sockets, against a fake registry that does what healthy ones do not.
//!
//! The pure machines (breaker, budget, challenges, realm rule, addresses) are tested beside their
//! code; here it is shown that the requests which leave the node follow them. Each file below has
//! what belongs to one question; here is what they share.

#[path = "upstream/answers.rs"]
mod answers;
#[path = "upstream/authorization.rs"]
mod authorization;
#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of pulls")]
mod fake;
#[path = "upstream/limits.rs"]
mod limits;
#[path = "upstream/outage.rs"]
mod outage;
#[path = "upstream/transport.rs"]
mod transport;

use std::sync::Once;
use std::time::Duration;

use fake::{Fake, Reply, Seen};
use millrace::task::Tasks;
use millrace::upstream::error::Outage;
use millrace::upstream::{Config, FetchError, Upstream, Upstreams};
use millrace_protocol::oci::{Algorithm, Digest, MediaType, Reference, RepositoryName};
use tokio::time::Instant;

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

/// Demands that no connection could be made.
fn assert_unreachable(error: &FetchError) {
    let FetchError::Unavailable { reason, .. } = error else {
        panic!("{error}");
    };
    assert!(matches!(reason, Outage::Connect(_)), "{error}");
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
