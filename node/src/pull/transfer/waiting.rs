//! Whom a blob on its way waits for, and which other nodes would wait for this one in vain.
//!
//! Each hop puts its takers in an order in which nobody waits for who came later. Who has turned to
//! another hop is out of it: those whom it was named to may be whom it waits for now. So such a node
//! keeps nobody waiting, nor does any keep those whom it knows to wait for itself. Decisions only.

use millrace_protocol::node_id::NodeId;

/// What is waited for, of other nodes that wait as well.
#[derive(Debug, Default)]
pub(in crate::pull) struct Waiting {
    /// Where the blob is opened, unless that is a holder, which waits for nobody.
    hop: Option<NodeId>,
    /// Whom it was read from last, behind that opening.
    source: Option<NodeId>,
    /// Which hop was left last.
    left: Option<NodeId>,
    is_adrift: bool,
}

impl Waiting {
    /// Notes where the blob is opened. At the hop that was left it has its former place again.
    pub(in crate::pull) fn begin(&mut self, hop: NodeId) {
        self.is_adrift |= self.left.is_some_and(|left| left != hop);
        self.hop = Some(hop);
        self.source = None;
    }

    /// Notes who is asked for chunks; a holder is the only source behind its own opening.
    pub(in crate::pull) fn read_from(&mut self, source: NodeId) {
        self.source = self.hop.and(Some(source));
    }

    /// Notes that the hop is left before all of the blob came.
    pub(in crate::pull) fn leave_hop(&mut self) {
        self.left = self.hop.take().or(self.left);
        self.source = None;
    }

    /// Notes that the hop is gone: it keeps nobody, so all its takers meet again at the next one.
    pub(in crate::pull) fn lose_hop(&mut self) {
        self.hop = None;
        self.source = None;
    }

    /// Notes that no hop is waited for any more.
    pub(in crate::pull) fn end(&mut self) {
        *self = Self::default();
    }

    /// Notes that more of the blob came, from whomever.
    pub(in crate::pull) fn get_on(&mut self) {
        self.is_adrift = false;
    }

    /// Whether it has turned to another hop, and nothing came since.
    pub(in crate::pull) fn is_adrift(&self) -> bool {
        self.is_adrift
    }

    /// Whether what is missing here is waited for from this node.
    pub(in crate::pull) fn is_for(&self, peer: NodeId) -> bool {
        self.hop == Some(peer) || self.source == Some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: NodeId = NodeId::new([1; 32]);
    const OTHER: NodeId = NodeId::new([2; 32]);

    #[test]
    fn who_is_opened_or_read_is_waited_for_until_the_hop_is_left() {
        let mut waiting = Waiting::default();
        waiting.begin(HOP);
        waiting.read_from(OTHER);
        assert!(waiting.is_for(HOP) && waiting.is_for(OTHER));
        waiting.leave_hop();
        assert!(!waiting.is_for(HOP) && !waiting.is_for(OTHER));
    }

    #[test]
    fn who_turns_to_another_hop_is_adrift_until_something_comes() {
        let mut waiting = Waiting::default();
        for hop in [HOP, HOP] {
            waiting.begin(hop);
            assert!(!waiting.is_adrift());
            waiting.leave_hop();
        }
        assert!(
            !waiting.is_adrift(),
            "it may be a home, which waits for no hop"
        );
        waiting.begin(OTHER);
        assert!(waiting.is_adrift());
        waiting.get_on();
        assert!(!waiting.is_adrift());
    }

    #[test]
    fn who_has_lost_its_hop_is_not_adrift_at_the_next_one() {
        let mut waiting = Waiting::default();
        waiting.begin(HOP);
        waiting.read_from(OTHER);
        waiting.lose_hop();
        assert!(!waiting.is_for(HOP) && !waiting.is_for(OTHER));
        waiting.leave_hop();
        waiting.begin(OTHER);
        assert!(!waiting.is_adrift());
    }

    #[test]
    fn a_holder_is_not_waited_for() {
        let mut waiting = Waiting::default();
        waiting.read_from(OTHER);
        assert!(!waiting.is_for(OTHER));
    }
}
