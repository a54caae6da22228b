//! What an operator sees of the cluster; a copy at one moment, without secrets.

use std::net::SocketAddr;
use std::time::Duration;

use millrace_protocol::node_id::NodeId;
use serde::{Serialize, Serializer};

use super::view::Standing;

/// The cluster at one moment, as this node sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// This node.
    #[serde(serialize_with = "text")]
    pub id: NodeId,
    /// Its zone.
    pub zone: String,
    /// Whether it takes part.
    pub state: State,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Number of the newest view.
    pub view: u64,
    /// Fingerprint of the placement, in hexadecimal.
    pub placement: String,
    /// Members in order of ids, this node among them.
    pub members: Vec<MemberStatus>,
    /// What the configured addresses to join have led to.
    pub join: Vec<JoinStatus>,
    /// Nodes that are kept out.
    #[serde(serialize_with = "texts")]
    pub denied: Vec<NodeId>,
}

/// Whether a node takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It does.
    #[default]
    Running,
    /// It has said that it leaves.
    Left,
    /// It does not, because another node uses its identity.
    Duplicate,
}

/// A member at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct MemberStatus {
    /// Its name.
    #[serde(serialize_with = "text")]
    pub id: NodeId,
    /// Its zone.
    pub zone: String,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// Version of its program.
    pub version: String,
    /// How often it was started.
    pub generation: u64,
    /// Its share relative to others.
    pub weight: u32,
    /// Its share of all keys.
    pub share: f64,
    /// Blobs on their way to it or from it.
    pub load: u32,
    /// Whether it may be asked.
    pub standing: Standing,
    /// Why it may not.
    pub suspicion: Option<&'static str>,
    /// Time since it was last heard; 0 for this node.
    #[serde(rename = "silent_ms", serialize_with = "milliseconds")]
    pub silent: Duration,
    /// Whether there is a connection to it.
    pub connected: bool,
    /// Whether it has the same placement as this node.
    pub agrees: bool,
}

/// A configured address at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct JoinStatus {
    /// The address as configured.
    pub address: String,
    /// What it resolves to.
    pub resolved: Vec<SocketAddr>,
    /// The last failure, of the resolver or of a connection.
    pub error: Option<String>,
}

fn text<S: Serializer>(id: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn texts<S: Serializer>(ids: &[NodeId], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ids.iter().map(NodeId::to_string))
}

fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u128(time.as_millis())
}
