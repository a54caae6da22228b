//! Who has some content: first those who have told so, then those who have to be asked.

use std::collections::VecDeque;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::Purpose;
use tokio::time::Instant;

use super::neighbours::{Neighbours, Part, Whom};

/// A search for holders of one content; each is tried before the next is looked for.
#[derive(Debug)]
pub(super) struct Search<'a> {
    neighbours: &'a Neighbours,
    digest: Digest,
    purpose: Purpose,
    whom: Whom,
    /// Holders to try, the best first.
    found: VecDeque<NodeId>,
    /// When members were asked.
    asked: Option<Instant>,
    fetching: Option<NodeId>,
    parts: Vec<Part>,
}

impl<'a> Search<'a> {
    pub(super) fn new(neighbours: &'a Neighbours, digest: &Digest, purpose: Purpose) -> Self {
        Self {
            neighbours,
            digest: *digest,
            purpose,
            whom: Whom::InDoubt,
            found: neighbours.told(digest).into(),
            asked: None,
            fetching: None,
            parts: Vec::new(),
        }
    }

    /// Asks everybody, so that also those are found who have only a part.
    pub(super) fn for_parts(mut self) -> Self {
        self.whom = Whom::All;
        self
    }

    /// Returns the next holder to try; `None` when no other is known.
    ///
    /// # Cancel safety
    /// Dropping the future ends the questions; they are not put again.
    pub(super) async fn next(&mut self) -> Option<NodeId> {
        if self.found.is_empty() && self.asked.is_none() {
            self.asked = Some(Instant::now());
            let holders = self.neighbours.ask(&self.digest, self.purpose, self.whom);
            let holders = holders.await;
            self.found = holders.whole.into();
            self.fetching = holders.fetching;
            self.parts = holders.parts;
        }
        self.found.pop_front()
    }

    /// Returns a member to follow, because it fetches the same from an upstream; for who means to
    /// fetch it, when there is no further holder.
    ///
    /// Who has stated since the members were asked that it means to is asked back first: it has heard
    /// of this node's intent, and follows this node or counts on being followed.
    /// # Cancel safety
    /// Dropping the future ends the questions.
    pub(super) async fn fetching(&mut self) -> Option<NodeId> {
        if let (None, Some(asked)) = (self.fetching, self.asked) {
            self.fetching = self.neighbours.ask_back(&self.digest, asked).await;
        }
        self.fetching
    }

    /// Returns who has the beginning of it, the longest first; of those who were asked, and known
    /// when there is no further holder.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }
}
