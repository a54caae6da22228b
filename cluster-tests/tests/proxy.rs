//! Upstreams behind the proxy that the environment names: what goes through it, what does not, and
//! what is said when it is in the way.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use millrace_cluster_tests::corp::{REPOSITORY, node_before, repository};
use millrace_cluster_tests::fake::{Bearer, Canned, Fake, Guard, Scene, Then, When, noise};
use millrace_cluster_tests::http::{Answer, Request};
use millrace_cluster_tests::image::Image;
use millrace_cluster_tests::node::{Node, NodeBuilder};
use millrace_cluster_tests::pki::Pki;
use millrace_cluster_tests::proxy::Proxy;
use millrace_cluster_tests::upstream::Upstream;
use serde_json::json;
use tempfile::TempDir;

/// Who may use the proxy that asks.
const USER: &str = "robot";

/// The password, and the same as it may stand in a URL.
const PASSWORD: &str = "hunter2-of-the-proxy";
const PASSWORD_IN_URL: &str = "hunter2%2Dof-the-proxy";

/// What is said of a proxy that does not let through.
const REFUSED: &str = "it refuses the connection";

/// A registry that speaks TLS by an authority of its own, with an image.
struct Secure {
    pki: Pki,
    upstream: Upstream,
    image: Image,
}

impl Secure {
    async fn start() -> Result<Self> {
        let pki = Pki::create().await?;
        let upstream = Upstream::start_tls(&pki.sign("registry", "IP:127.0.0.1").await?).await?;
        let image = Image::runnable("proxy")?;
        upstream.push(&image, REPOSITORY, "1").await?;
        Ok(Self {
            pki,
            upstream,
            image,
        })
    }

    /// A node in front of it, with these variables.
    async fn node(&self, environment: &[(&str, &str)]) -> Result<Node> {
        let ca = self.pki.ca().display().to_string();
        let node = node_before(&self.upstream).set("upstreams/corp/ca", ca);
        with(node, environment).start().await
    }

    fn address(&self) -> SocketAddr {
        self.upstream.address()
    }
}

fn with(node: NodeBuilder, environment: &[(&str, &str)]) -> NodeBuilder {
    let node = node.set("log/level", "debug");
    environment
        .iter()
        .fold(node, |node, (name, value)| node.environment(name, value))
}

/// Asks for a manifest that cannot be had, and demands that client, log and status are told by which
/// proxy, and why.
async fn assert_named(node: &Node, proxy: &str, why: &str) -> Result<Answer> {
    let answer = repository(node).get("manifests/1").await?;
    ensure!(answer.status() == 503, "{answer:?}");
    let told = String::from_utf8_lossy(&answer.body).into_owned();
    let status = node.status().await?.to_string();
    let words = format!("cannot connect through the proxy {proxy}: {why}");
    for (place, text) in [("answer", told), ("log", node.log()), ("status", status)] {
        ensure!(
            text.contains(&words),
            "the {place} does not say {words:?}:\n{text}"
        );
    }
    Ok(answer)
}

#[tokio::test]
async fn an_upstream_in_the_clear_is_asked_by_the_proxy() -> Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::runnable("proxy")?;
    upstream.push(&image, REPOSITORY, "1").await?;
    let proxy = Proxy::start().await?;
    let proxied = [("HTTP_PROXY", &*proxy.url())];
    let node = with(node_before(&upstream), &proxied).start().await?;
    repository(&node).pull(&image, "1").await?;
    let layer = &image.platform().layers[0].blob.digest;
    let seen = proxy.requests();
    ensure!(
        seen.iter().any(|line| line.contains(&layer.hex())),
        "the proxy saw {seen:#?}"
    );
    let except = [proxied[0], ("NO_PROXY", "127.0.0.1")];
    let direct = with(node_before(&upstream), &except).start().await?;
    repository(&direct).pull(&image, "1").await?;
    ensure!(proxy.requests().len() == seen.len(), "NO_PROXY was ignored");
    Ok(())
}

#[tokio::test]
async fn an_https_upstream_is_pulled_through_a_tunnel_of_the_proxy() -> Result<()> {
    let secure = Secure::start().await?;
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        let proxy = Proxy::start().await?;
        let node = secure.node(&[(variable, &proxy.url())]).await?;
        repository(&node).pull(&secure.image, "1").await?;
        let asked = proxy.requests();
        let tunnels = proxy.tunnels(secure.address());
        ensure!(
            tunnels > 0 && tunnels == asked.len(),
            "{variable}: {asked:#?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_no_proxy_names_and_other_schemes_are_asked_directly() -> Result<()> {
    let secure = Secure::start().await?;
    let proxy = Proxy::start().await?;
    let url = proxy.url();
    for (variable, value) in [
        ("NO_PROXY", "127.0.0.1"),
        ("no_proxy", "registry.example, 127.0.0.1"),
        ("NO_PROXY", "10.0.0.0/8,127.0.0.0/8"),
        ("NO_PROXY", "0.0.0.0/0"),
        ("HTTP_PROXY", &*url),
    ] {
        let mut environment = vec![(variable, value)];
        if variable != "HTTP_PROXY" {
            environment.push(("HTTPS_PROXY", &*url));
        }
        let node = secure.node(&environment).await?;
        repository(&node).pull(&secure.image, "1").await?;
        let asked = proxy.requests();
        ensure!(asked.is_empty(), "{variable}={value}: {asked:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() -> Result<()> {
    let secure = Secure::start().await?;
    // Tunnels to the port of https alone, as many proxies have it.
    let proxy = Proxy::with("ConnectPort 443\n").await?;
    let node = secure.node(&[("HTTPS_PROXY", &proxy.url())]).await?;
    assert_named(&node, &proxy.url(), REFUSED).await?;
    ensure!(
        proxy.tunnels(secure.address()) > 0,
        "{:#?}",
        proxy.requests()
    );
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_is_down_is_named_and_is_used_again_when_it_is_back() -> Result<()> {
    let secure = Secure::start().await?;
    let mut proxy = Proxy::start().await?;
    let node = secure.node(&[("HTTPS_PROXY", &proxy.url())]).await?;
    proxy.stop();
    assert_named(&node, &proxy.url(), "Connection refused").await?;
    proxy.restart().await?;
    repository(&node).pull(&secure.image, "1").await
}

/// Demands that a proxy's password is nowhere to be seen, in whatever spelling.
async fn assert_secret(node: &Node, answers: &[Answer]) -> Result<()> {
    let encoded = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let mut texts = vec![("log", node.log())];
    for page in ["/metrics", "/status"] {
        let answer = Request::get(page).send(node.debug_address()).await?;
        texts.push((page, String::from_utf8_lossy(&answer.body).into_owned()));
    }
    texts.extend(answers.iter().map(|answer| {
        (
            "answer",
            format!("{answer:?} {}", String::from_utf8_lossy(&answer.body)),
        )
    }));
    for (place, text) in texts {
        for secret in ["hunter2", &encoded, PASSWORD_IN_URL] {
            let found = text.lines().find(|line| line.contains(secret));
            ensure!(found.is_none(), "{secret} in {place}: {found:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_password_of_a_proxy_is_sent_to_it_and_shown_nowhere() -> Result<()> {
    let secure = Secure::start().await?;
    let proxy = Proxy::with(&format!("BasicAuth {USER} {PASSWORD}\n")).await?;
    let right = proxy.url_with_login(USER, PASSWORD_IN_URL);
    let node = secure.node(&[("HTTPS_PROXY", &right)]).await?;
    repository(&node).pull(&secure.image, "1").await?;
    assert_secret(&node, &[]).await?;

    // A password that it does not take, which it says by 401.
    let proxy = Proxy::with(&format!("BasicAuth {USER} another\n")).await?;
    let wrong = proxy.url_with_login(USER, PASSWORD_IN_URL);
    let node = secure.node(&[("HTTPS_PROXY", &wrong)]).await?;
    let answer = assert_named(&node, &proxy.url(), REFUSED).await?;
    assert_secret(&node, &[answer]).await?;

    // What is not encoded is taken for part of the address. That is said, and nothing of it repeated.
    for part in ["@", "/"] {
        let broken = format!("http://{USER}:another{part}{PASSWORD}@127.0.0.1:1");
        let node = secure.node(&[("HTTPS_PROXY", &broken)]).await?;
        let answer = repository(&node).get("manifests/1").await?;
        let warning = "environment variable HTTPS_PROXY: names no proxy that can be used";
        ensure!(node.log().matches(warning).count() == 1, "{}", node.log());
        assert_secret(&node, &[answer]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_wants_a_password_is_named() -> Result<()> {
    let secure = Secure::start().await?;
    let proxy = Proxy::with(&format!("BasicAuth {USER} {PASSWORD}\n")).await?;
    let wants = "it wants a user and a password";
    let node = secure.node(&[("HTTPS_PROXY", &proxy.url())]).await?;
    assert_named(&node, &proxy.url(), wants).await?;
    // In the clear it answers itself, where the upstream's answer is expected.
    let plain = Upstream::start().await?;
    let node = with(node_before(&plain), &[("HTTP_PROXY", &proxy.url())]);
    assert_named(&node.start().await?, &proxy.url(), wants).await?;
    Ok(())
}

/// Puts the certificates of several fakes into one file.
fn bundle(folder: &Path, fakes: &[&Fake]) -> Result<String> {
    let path = folder.join("all.crt");
    let mut all = Vec::new();
    for fake in fakes {
        let certificate = fake.certificate().expect("it speaks TLS");
        all.extend(std::fs::read(certificate)?);
    }
    std::fs::write(&path, all)?;
    Ok(path.display().to_string())
}

#[tokio::test]
async fn token_services_and_redirects_are_reached_through_the_proxy_as_well() -> Result<()> {
    let folders = [TempDir::new()?, TempDir::new()?, TempDir::new()?];
    let [fake, tokens, cdn] = &folders;
    let (fake, tokens, cdn) = (
        Fake::start_tls(fake.path()).await?,
        Fake::start_tls(tokens.path()).await?,
        Fake::start_tls(cdn.path()).await?,
    );
    let layers = [noise(1, 300_000)];
    let image = fake.add_image("app", "latest", &layers);
    cdn.add_image("app", "latest", &layers);
    let bearer = Bearer::at(&tokens.url()).login("ci", "s");
    tokens.protect(Guard::Bearer(bearer.clone()));
    fake.protect(Guard::Bearer(bearer));
    let path = format!("/v2/app/blobs/{}", image.layers[0]);
    let away = Then::answer(Canned::redirect(&format!("{}{path}", cdn.url())));
    fake.on(When::get(&path).with("authorization", " "), away);

    let ca = bundle(folders[0].path(), &[&fake, &tokens, &cdn])?;
    let proxy = Proxy::start().await?;
    let (of_tokens, of_cdn) = (tokens.address().to_string(), cdn.address().to_string());
    let scene = Scene::of(fake, |node| {
        with(node, &[("HTTPS_PROXY", &proxy.url())])
            .set("upstreams/fake/ca", ca)
            .set("upstreams/fake/username", "ci")
            .set("upstreams/fake/password", "s")
            .set("upstreams/fake/token_hosts", json!([of_tokens]))
            .set("upstreams/fake/redirect_hosts", json!([of_cdn]))
    })
    .await?;
    scene.pull("app", "latest", &image).await?;
    assert_eq!(
        (tokens.count("GET", "/token"), cdn.count("GET", &path)),
        (1, 1)
    );
    for address in [scene.fake.address(), tokens.address(), cdn.address()] {
        ensure!(
            proxy.tunnels(address) > 0,
            "{address}: {:#?}",
            proxy.requests()
        );
    }
    Ok(())
}
