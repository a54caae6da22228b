//! What the pull room is doing, for operators.

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use serde::Serialize;

use super::Puller;
use super::directory::HoldingsStatus;
use super::neighbours::Neighbours;
use super::origin::Source;

/// What the pull room is doing.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Blobs on their way to this node, in no order.
    pub transfers: Vec<TransferStatus>,
    /// What the other members have told of what they hold; absent without a cluster.
    pub holdings: Option<HoldingsStatus>,
    /// Members that stated wrong content, or stalled, and are not asked for any for a while.
    #[serde(serialize_with = "super::directory::texts")]
    pub distrusted: Vec<NodeId>,
}

/// One blob on its way.
#[derive(Clone, Debug, Serialize)]
pub struct TransferStatus {
    /// The blob.
    pub digest: Digest,
    /// Repositories that were named for it, as `upstream/repository`.
    pub origins: Vec<String>,
    /// Who is asked for its bytes now, unless that is being decided.
    pub source: Option<Source>,
    /// Its size, once known.
    pub size_bytes: Option<u64>,
    /// Bytes that are here.
    pub received_bytes: u64,
    /// Whether it cannot be stored and is only passed on.
    pub relayed: bool,
    /// Whether its turn is waited for: at an upstream, here or at the node that it is taken from.
    pub queued: bool,
    /// Clients that wait for it.
    pub waiters: usize,
    /// Time since it began.
    pub age_seconds: u64,
}

impl Puller {
    /// Returns what is under way.
    pub fn status(&self) -> Status {
        let transfers = self.inner.fillers.table.all();
        Status {
            transfers: transfers.iter().map(|transfer| transfer.status()).collect(),
            holdings: self.inner.neighbours.as_ref().map(Neighbours::status),
            distrusted: match &self.inner.neighbours {
                Some(neighbours) => neighbours.trust.withdrawn(),
                None => Vec::new(),
            },
        }
    }

    /// Returns how many blobs are on their way to this node.
    pub fn transfers(&self) -> usize {
        self.inner.fillers.table.count()
    }
}
