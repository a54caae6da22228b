//! Who has some content: first those who have told so, then those who have to be asked.

use std::collections::VecDeque;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::Purpose;

use super::neighbours::Neighbours;

/// A search for holders of one content; each is tried before the next is looked for.
#[derive(Debug)]
pub(super) struct Search<'a> {
    neighbours: &'a Neighbours,
    digest: Digest,
    purpose: Purpose,
    /// Holders to try, the best first.
    found: VecDeque<NodeId>,
    asked: bool,
    fetching: Option<NodeId>,
}

impl<'a> Search<'a> {
    pub(super) fn new(neighbours: &'a Neighbours, digest: &Digest, purpose: Purpose) -> Self {
        Self {
            neighbours,
            digest: *digest,
            purpose,
            found: neighbours.told(digest).into(),
            asked: false,
            fetching: None,
        }
    }

    /// Returns the next holder to try; `None` when no other is known.
    ///
    /// # Cancel safety
    /// Dropping the future ends the questions; they are not put again.
    pub(super) async fn next(&mut self) -> Option<NodeId> {
        if self.found.is_empty() && !self.asked {
            self.asked = true;
            let holders = self.neighbours.ask(&self.digest, self.purpose).await;
            self.found = holders.whole.into();
            self.fetching = holders.fetching;
        }
        self.found.pop_front()
    }

    /// Returns a member to follow, because it fetches the same from an upstream; known when there
    /// is no further holder.
    pub(super) fn fetching(&self) -> Option<NodeId> {
        self.fetching
    }
}
