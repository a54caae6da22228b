//! A fleet in front of a fake registry, as most tests want it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use bytes::Bytes;
use millrace_protocol::oci::Digest;

use super::{Fleet, Plan};
use crate::fake::{Fake, Image, assert_whole};
use crate::http::{End, Request};
use crate::load::crowd::{self, Client, Pulled};
use crate::netns::Net;

/// The fake's name in the configuration of the nodes.
pub(super) const UPSTREAM: &str = "fake";

/// The repository of blobs that belong to no image.
const REPOSITORY: &str = "app";

/// A fleet whose upstream `fake` is a fake registry.
#[derive(Debug)]
pub struct Scene {
    /// The upstream.
    pub fake: Fake,
    /// The nodes.
    pub fleet: Fleet,
}

impl Scene {
    /// Starts both and waits until the nodes agree.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn start(plan: Plan) -> Result<Self> {
        Self::before(Fake::start().await?, plan).await
    }

    /// Starts a fleet before `fake` and waits until the nodes agree.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn before(fake: Fake, plan: Plan) -> Result<Self> {
        let fleet = plan.upstream(UPSTREAM, &fake.url()).start().await?;
        Ok(Self { fake, fleet })
    }

    /// Starts a fleet on the hosts of `net`, before a fake that the hosts of the first site reach over
    /// `data0`, and waits until the nodes agree.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn on(net: &Net, plan: Plan) -> Result<Self> {
        let fake = Fake::start_at(net.upstream_address(0)).await?;
        Self::before(fake, plan.on(net.hosts())).await
    }

    /// Adds a blob to the upstream and returns the path by which nodes serve it.
    pub fn add(&self, content: &Bytes) -> String {
        let digest = self.fake.add_blob(REPOSITORY, content.clone());
        Self::path(&digest)
    }

    /// Returns the path by which nodes serve a blob.
    pub fn path(digest: &Digest) -> String {
        format!("/v2/{UPSTREAM}/{REPOSITORY}/blobs/{digest}")
    }

    /// Pulls a blob through a node and compares every byte.
    ///
    /// # Errors
    /// When the node does not serve it whole and right.
    pub async fn pull(&self, node: usize, path: &str, content: &Bytes) -> Result<Pulled> {
        crowd::pull(self.fleet.node(node).address(), path, content).await
    }

    /// Asks a node for a blob, and demands that it gives no other one as if that were whole.
    ///
    /// # Errors
    /// When the node does not answer, or gives a wrong blob to its end.
    pub async fn pull_right_or_not(&self, node: usize, path: &str, content: &Bytes) -> Result<()> {
        let answer = self.fleet.node(node).send(Request::get(path)).await?;
        let is_whole = answer.status() == 200 && answer.end == End::Complete;
        ensure!(
            !is_whole || answer.body == *content,
            "node {node} gave a wrong blob"
        );
        Ok(())
    }

    /// Begins to pull a blob through a node.
    ///
    /// # Errors
    /// When the node does not begin to serve it.
    pub async fn open(&self, node: usize, path: &str, content: &Bytes) -> Result<Client> {
        Client::open(self.fleet.node(node).address(), path, content).await
    }

    /// Returns `clients` clients at each of `nodes`.
    pub fn clients(&self, nodes: &[usize], clients: usize) -> Vec<SocketAddr> {
        self.fleet.doors(&nodes.repeat(clients))
    }

    /// Pulls everything of an image of the fake through a node by tag, as a client does.
    ///
    /// # Errors
    /// When the node does not answer.
    ///
    /// # Panics
    /// When anything of it is not given completely.
    pub async fn pull_image(
        &self,
        node: usize,
        (repository, tag): (&str, &str),
        (image, layers): (&Image, &[Bytes]),
    ) -> Result<()> {
        let node = self.fleet.node(node);
        let root = format!("/v2/{UPSTREAM}/{repository}");
        let manifest = Request::get(&format!("{root}/manifests/{tag}"));
        assert_whole(&node.send(manifest).await?, &image.manifest_bytes);
        let config = Request::get(&format!("{root}/blobs/{}", image.config));
        ensure!(node.send(config).await?.status() == 200, "no configuration");
        for (digest, layer) in image.layers.iter().zip(layers) {
            crowd::pull(node.address(), &format!("{root}/blobs/{digest}"), layer).await?;
        }
        Ok(())
    }

    /// Asks nodes for a tag, one after the other, and demands that it points to `image`.
    ///
    /// # Errors
    /// When a node does not answer, or names another image.
    ///
    /// # Panics
    /// When the manifest is not given completely.
    pub async fn expect_tag(
        &self,
        nodes: &[usize],
        (repository, tag): (&str, &str),
        image: &Image,
    ) -> Result<()> {
        for node in nodes {
            let request = Request::get(&format!("/v2/{UPSTREAM}/{repository}/manifests/{tag}"));
            let answer = self.fleet.node(*node).send(request).await?;
            let digest = answer.header("docker-content-digest");
            let expected = image.manifest.to_string();
            ensure!(
                digest == Some(expected.as_str()),
                "node {node} says that {tag} is {digest:?}, not {expected}"
            );
            assert_whole(&answer, &image.manifest_bytes);
        }
        Ok(())
    }
}
