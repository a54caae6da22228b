//! Which nodes are asked for no content for a while, because they were found out.
//!
//! Whether they can be reached is the peer room's to say; that they are passed over is decided by
//! who chooses among nodes.

use std::time::Duration;

use millrace_protocol::node_id::NodeId;
use moka::sync::Cache;
use tokio::time::Instant;

use crate::pull::metrics::{FoundOut, HopMetrics};

/// How long a node that stated wrong content is not asked for content.
const DISTRUST: Duration = Duration::from_secs(300);

/// How long a node that gave nothing is not: it may only have been slow, and its disk may recover.
const STALL_PAUSE: Duration = Duration::from_secs(60);

/// Most nodes that are distrusted at a time; more than a cluster has.
const MAX_DISTRUSTED: u64 = 256;

/// What is thought of the other nodes; clones share it.
#[derive(Clone, Debug)]
pub(in crate::pull) struct Trust {
    /// Who is not asked for content, until when, and why.
    found_out: Cache<NodeId, (Instant, FoundOut)>,
    metrics: HopMetrics,
}

impl Trust {
    pub(super) fn new(metrics: HopMetrics) -> Self {
        let found_out = Cache::builder()
            .max_capacity(MAX_DISTRUSTED)
            .time_to_live(DISTRUST)
            .build();
        Self { found_out, metrics }
    }

    /// Does not ask a node for content for a while.
    pub(in crate::pull) fn distrust(&self, peer: NodeId) {
        tracing::warn!(peer.id = %peer.short(), "it stated wrong content; not asked for a while");
        self.metrics.count_left_alone(FoundOut::wrong);
        let until = Instant::now() + DISTRUST;
        self.found_out.insert(peer, (until, FoundOut::wrong));
    }

    /// Does not ask a node for content for a shorter while: it keeps this one waiting, or breaks off
    /// its answers, although it lives.
    pub(in crate::pull) fn leave_alone(&self, peer: NodeId) {
        tracing::warn!(peer.id = %peer.short(), "it lives and gives nothing; not asked for a while");
        self.metrics.count_left_alone(FoundOut::stalled);
        if self.is_given(&peer) {
            let until = Instant::now() + STALL_PAUSE;
            self.found_out.insert(peer, (until, FoundOut::stalled));
        }
    }

    /// Whether a node has not been found out of late.
    pub(in crate::pull) fn is_given(&self, peer: &NodeId) -> bool {
        self.found_out(peer).is_none()
    }

    /// Returns what a node has been found out by of late.
    pub(in crate::pull) fn found_out(&self, peer: &NodeId) -> Option<FoundOut> {
        let (until, reason) = self.found_out.get(peer)?;
        (until > Instant::now()).then_some(reason)
    }

    /// Returns the nodes that are not asked for content for a while, in order.
    pub(in crate::pull) fn withdrawn(&self) -> Vec<NodeId> {
        let known = self.found_out.iter().map(|(id, _)| *id);
        let mut withdrawn: Vec<NodeId> = known.filter(|id| !self.is_given(id)).collect();
        withdrawn.sort();
        withdrawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_stated_wrong_content_is_not_forgiven_sooner_for_a_stall() {
        let trust = Trust::new(HopMetrics::default());
        let [wrong, slow] = [1, 2].map(|number| NodeId::new([number; 32]));
        trust.distrust(wrong);
        trust.leave_alone(wrong);
        trust.leave_alone(slow);
        assert_eq!(trust.withdrawn(), [wrong, slow]);
        tokio::time::advance(STALL_PAUSE).await;
        assert_eq!(trust.found_out(&wrong), Some(FoundOut::wrong));
        assert!(trust.is_given(&slow));
        tokio::time::advance(DISTRUST - STALL_PAUSE).await;
        assert_eq!(trust.withdrawn(), []);
    }
}
