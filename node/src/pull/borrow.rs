//! The way of one blob through the cluster: owner, home, whoever holds it.
//!
//! Hops are tried one after another; what one brought stays. Nothing that happens here makes a
//! pull fail which the upstream could serve, except content that turned out to be wrong.

use std::sync::Arc;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{Purpose, Role};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::error::PullError;
use super::fill::Halt;
use super::metrics::FoundOut;
use super::neighbours::{HOPS_PATIENCE, Hop, MAX_HOPS, Neighbours};
use super::rank::Rank;
use super::sink::Sink;
use super::take::{Ended, Take};
use super::transfer::Transfer;

/// What a blob is borrowed with.
#[derive(Clone, Copy)]
pub(super) struct Borrow<'a> {
    pub(super) transfer: &'a Arc<Transfer>,
    pub(super) sink: &'a Sink,
    pub(super) neighbours: &'a Neighbours,
}

impl Borrow<'_> {
    /// Gets what is missing from other nodes. Returns whether all is here.
    ///
    /// Afterwards the transfer acts as a home: it is about to ask an upstream.
    ///
    /// # Errors
    /// The content turned out to be wrong, or cannot be stored; `Stopped` when nobody who has all of it
    /// can give what is missing for a copy.
    /// # Cancel safety
    /// Dropping the future loses the chunks that were not written yet.
    pub(super) async fn run(self, far: &mut mpsc::Receiver<u64>) -> Result<bool, PullError> {
        if !self.transfer.is_awaited() && self.copy(far).await? {
            return Ok(true);
        }
        if self.follow(far).await? {
            return Ok(true);
        }
        // The intent is recorded before anybody is asked, so that of two nodes that mean to fetch
        // the same one sees the other's.
        self.transfer.raise(Rank::Home);
        self.take_from_holders(far).await
    }

    /// Takes what is missing from who asks for a copy, else from the nearest who has all of it, for as
    /// long as nobody waits for it. Nobody is asked to get it, so that no copy waits for another; and it
    /// is not what this node means to fetch. Returns whether all is here, or else that somebody waits.
    async fn copy(self, far: &mut mpsc::Receiver<u64>) -> Result<bool, PullError> {
        let role = Role::Holder;
        let mut next = self.transfer.state().offered_by;
        let digest = &self.transfer.digest;
        let mut search = self.neighbours.search(digest, Purpose::Know);
        loop {
            if let Some(peer) = next
                && let Ended::Complete =
                    through(self.take(Rank::Home), Hop { peer, role }, far).await?
            {
                return Ok(true);
            }
            next = tokio::select! {
                biased;
                () = self.transfer.awaited() => return Ok(false),
                found = search.next() => Some(found.ok_or(PullError::Stopped)?),
            };
        }
    }

    /// Follows hops until one has supplied what is missing. Returns whether one has.
    ///
    /// Each is chosen in the view of its moment: when the home dies in the middle of a blob, its
    /// takers meet again at the next one. Only time without a byte counts against the hops, and one
    /// that says that it works is waited for.
    async fn follow(self, far: &mut mpsc::Receiver<u64>) -> Result<bool, PullError> {
        let key = Key::of_digest(&self.transfer.digest);
        let mut passed_over: Vec<Hop> = Vec::new();
        let mut in_vain = 0;
        let mut deadline = Instant::now() + HOPS_PATIENCE;
        while in_vain < MAX_HOPS && Instant::now() < deadline {
            let rank = self.neighbours.rank(key, self.transfer.rank());
            self.transfer.raise(rank);
            let mut hops = self.neighbours.hops(key, rank).into_iter();
            let Some(hop) = hops.find(|hop| !passed_over.contains(hop)) else {
                break;
            };
            if self.transfer.candidates().are_exhausted() {
                break;
            }
            let before = self.transfer.state().here_bytes();
            let take = Take {
                heard_by: Some(deadline),
                ..self.take(rank)
            };
            match through(take, hop, far).await? {
                Ended::Complete => return Ok(true),
                Ended::Raised => {}
                Ended::PassedOver => {
                    passed_over.push(hop);
                    if self.neighbours.trust.found_out(&hop.peer) == Some(FoundOut::wrong) {
                        self.transfer.change(|state| state.is_doubted = true);
                    }
                }
            }
            in_vain += 1;
            if self.transfer.state().here_bytes() > before {
                in_vain = 0;
                deadline = Instant::now() + HOPS_PATIENCE;
            }
        }
        Ok(false)
    }

    /// Takes what is missing from members that have all of it, else follows one that fetches it,
    /// else takes what others had got when whom they took it from was gone.
    async fn take_from_holders(self, far: &mut mpsc::Receiver<u64>) -> Result<bool, PullError> {
        let digest = &self.transfer.digest;
        let mut search = self.neighbours.search(digest, Purpose::Fetch);
        if self.transfer.state().was_begun() {
            search = search.for_parts();
        }
        while let Some(peer) = search.next().await {
            if self.through_holder(peer, far).await? {
                return Ok(true);
            }
        }
        // Who has asked an upstream is followed by others, and follows nobody: who had a part when it
        // was asked may be one of them by now.
        if self.transfer.state().has_asked {
            return Ok(false);
        }
        if let Some(peer) = search.fetching().await {
            return self.through_holder(peer, far).await;
        }
        if self.transfer.state().is_doubted {
            return Ok(false);
        }
        for part in search.parts() {
            let is_more = part.chunks as usize > self.transfer.state().chain.len();
            if is_more && self.through_holder(part.peer, far).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn through_holder(
        self,
        peer: NodeId,
        far: &mut mpsc::Receiver<u64>,
    ) -> Result<bool, PullError> {
        let role = Role::Holder;
        loop {
            match through(self.take(Rank::Home), Hop { peer, role }, far).await? {
                Ended::Complete => return Ok(true),
                Ended::PassedOver => return Ok(false),
                // There is no greater rank: somebody waits for it now.
                Ended::Raised => {}
            }
        }
    }

    fn take(&self, rank: Rank) -> Take<'_> {
        Take {
            transfer: self.transfer,
            sink: self.sink,
            neighbours: self.neighbours,
            rank,
            is_copy: !self.transfer.is_awaited(),
            heard_by: None,
        }
    }
}

async fn through(
    take: Take<'_>,
    hop: Hop,
    far: &mut mpsc::Receiver<u64>,
) -> Result<Ended, PullError> {
    match take.through(hop, far).await {
        Ok(ended) => Ok(ended),
        Err(Halt::Transfer(error) | Halt::Origin(error)) => Err(error),
    }
}
