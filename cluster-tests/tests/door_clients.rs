//! Real clients at a guarded door: in the clear on this host, TLS of a private authority, passwords
//! where a client can send them, certificates, and a registry with passwords of its own behind it.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use millrace_cluster_tests::client::{
    Buildah, Client, Containerd, Dockerd, Mirror, Podman, Skopeo,
};
use millrace_cluster_tests::component;
use millrace_cluster_tests::image::Image;
use millrace_cluster_tests::node::Node;
use millrace_cluster_tests::pki::Pki;
use millrace_cluster_tests::port::free_address;
use millrace_cluster_tests::process::{machine_address, run};
use millrace_cluster_tests::upstream::{Login, Upstream};
use serde_json::json;
use tempfile::TempDir;

const REFERENCE: &str = "docker.io/library/guarded:1";
const HTPASSWD_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// How a client comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Plain HTTP at the listener for this host.
    Local,
    /// TLS where nobody is asked who they are.
    Tls,
    Password,
    Certificate,
}

/// A node at an address that dockerd does not take for loopback, before a private registry.
struct Scene {
    node: Node,
    image: Image,
    pki: Pki,
    certificate: (PathBuf, PathBuf),
    local: String,
    _upstream: Upstream,
    _folder: TempDir,
}

impl Scene {
    /// With users and certificates, or with TLS alone.
    async fn start(guarded: bool) -> Result<Self> {
        let upstream = Upstream::start_private("mirror", "behind the node").await?;
        let image = Image::runnable("guarded")?;
        upstream.push(&image, "library/guarded", "1").await?;
        let (pki, folder) = (Pki::create().await?, TempDir::new()?);
        let host: IpAddr = machine_address()?;
        let (chain, key) = pki.sign("node", &format!("IP:{host}")).await?;
        let certificate = pki.sign("build7", "DNS:build7.test").await?;
        let local = free_address()?.to_string();
        let mut node = Node::builder()
            .at(host)
            .upstream("docker.io", &upstream.url())
            .set("upstreams/docker.io/username", "mirror")
            .set("upstreams/docker.io/password", "behind the node")
            .set("http/local/addr", local.as_str())
            .set("http/tls/certificate", chain.display().to_string())
            .set("http/tls/key", key.display().to_string());
        if guarded {
            let users = folder.path().join("htpasswd");
            let mut htpasswd = std::process::Command::new(component::find("htpasswd")?);
            htpasswd
                .args(["-cbB"])
                .arg(&users)
                .args(["ann", "a secret: §"]);
            run(&htpasswd, HTPASSWD_LIMIT).await?;
            node = node
                .set("auth/htpasswd/realm", "mirror")
                .set("auth/htpasswd/path", users.display().to_string())
                .set("http/tls/clientcas", json!([pki.ca()]));
        }
        Ok(Self {
            node: node.start().await?,
            image,
            pki,
            certificate,
            local,
            _upstream: upstream,
            _folder: folder,
        })
    }

    /// The mirror as a client is told of it; `path` is what the podman family adds.
    fn mirror(&self, way: Way, path: &str) -> Mirror {
        if way == Way::Local {
            return Mirror::plain(&format!("{}{path}", self.local));
        }
        let mut mirror = Mirror::plain(&format!("{}{path}", self.node.address()));
        mirror.ca = Some(self.pki.ca());
        mirror.login = (way == Way::Password).then(|| Login {
            user: "ann".to_owned(),
            password: "a secret: §".to_owned(),
        });
        mirror.certificate = (way == Way::Certificate).then(|| self.certificate.clone());
        mirror
    }

    async fn pull(&self, way: Way, client: &impl Client) -> Result<()> {
        let pulled = async {
            client.pull(REFERENCE).await?;
            client.compare(REFERENCE, &self.image).await
        };
        pulled
            .await
            .with_context(|| format!("{way:?}\n{}", self.node.log()))
    }
}

/// Pulls in each way, with a new client for each.
async fn each_way<C: Client>(
    path: &str,
    ways: &[Way],
    start: impl AsyncFn(Mirror) -> Result<C>,
) -> Result<()> {
    let open = Scene::start(false).await?;
    let guarded = Scene::start(true).await?;
    for way in ways {
        let scene = if *way == Way::Tls { &open } else { &guarded };
        let client = start(scene.mirror(*way, path)).await?;
        scene.pull(*way, &client).await?;
    }
    // Without anything to show nobody gets in; the client has nowhere else to go.
    let stranger = start(guarded.mirror(Way::Tls, path)).await?;
    ensure!(
        stranger.pull(REFERENCE).await.is_err(),
        "a client without password and certificate pulled"
    );
    Ok(())
}

const ALL: [Way; 4] = [Way::Local, Way::Tls, Way::Password, Way::Certificate];

#[tokio::test]
async fn skopeo_comes_in_each_way() -> Result<()> {
    each_way("/docker.io", &ALL, async |mirror| Skopeo::through(mirror)).await
}

#[tokio::test]
async fn podman_comes_in_each_way() -> Result<()> {
    each_way("/docker.io", &ALL, async |mirror| Podman::through(mirror)).await
}

#[tokio::test]
async fn buildah_comes_in_each_way() -> Result<()> {
    each_way("/docker.io", &ALL, async |mirror| Buildah::through(mirror)).await
}

#[tokio::test]
async fn containerd_comes_in_each_way() -> Result<()> {
    each_way("", &ALL, Containerd::start_through).await
}

/// dockerd sends no password to a mirror, whatever it was told (CLIENT-CONTRACT A1).
#[tokio::test]
async fn dockerd_comes_in_by_certificate_or_locally() -> Result<()> {
    let ways = [Way::Local, Way::Tls, Way::Certificate];
    each_way("", &ways, Dockerd::start_through).await
}
