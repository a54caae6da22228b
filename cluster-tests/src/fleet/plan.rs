//! How many nodes a fleet has, and how each of them is configured.

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use std::io::Write as _;

use super::{Fleet, Parts};
use crate::netns::Host;
use crate::node::{HOST_PORT, Node, NodeBuilder};
use crate::port::free_address;

/// Every node joins by the addresses of so many others; the rest it learns from them.
pub(super) const SEEDS: usize = 3;

/// The name of the file with the cluster's secrets.
pub const SECRET: &str = "cluster.secret";

/// Where nodes on hosts of their own listen for members.
const HOST_CLUSTER_PORT: u16 = 5050;

/// What a fleet's secret is unless a test wants another one: long enough to be accepted.
const DEFAULT_SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Changes what a node is started with; knows its number.
type Settings = Arc<dyn Fn(usize, NodeBuilder) -> NodeBuilder + Send + Sync>;

/// A fleet to be started.
#[derive(Clone)]
pub struct Plan {
    size: usize,
    zones: Vec<String>,
    weights: Vec<u32>,
    hosts: Vec<Host>,
    settings: Vec<Settings>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Plan")
            .field("size", &self.size)
            .field("zones", &self.zones)
            .finish_non_exhaustive()
    }
}

impl Plan {
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            zones: Vec::new(),
            weights: Vec::new(),
            hosts: Vec::new(),
            settings: Vec::new(),
        }
    }

    /// Names the zones of the nodes, in order of their numbers; nodes without are in the zone
    /// `default`.
    #[must_use]
    pub fn zones(mut self, zones: &[&str]) -> Self {
        self.zones = zones.iter().map(|zone| (*zone).to_owned()).collect();
        self
    }

    /// Sets the weights of the nodes, in order of their numbers; nodes without have the weight 1.
    #[must_use]
    pub fn weights(mut self, weights: &[u32]) -> Self {
        self.weights = weights.to_vec();
        self
    }

    /// Runs each node on a host of its own, in order of their numbers; hosts beyond the plan's size
    /// are for nodes that [`Fleet::join`] later.
    #[must_use]
    pub fn on(mut self, hosts: &[Host]) -> Self {
        self.hosts = hosts.to_vec();
        self
    }

    /// Configures the upstream `name` at `url`, for all nodes.
    #[must_use]
    pub fn upstream(self, name: &str, url: &str) -> Self {
        let path = format!("upstreams/{name}/url");
        self.set(&path, url)
    }

    /// Sets `path` to `value` for all nodes, as [`NodeBuilder::set`].
    #[must_use]
    pub fn set(self, path: &str, value: impl Into<serde_json::Value>) -> Self {
        let (path, value) = (path.to_owned(), value.into());
        self.each(move |_, node| node.set(&path, value.clone()))
    }

    /// Changes what each node is started with.
    #[must_use]
    pub fn each(
        mut self,
        settings: impl Fn(usize, NodeBuilder) -> NodeBuilder + Send + Sync + 'static,
    ) -> Self {
        self.settings.push(Arc::new(settings));
        self
    }

    /// Starts all nodes at once and waits until every one is ready and all agree.
    ///
    /// # Errors
    /// When one does not start.
    ///
    /// # Panics
    /// When they do not agree in time.
    pub async fn start(&self) -> Result<Fleet> {
        let fleet = self.boot().await?;
        fleet.agree().await;
        Ok(fleet)
    }

    /// Starts all nodes at once and waits until every one is ready, whatever they see.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn boot(&self) -> Result<Fleet> {
        let parts = self.parts()?;
        let nodes = self.builders(&parts).into_iter().map(NodeBuilder::start);
        let nodes: Vec<Node> = try_join_all(nodes).await?;
        Fleet::assemble(self, nodes, parts).await
    }

    /// Starts all nodes at once and waits only until they run: clients may come before the nodes
    /// have met. For nodes on hosts of their own, where nobody else can have taken a port.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn launch(&self) -> Result<Fleet> {
        let parts = self.parts()?;
        let nodes = self.builders(&parts).into_iter().map(NodeBuilder::launch);
        let nodes: Vec<Node> = try_join_all(nodes).await?;
        Fleet::assemble(self, nodes, parts).await
    }

    /// Returns where clients of nodes on hosts of their own will be answered.
    pub fn doors(&self) -> Vec<SocketAddr> {
        let hosts = self.hosts.iter().take(self.size);
        hosts.map(|host| (host.door(), HOST_PORT).into()).collect()
    }

    /// Makes what is there before the nodes are.
    fn parts(&self) -> Result<Parts> {
        let folder = tempfile::Builder::new()
            .prefix("millrace-fleet-")
            .tempdir()?;
        write_secret(&folder.path().join(SECRET), &[DEFAULT_SECRET])?;
        let addresses = (0..self.size).map(|index| self.address(index));
        Ok(Parts {
            addresses: addresses.collect::<Result<_>>()?,
            folder,
        })
    }

    /// Returns what each node is started with.
    fn builders(&self, parts: &Parts) -> Vec<NodeBuilder> {
        let builder = |index: usize| {
            let own = parts.addresses[index];
            let seeds = parts.addresses.iter().take(SEEDS + 1).copied();
            let seeds = seeds.filter(|seed| *seed != own).take(SEEDS);
            self.node(index, own, seeds, parts.folder())
        };
        (0..self.size).map(builder).collect()
    }

    /// Returns where node `index` is to listen for members.
    pub(super) fn address(&self, index: usize) -> Result<SocketAddr> {
        match self.hosts.get(index) {
            Some(host) => Ok((host.data(), HOST_CLUSTER_PORT).into()),
            None => free_address(),
        }
    }

    pub(super) fn zone(&self, index: usize) -> String {
        let zone = self.zones.get(index).map(String::as_str);
        zone.unwrap_or("default").to_owned()
    }

    pub(super) fn weight(&self, index: usize) -> u32 {
        self.weights.get(index).copied().unwrap_or(1)
    }

    /// Returns what node `index` is started with.
    pub(super) fn node(
        &self,
        index: usize,
        address: SocketAddr,
        seeds: impl Iterator<Item = SocketAddr>,
        folder: &Path,
    ) -> NodeBuilder {
        let seeds: Vec<String> = seeds.map(|seed| seed.to_string()).collect();
        let mut node = Node::builder()
            .set("cluster/listen", address.to_string())
            .set("cluster/advertise", address.to_string())
            .set(
                "cluster/secret_file",
                folder.join(SECRET).display().to_string(),
            )
            .set("cluster/zone", self.zone(index))
            .set("cluster/weight", self.weight(index))
            .set("cluster/join", seeds);
        if let Some(host) = self.hosts.get(index) {
            node = node.on(host);
        }
        let settings = self.settings.iter();
        settings.fold(node, |node, settings| settings(index, node))
    }
}

/// Writes the secrets of a cluster, the one to prove first, so that only the owner may read them.
///
/// # Errors
/// When the file cannot be written.
pub fn write_secret(path: &Path, secrets: &[&str]) -> Result<()> {
    // A new file that takes the old one's place: nobody reads half of it.
    let fresh = path.with_extension("fresh");
    let mut file = std::fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&fresh)
        .with_context(|| format!("opening {}", fresh.display()))?;
    for secret in secrets {
        writeln!(file, "{secret}")?;
    }
    std::fs::rename(&fresh, path).context("putting the secret in its place")
}
