//! What a peer tells of its holdings, in order.
//!
//! The numbers of the protocol are checked here: what is missing, repeated or out of order ends the
//! stream, because whoever believes it would take a holder for none. What is told is kept by the
//! room above.

use std::sync::Arc;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::wire::message::{Answer, HoldingsChange, HoldingsNews, Question};

use super::ask::{self, Asked};
use super::error::PeerError;
use super::links::Links;

/// Changes in the order of SPEC.md "Follow", which is checked; dropping it tells the peer.
#[derive(Debug)]
pub struct HoldingsStream {
    asked: Asked,
    /// Number that the next news has to have.
    expected: u64,
    phase: Phase,
}

/// How far a telling has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was told.
    Silent,
    /// It has begun, or begun anew.
    Begun,
    /// All was told.
    InSync,
}

impl HoldingsStream {
    /// Asks `peer` to tell.
    pub(super) async fn open(links: &Arc<Links>, peer: NodeId) -> Result<Self, PeerError> {
        let asked = ask::ask(links, peer, &Question::Follow).await?;
        Ok(Self {
            asked,
            expected: 0,
            phase: Phase::Silent,
        })
    }

    /// Returns the next change: first `Began`; `None` when the peer has ended the stream.
    ///
    /// # Errors
    /// `Silent` after three seconds without a sign of life, `Disordered` when a number or a change
    /// does not fit; the stream is then of no further use.
    /// # Cancel safety
    /// No change is lost when dropped.
    pub async fn next(&mut self) -> Result<Option<HoldingsChange>, PeerError> {
        let news = match self.asked.next().await? {
            None => return Ok(None),
            Some(Answer::Holdings(news)) => news,
            Some(_) => return Err(self.asked.disordered("something that is no holdings")),
        };
        match self.misfit(&news) {
            None => Ok(Some(news.change)),
            Some(what) => Err(self.asked.disordered(what)),
        }
    }

    /// Takes note of news, or says what is wrong with them.
    fn misfit(&mut self, news: &HoldingsNews) -> Option<&'static str> {
        if news.sequence != self.expected {
            return Some("holdings out of order");
        }
        self.expected += 1;
        self.phase = match (&news.change, self.phase) {
            (HoldingsChange::Began { .. }, _) => Phase::Begun,
            (_, Phase::Silent) => return Some("holdings before their beginning"),
            (HoldingsChange::InSync, Phase::InSync) => return Some("a second end of holdings"),
            (HoldingsChange::InSync, Phase::Begun) => Phase::InSync,
            (_, phase) => phase,
        };
        None
    }
}
