//! Several nodes that are one cache: started with one secret, watched until they agree, killed,
//! hung, woken, restarted, and asked to leave one by one.
//!
//! Nodes are numbered from 0 in the order in which they were configured. Everything that a test
//! knows of the cluster it reads from `/status` of the nodes; who is home or owner of a key it
//! computes with the protocol's own placement. Real processes on loopback, or on hosts of a
//! [`crate::netns::Net`].
//!
//! ```text
//! places    who is home or owner of what, and content that lies where a test wants it
//! plan      how many nodes, their zones, weights and settings
//! seen      the cluster as one node shows it
//! scene     a fleet in front of a fake registry, as most tests want it
//! schedule  faults in an order that a seed chooses
//! port      addresses for control (TCP) and content (UDP) of the same number
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::{join_all, try_join_all};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::placement::Placement;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::condition::{eventually, patience, within};
use crate::node::Node;

mod places;
mod plan;
mod scene;
mod schedule;
mod seen;

pub use plan::{Plan, SECRET, write_secret};
pub use scene::Scene;
pub use schedule::{Act, Fault, Step, schedule};
pub use seen::{Seen, SeenMember};

/// Nodes of one cluster; they end with the value.
#[derive(Debug)]
pub struct Fleet {
    nodes: Vec<Node>,
    ids: Vec<NodeId>,
    zones: Vec<String>,
    weights: Vec<u32>,
    addresses: Vec<SocketAddr>,
    folder: TempDir,
}

impl Fleet {
    /// Returns a plan of `size` nodes in one zone.
    pub fn of(size: usize) -> Plan {
        Plan::new(size)
    }

    /// Returns a node.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// Returns a node, to be changed.
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// Returns how many nodes there are, running or not.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the node's name in the cluster.
    pub fn id(&self, index: usize) -> NodeId {
        self.ids[index]
    }

    /// Returns the number of the node of this name.
    ///
    /// # Panics
    /// When it is none of the fleet.
    pub fn index(&self, id: NodeId) -> usize {
        let found = self.ids.iter().position(|known| *known == id);
        found.expect("a node of this fleet")
    }

    /// Returns the node's zone.
    pub fn zone(&self, index: usize) -> &str {
        &self.zones[index]
    }

    /// Returns where other members reach the node.
    pub fn cluster_address(&self, index: usize) -> SocketAddr {
        self.addresses[index]
    }

    /// Returns the file with the secrets of the cluster.
    pub fn secret_file(&self) -> PathBuf {
        self.folder.path().join(SECRET)
    }

    /// Returns where clients of the nodes with these numbers are answered.
    pub fn doors(&self, nodes: &[usize]) -> Vec<SocketAddr> {
        nodes
            .iter()
            .map(|index| self.nodes[*index].address())
            .collect()
    }

    /// Returns the numbers of the nodes that run.
    pub fn running(&self) -> Vec<usize> {
        let all = 0..self.nodes.len();
        all.filter(|index| self.nodes[*index].is_running())
            .collect()
    }

    /// Waits until every running node sees exactly the running nodes, and suspects none.
    ///
    /// # Panics
    /// When they do not agree in time; the message shows what each sees.
    pub async fn agree(&self) {
        let running = self.running();
        self.agree_on(&running, &running).await;
    }

    /// Waits until each node of `observers` sees exactly `members`, and suspects none.
    ///
    /// # Panics
    /// When they do not agree in time; the message shows what each sees.
    pub async fn agree_on(&self, observers: &[usize], members: &[usize]) {
        if self
            .agree_within(patience(), observers, members)
            .await
            .is_none()
        {
            let seen = join_all(observers.iter().map(
                async |index| match self.seen(*index).await {
                    Ok(seen) => format!("{index}: {seen}"),
                    Err(error) => format!("{index}: {error:#}"),
                },
            ));
            panic!(
                "{observers:?} do not agree on {members:?} after {:?}\nids {:?}\n{}",
                patience(),
                self.ids,
                seen.await.join("\n")
            );
        }
    }

    /// Waits at most `limit` until each node of `observers` sees exactly `members`.
    pub async fn agree_within(
        &self,
        limit: Duration,
        observers: &[usize],
        members: &[usize],
    ) -> Option<()> {
        let mut expected: Vec<NodeId> = members.iter().map(|index| self.ids[*index]).collect();
        expected.sort();
        within(limit, async || {
            for index in observers {
                let seen = self.seen(*index).await.ok()?;
                if seen.alive() != expected || seen.members.len() != expected.len() {
                    return None;
                }
            }
            Some(())
        })
        .await
    }

    /// Returns the cluster as the node shows it.
    ///
    /// # Errors
    /// When its status is not readable.
    pub async fn seen(&self, index: usize) -> Result<Seen> {
        let status = self.nodes[index].status().await?;
        Seen::parse(&status).with_context(|| format!("the status of node {index}"))
    }

    /// Waits until each node of `observers` places content as `placement` does.
    ///
    /// # Panics
    /// When one still does not after the patience.
    pub async fn place_by(&self, observers: &[usize], placement: &Placement) {
        eventually("nodes place content as expected", async || {
            for index in observers {
                if !self.places_by(*index, placement).await.unwrap_or(false) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// Whether a node places content as `placement` does.
    ///
    /// # Errors
    /// When its status is not readable.
    pub async fn places_by(&self, index: usize, placement: &Placement) -> Result<bool> {
        let seen = self.seen(index).await?;
        Ok(seen.placement == format!("{:016x}", placement.fingerprint()))
    }

    /// Waits until node `observer` does not count `member` among those it may ask.
    ///
    /// # Panics
    /// When it still does after the patience.
    pub async fn doubted(&self, observer: usize, member: usize) {
        let id = self.ids[member];
        eventually("a member is suspected or gone", async || {
            let seen = self.seen(observer).await;
            seen.is_ok_and(|seen| !seen.alive().contains(&id))
        })
        .await;
    }

    /// Waits until a node has in its store what it was pulling.
    ///
    /// # Panics
    /// When it is still pulling after the patience.
    pub async fn committed(&self, index: usize) {
        eventually("nothing is on its way any more", async || {
            let status = self.nodes[index].status().await;
            let transfers = status.map(|status| status["pull"]["transfers"].clone());
            transfers.is_ok_and(|transfers| transfers == serde_json::json!([]))
        })
        .await;
    }

    /// Kills a node as a crash does.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].kill();
    }

    /// Stops a node's process without ending it: it answers nothing and says nothing.
    pub fn hang(&self, index: usize) {
        self.nodes[index].signal(Signal::STOP);
    }

    /// Lets a hung node go on.
    pub fn wake(&self, index: usize) {
        self.nodes[index].signal(Signal::CONT);
    }

    /// Ends a node by SIGTERM: it leaves the cluster.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn leave(&mut self, index: usize) -> Result<()> {
        let status = self.nodes[index].stop().await?;
        ensure!(status.success(), "node {index} ended with {status}");
        Ok(())
    }

    /// Starts nodes again that were killed or have left, all at once, with their data.
    ///
    /// # Errors
    /// When one is not ready in time.
    pub async fn restart(&mut self, nodes: &[usize]) -> Result<()> {
        let chosen = self.nodes.iter_mut().enumerate();
        let chosen = chosen.filter(|(index, _)| nodes.contains(index));
        try_join_all(chosen.map(|(_, node)| node.restart())).await?;
        Ok(())
    }

    /// Starts nodes again as [`Fleet::restart`] does, and waits only until they run.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn relaunch(&mut self, nodes: &[usize]) -> Result<()> {
        let chosen = self.nodes.iter_mut().enumerate();
        let chosen = chosen.filter(|(index, _)| nodes.contains(index));
        try_join_all(chosen.map(|(_, node)| node.relaunch())).await?;
        Ok(())
    }

    /// Lets a node leave and come back with another weight, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not end or start in time.
    pub async fn reweigh(&mut self, index: usize, weight: u32) -> Result<()> {
        self.leave(index).await?;
        self.nodes[index].reconfigure(|node| node.set("cluster/weight", weight))?;
        self.weights[index] = weight;
        self.restart(&[index]).await
    }

    /// Adds a node with the settings that the plan had, of zone and weight of node 0, and waits
    /// until it is ready. Returns its number.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn join(&mut self, plan: &Plan) -> Result<usize> {
        let index = self.nodes.len();
        let address = plan.address(index)?;
        let seeds = self.running();
        let seeds = seeds
            .iter()
            .take(plan::SEEDS)
            .map(|seed| self.addresses[*seed]);
        let node = plan
            .node(index, address, seeds, self.folder.path())
            .start()
            .await?;
        self.ids.push(id_of(&node).await?);
        self.nodes.push(node);
        self.zones.push(plan.zone(index));
        self.weights.push(plan.weight(index));
        self.addresses.push(address);
        Ok(index)
    }

    /// Sums a metric over the running nodes; a node without such a series counts nothing.
    ///
    /// # Errors
    /// When the metrics of a node are not readable.
    pub async fn sum(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let mut sum = 0.0;
        for index in self.running() {
            sum += self.nodes[index].metric(name, labels).await?.unwrap_or(0.0);
        }
        Ok(sum)
    }

    /// Sums the bytes of content that running nodes have received from nodes of other zones.
    ///
    /// # Errors
    /// When the status of a node is not readable.
    pub async fn received_from_afar(&self) -> Result<u64> {
        let mut sum = 0;
        for index in self.running() {
            let status = self.nodes[index].status().await?;
            let peers = status["peers"]["peers"].as_array();
            for peer in peers.context("a node shows its peers")? {
                let id = peer["id"].as_str().context("a peer has a name")?;
                if self.zone(self.index(id.parse()?)) != self.zone(index) {
                    let received = peer["received_bytes"].as_u64();
                    sum += received.context("a peer has a count")?;
                }
            }
        }
        Ok(sum)
    }

    async fn assemble(plan: &Plan, nodes: Vec<Node>, parts: Parts) -> Result<Self> {
        let ids = try_join_all(nodes.iter().map(id_of)).await?;
        let count = 0..nodes.len();
        Ok(Self {
            zones: count.clone().map(|index| plan.zone(index)).collect(),
            weights: count.map(|index| plan.weight(index)).collect(),
            nodes,
            ids,
            addresses: parts.addresses,
            folder: parts.folder,
        })
    }
}

/// What is there before the nodes are.
#[derive(Debug)]
struct Parts {
    addresses: Vec<SocketAddr>,
    folder: TempDir,
}

impl Parts {
    fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Returns the name of a running node.
async fn id_of(node: &Node) -> Result<NodeId> {
    Ok(Seen::parse(&node.status().await?)?.me)
}
