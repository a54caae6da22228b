//! How a request gets to where the answer is: redirects, authorities of one's own, proxies.

use std::sync::Arc;

use millrace::task::Tasks;
use millrace::upstream::error::Defect;
use millrace::upstream::{Config, FetchError, Upstreams};
use tokio_rustls::TlsAcceptor;

use super::fake::{Fake, Reply};
use super::{
    MANIFEST, assert_unreachable, challenge, install_provider, manifest, pull, read_blob,
    repository, soon, upstream, upstreams, upstreams_at,
};

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
    assert_unreachable(&error);
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
        .args(["--exact", "transport::proxies_of_the_environment_are_used"])
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
