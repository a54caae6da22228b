//! The end of a node: killed in the middle of a pull, asked to stop while it serves, asked twice.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace_cluster_tests::condition::{eventually_some, patience};
use millrace_cluster_tests::fake::{self, Fake, Guard};
use millrace_cluster_tests::http::{Answer, End, Exchange, Request};
use millrace_cluster_tests::image::{Content, Image};
use millrace_cluster_tests::link::Link;
use millrace_cluster_tests::node::Node;
use millrace_cluster_tests::upstream::Upstream;
use millrace_protocol::oci::{Algorithm, Digest};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use tempfile::TempDir;

const MIB: u64 = 1024 * 1024;

/// A node that reaches its upstream over a link whose rate the test sets.
struct Scene {
    upstream: Upstream,
    link: Link,
    node: Node,
    image: Image,
}

impl Scene {
    async fn start(blob_bytes: u64, seed: u64) -> Result<Self> {
        let upstream = Upstream::start().await?;
        let image = Image::of_size(blob_bytes, seed)?;
        upstream.push(&image, "library/large", "1").await?;
        let link = Link::to(upstream.address()).await?;
        let node = Node::builder()
            .upstream("docker.io", &link.url())
            .start()
            .await?;
        Ok(Self {
            upstream,
            link,
            node,
            image,
        })
    }

    fn layer(&self) -> &Content {
        &self.image.platform().layers[0].blob
    }

    fn request(&self) -> Request {
        Request::get(&format!("/v2/library/large/blobs/{}", self.layer().digest))
    }

    /// Opens the large blob and reads its first `bytes`.
    async fn begin(&self, bytes: u64) -> Result<(Exchange, Vec<u8>)> {
        let mut exchange = self.request().open(self.node.address()).await?;
        ensure!(exchange.head().status == 200, "{:?}", exchange.head());
        let begun = exchange.read_at_least(usize::try_from(bytes)?).await?;
        ensure!(
            (begun.len() as u64) < self.layer().size,
            "the link is too fast for this test"
        );
        Ok((exchange, begun.to_vec()))
    }

    fn compare(&self, answer: &Answer) -> Result<()> {
        ensure!(
            answer.end == End::Complete,
            "ended {:?} after {} bytes",
            answer.end,
            answer.body.len()
        );
        let digest = Digest::of(Algorithm::Sha256, &answer.body);
        ensure!(
            digest == self.layer().digest,
            "the blob has the digest {digest}"
        );
        Ok(())
    }
}

#[tokio::test]
async fn a_node_killed_in_the_middle_of_a_pull_pulls_right_afterwards() -> Result<()> {
    let mut scene = Scene::start(256 * MIB, 2).await?;
    scene.link.limit(40 * MIB);
    let (exchange, begun) = scene.begin(24 * MIB).await?;
    scene.node.kill();
    let rest = exchange.discard().await?;
    ensure!(
        rest.1 != End::Complete,
        "the body ended as if it were whole after {} bytes",
        begun.len()
    );

    scene.node.restart().await?;
    scene.link.unlimited();
    let pulled = scene.request().send(scene.node.address()).await?;
    scene.compare(&pulled)?;

    // And it is kept: once more, with nothing behind the node.
    scene.upstream.stop();
    let kept = scene.request().send(scene.node.address()).await?;
    scene.compare(&kept)
}

#[tokio::test]
async fn sigterm_drains_a_running_download() -> Result<()> {
    let mut scene = Scene::start(48 * MIB, 3).await?;
    scene.link.limit(16 * MIB);
    let (exchange, begun) = scene.begin(4 * MIB).await?;
    scene.node.drain().await;
    let rest = exchange.finish().await?;
    let whole = Answer {
        body: [begun, rest.body.to_vec()].concat().into(),
        ..rest
    };
    scene.compare(&whole)?;
    let status = scene.node.ended(patience()).await?;
    ensure!(status.success(), "a drained node ended with {status}");
    Ok(())
}

#[tokio::test]
async fn a_second_sigterm_ends_the_node_at_once() -> Result<()> {
    let mut scene = Scene::start(64 * MIB, 4).await?;
    // A download of a minute: only the second signal can end the node soon.
    scene.link.limit(MIB);
    let (exchange, _begun) = scene.begin(MIB).await?;
    scene.node.drain().await;
    let asked = Instant::now();
    scene.node.terminate();
    scene
        .node
        .ended(Duration::from_secs(5))
        .await
        .with_context(|| format!("{:?} after the second SIGTERM", asked.elapsed()))?;
    let (_, end) = exchange.discard().await?;
    ensure!(
        end != End::Complete,
        "a body that was cut ended as if it were whole"
    );
    Ok(())
}

#[tokio::test]
async fn an_idle_node_ends_soon_on_sigterm() -> Result<()> {
    let scene = Scene::start(MIB, 5).await?;
    let mut node = scene.node;
    node.terminate();
    let status = node.ended(Duration::from_secs(5)).await?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

/// A node that reads a password file as on a disk that hangs, for a client that waits.
struct Hung {
    scene: fake::Scene,
    _client: TcpStream,
    /// The end of the file that is written; while it is open and silent, the node waits.
    _silent: OwnedFd,
    _folder: TempDir,
}

impl Hung {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("password");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        let fake = Fake::start().await?;
        fake.protect(Guard::Basic("u".to_owned(), "p".to_owned()));
        let scene = fake::Scene::of(fake, |node| {
            node.set("upstreams/fake/username", "u")
                .set("upstreams/fake/password_file", path.display().to_string())
        })
        .await?;
        let mut client = TcpStream::connect(scene.node.address())?;
        client.write_all(b"GET /v2/fake/app/manifests/1 HTTP/1.1\r\nHost: node\r\n\r\n")?;
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let silent = eventually_some("the node opens the file", async || {
            open(&path, flags, Mode::empty()).ok()
        });
        Ok(Self {
            _silent: silent.await,
            scene,
            _client: client,
            _folder: folder,
        })
    }
}

#[tokio::test]
async fn a_second_sigterm_ends_a_node_whose_disk_hangs() -> Result<()> {
    let mut hung = Hung::start().await?;
    let node = &mut hung.scene.node;
    node.drain().await;
    node.terminate();
    let status = node.ended(Duration::from_secs(5)).await?;
    ensure!(status.code() == Some(143), "it ended with {status}");
    Ok(())
}

#[tokio::test]
async fn a_node_whose_disk_hangs_ends_after_its_drain() -> Result<()> {
    let mut hung = Hung::start().await?;
    hung.scene.node.terminate();
    let limit = patience() + Duration::from_secs(30);
    let status = hung.scene.node.ended(limit).await?;
    ensure!(status.success(), "a drained node ended with {status}");
    Ok(())
}
