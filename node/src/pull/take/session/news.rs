//! What the hop says of the blob that was opened there: chain, sources, whole.
//!
//! Whatever it says is held against what it said before and what is here. Chunks are `arrivals`'.

use millrace_protocol::node_id::NodeId;
use millrace_protocol::wire::message::BlobNews;
use tokio::time::Instant;

use crate::peer::PeerError;
use crate::pull::error::PullError;
use crate::pull::fill::Halt;

use super::{Ended, Session, Take};

impl Session<'_> {
    /// Reads from the sources that the hop names, at last from the hop itself.
    pub(super) fn use_sources(&mut self, sources: Vec<NodeId>) {
        let mut sources = self.usable(sources);
        sources.retain(|source| *source != self.hop.peer);
        sources.push(self.hop.peer);
        self.taking.handle_sources(sources);
    }

    /// Returns those of the nodes that somebody has named from which this one reads: other members, of
    /// whom nothing bad is known.
    pub(super) fn usable(&self, mut named: Vec<NodeId>) -> Vec<NodeId> {
        let neighbours = self.take.neighbours;
        let view = neighbours.view();
        named.retain(|node| *node != view.me() && view.member(node).is_some());
        named.retain(|node| neighbours.trust.is_given(node));
        named
    }

    /// Takes over news. Returns how the session ends if it does.
    pub(super) fn handle_news(
        &mut self,
        news: Result<Option<BlobNews>, PeerError>,
    ) -> Option<Ended> {
        self.got_on = Instant::now();
        match news {
            Ok(Some(BlobNews::Chain { first, values })) => {
                let before = self.chained();
                let expected = u32::try_from(before) == Ok(first);
                self.chain.send_modify(|chain| chain.extend(values));
                let told = u32::try_from(self.chained()).unwrap_or(u32::MAX);
                self.taking.handle_told(self.began.elapsed(), told);
                if self.writes.are_waiting() {
                    self.heard = Instant::now();
                }
                if !expected || self.chained() > self.chain_length() {
                    return Some(self.contradicted("its chain does not go with its size"));
                }
                // Which of two hops is wrong shows the digest only.
                (!self.agrees_with_own(before)).then(|| {
                    tracing::warn!(peer.id = %self.hop.peer.short(), "it states another chain");
                    Ended::PassedOver
                })
            }
            Ok(Some(BlobNews::Sources(sources))) => {
                self.use_sources(sources);
                None
            }
            Ok(Some(BlobNews::Whole)) => (self.chained() < self.chain_length())
                .then(|| self.contradicted("it has the whole and tells no chain of it")),
            Ok(Some(BlobNews::Opened { .. })) => Some(Ended::PassedOver),
            Ok(None) => {
                self.news = None;
                // It has a part: without further values nothing more can be checked.
                if self.chained() < self.chain_length() {
                    self.end = u32::try_from(self.chained()).unwrap_or(u32::MAX);
                    // It may have got more since, whose values nobody tells.
                    self.writes.drop_from(self.end);
                    // It would have to ask others for what lies behind, perhaps this node.
                    self.lanes.bar();
                    self.end_read_at_stretch();
                }
                None
            }
            Err(error) => Some(self.take.passed_over(self.hop, &error)),
        }
    }

    /// Gives up a hop that contradicts itself.
    pub(super) fn contradicted(&self, how: &'static str) -> Ended {
        tracing::warn!(peer.id = %self.hop.peer.short(), "{how}");
        self.take.neighbours.trust.distrust(self.hop.peer);
        Ended::PassedOver
    }

    /// Returns how many values the hop has stated.
    pub(super) fn chained(&self) -> usize {
        self.chain.borrow().len()
    }

    /// Returns how many values lead from the first chunk to the last one.
    pub(super) fn chain_length(&self) -> usize {
        (self.chunks().max(1) - 1) as usize
    }

    /// Whether the stated chain, from its `first` value on, is the one of the bytes that are here.
    pub(super) fn agrees_with_own(&self, first: usize) -> bool {
        let state = self.take.transfer.state();
        let stated = self.chain.borrow();
        let own = state.chain.iter().skip(first);
        own.zip(stated.iter().skip(first))
            .all(|(own, stated)| own == stated)
    }

    /// Shows how far the bytes here, also those that came ahead of the chain, lead to the values
    /// that the hop has stated.
    ///
    /// # Errors
    /// What came ahead of the chain does not.
    pub(super) fn confirm(&self) -> Result<(), Halt> {
        let Take { transfer, sink, .. } = self.take;
        let stated = self.chain.borrow();
        let contradicted = transfer.change(|state| {
            let agreed = sink.publish_agreed(&mut state.chain, &stated);
            state.far.forget(state.chain.len());
            agreed.err().and_then(|index| state.far.get(index).copied())
        });
        let Some(chunk) = contradicted else {
            return Ok(());
        };
        // Both are the hop's word; where not, nobody knows who was wrong.
        if chunk.stated_by == Some(self.hop.peer) {
            self.take.neighbours.trust.distrust(self.hop.peer);
        }
        let digest = transfer.digest;
        Err(Halt::Transfer(PullError::Contradicted { digest }))
    }
}
