//! A node in front of a fake, as most tests want it.

use anyhow::Result;
use millrace_protocol::oci::Digest;
use serde_json::json;

use super::Fake;
use super::content::{Image, sha256};
use crate::condition::eventually;
use crate::http::{Answer, End, Exchange, Request};
use crate::node::{Node, NodeBuilder};

/// A node whose upstream `fake` is a fake registry.
#[derive(Debug)]
pub struct Scene {
    /// The upstream.
    pub fake: Fake,
    /// The node.
    pub node: Node,
}

impl Scene {
    /// Starts both, with nothing but the upstream configured.
    ///
    /// # Errors
    /// When one of them does not start.
    pub async fn start() -> Result<Self> {
        Self::with(|node| node).await
    }

    /// Starts both, with the settings that `settings` adds.
    ///
    /// # Errors
    /// When one of them does not start.
    pub async fn with(settings: impl FnOnce(NodeBuilder) -> NodeBuilder) -> Result<Self> {
        Self::of(Fake::start().await?, settings).await
    }

    /// Starts a node in front of `fake`.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn of(fake: Fake, settings: impl FnOnce(NodeBuilder) -> NodeBuilder) -> Result<Self> {
        let builder = Node::builder().upstream("fake", &fake.url());
        let node = settings(builder).start().await?;
        Ok(Self { fake, node })
    }

    /// Returns the request for a blob of the fake.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Request {
        Request::get(&format!("/v2/fake/{repository}/blobs/{digest}"))
    }

    /// Returns the request for a manifest of the fake by tag or digest.
    pub fn manifest(&self, repository: &str, reference: impl std::fmt::Display) -> Request {
        Request::get(&format!("/v2/fake/{repository}/manifests/{reference}"))
    }

    /// Sends a request to the node and reads the whole answer.
    ///
    /// # Errors
    /// As [`Request::send`].
    pub async fn send(&self, request: Request) -> Result<Answer> {
        self.node.send(request).await
    }

    /// Sends a request to the node and reads the head of the answer.
    ///
    /// # Errors
    /// As [`Request::open`].
    pub async fn open(&self, request: Request) -> Result<Exchange> {
        request.open(self.node.address()).await
    }

    /// Waits until nothing is on its way to the node, so that what it has given is kept as well.
    ///
    /// # Panics
    /// When that lasts too long.
    pub async fn settle(&self) {
        eventually("nothing is on its way to the node", async || {
            let status = self.node.status().await.unwrap_or_default();
            status["pull"]["transfers"] == json!([])
        })
        .await;
    }

    /// Pulls everything of an image by tag, as a client does.
    ///
    /// # Errors
    /// When the node does not answer.
    ///
    /// # Panics
    /// When anything of it is not given completely.
    pub async fn pull(&self, repository: &str, tag: &str, image: &Image) -> Result<()> {
        let manifest = self.send(self.manifest(repository, tag)).await?;
        assert_whole(&manifest, &image.manifest_bytes);
        for digest in [&image.config].into_iter().chain(&image.layers) {
            let blob = self.send(self.blob(repository, digest)).await?;
            assert_eq!((blob.status(), blob.end), (200, End::Complete), "{digest}");
            assert_eq!(sha256(&blob.body), *digest);
        }
        Ok(())
    }
}

/// Asserts that an answer is 200 and ended completely with exactly `content`.
///
/// # Panics
/// When it is not; the bytes are not printed.
pub fn assert_whole(answer: &Answer, content: &[u8]) {
    let text = String::from_utf8_lossy(&answer.body[..answer.body.len().min(200)]);
    assert_eq!(answer.status(), 200, "{text}");
    assert_eq!(
        (answer.end, answer.body.len()),
        (End::Complete, content.len())
    );
    assert!(answer.body == content, "other bytes than the upstream's");
}

/// Asserts that an answer did not pass anything off as complete content: either an error, or a
/// body that ended early by FIN.
///
/// # Panics
/// When a body completed, or was reset.
pub fn assert_unfinished(answer: &Answer) {
    match answer.status() {
        200 | 206 => assert_eq!(answer.end, End::Short),
        status => assert!((400..600).contains(&status), "{status}"),
    }
}

/// Returns the code of the first error in an answer as the OCI specification has it.
pub fn code_of(answer: &Answer) -> Option<String> {
    let json = answer.json().ok()?;
    json["errors"][0]["code"].as_str().map(str::to_owned)
}
