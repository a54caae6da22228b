//! How long a session waits: for a source that was asked, for check values that the hop owes, and for
//! a hop that lives to get anywhere; and what it thinks of a source that lives and gives nothing.
//!
//! Who is turned to instead is not decided here.

use std::time::Duration;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::wire::message::Cause;
use tokio::time::Instant;

use crate::peer::PeerError;
use crate::pull::take::Ended;

use super::Session;

/// How long the hop may owe the check value of a chunk that has come, with no other value: as long
/// as a peer may say nothing, because nobody sends a chunk before its value is known to all.
const OWED: Duration = Duration::from_secs(3);

impl Session<'_> {
    /// Whether the next chunk is waited for, or its check value, and nothing else.
    pub(super) fn is_waiting(&self) -> bool {
        (self.reading.is_some() || self.writes.are_waiting()) && !self.writes.are_running()
    }

    /// Returns until when what is waited for may come.
    pub(super) fn stalls_at(&self) -> Instant {
        let patience = if self.writes.are_waiting() {
            OWED
        } else {
            self.take.neighbours.source_patience
        };
        self.heard + patience
    }

    /// Returns until when the hop has to get anywhere.
    pub(super) fn stuck_at(&self) -> Instant {
        self.got_on + self.take.neighbours.hop_patience(self.hop.role)
    }

    /// Counts the time of others from now on: while this node wrote, or passed on at its client's
    /// pace, it listened to nobody.
    pub(super) fn listen_anew(&mut self) {
        self.heard = Instant::now();
        self.got_on = self.heard;
    }

    /// Takes note of what the hop waits for: while that is its turn, it is not stuck.
    pub(super) fn handle_delay(&mut self) {
        if *self.delays.borrow_and_update() == Cause::Turn {
            self.got_on = Instant::now();
        }
    }

    /// Leaves whoever keeps this node waiting: it lives, and is of no use. Returns how the session
    /// ends if it does.
    pub(super) fn handle_stalled(&mut self) -> Option<Ended> {
        let culprit = if self.writes.are_waiting() {
            // Nobody sends a chunk before its check value has been told to all.
            self.hop.peer
        } else {
            self.reading = None;
            self.taking.reading()?
        };
        self.take.neighbours.trust.leave_alone(culprit);
        if culprit == self.hop.peer {
            return Some(Ended::PassedOver);
        }
        self.taking.handle_wrong(culprit);
        None
    }

    /// Leaves a source that lives and broke off its answer for a moment; one that does nothing else is
    /// left by all takes of this node, or each hop and each blob would find it out anew. Returns how the
    /// session ends if it does: those whom a hop has named may wait for this node.
    pub(super) fn handle_broken_off(&mut self, source: NodeId) -> Option<Ended> {
        self.taking.handle_broken_off(self.began.elapsed());
        if !self.taking.is_banned(&source) {
            return None;
        }
        self.take.neighbours.trust.leave_alone(source);
        (source == self.hop.peer).then_some(Ended::PassedOver)
    }

    /// Leaves a hop that lives and says *not yet* and no more: its own hop, or its disk, may be stuck.
    pub(super) fn stuck(&self) -> Ended {
        let peer = self.hop.peer;
        if !self.take.is_copy {
            // Others go first there.
            self.take.neighbours.trust.leave_alone(peer);
        }
        self.take.passed_over(self.hop, &PeerError::Stuck { peer })
    }
}
