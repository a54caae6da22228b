//! What members tell each other of rate limits, on a gossip topic of its own.
//!
//! It is heard from members only and passed on as it is; what it means is the upstream room's.

use libp2p::PeerId;
use libp2p::gossipsub::MessageAcceptance;
use millrace_protocol::membership::{Budgets, MAX_BUDGETS_BYTES, decode, encode};
use millrace_protocol::node_id::NodeId;

use super::super::metrics::Message;
use super::super::names::node_id;
use super::super::network::budgets_topic;
use super::{Driver, TICKS_PER_BUDGETS};

impl Driver {
    /// Tells what this node has been told: a new refusal at once, everything now and then for
    /// those who have come since.
    pub(super) fn tell_budgets_if_due(&mut self) {
        let Some(room) = self.publisher.budgets() else {
            return;
        };
        let refusals = room.refusals();
        let is_news = std::mem::replace(&mut self.progress.refusals_told, refusals) != refusals;
        if !is_news && !self.progress.ticks.is_multiple_of(TICKS_PER_BUDGETS) {
            return;
        }
        let words = room.words();
        if words.is_empty() {
            return;
        }
        let bytes = encode(&Budgets { words });
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        if let Err(error) = gossip.publish(budgets_topic(), bytes) {
            tracing::trace!(%error, "budgets not told");
        }
    }

    /// Takes in what another node has been told.
    pub(super) fn hear_budgets(&mut self, from: Option<&PeerId>, data: &[u8]) -> MessageAcceptance {
        let budgets = Some(data).filter(|data| data.len() <= MAX_BUDGETS_BYTES);
        let budgets = budgets.and_then(|data| decode::<Budgets>(data).ok());
        let budgets = budgets.filter(|budgets| budgets.check().is_ok());
        let (Some(from), Some(budgets)) = (from.and_then(node_id), budgets) else {
            tracing::debug!(peer.id = ?from, "budgets not believed");
            self.publisher.metrics().nonsense(Message::Budgets);
            return MessageAcceptance::Reject;
        };
        if self.is_stranger(&from) {
            return MessageAcceptance::Ignore;
        }
        if let Some(room) = self.publisher.budgets() {
            room.hear(from, budgets.words);
        }
        MessageAcceptance::Accept
    }

    fn is_stranger(&self, id: &NodeId) -> bool {
        self.membership.is_denied(id) || self.membership.member(id).is_none()
    }
}
