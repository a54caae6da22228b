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
use super::neighbours::{HOPS_PATIENCE, Hop, Neighbours};
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
    /// The content turned out to be wrong, or cannot be stored.
    /// # Cancel safety
    /// Dropping the future loses the chunks that were not written yet.
    pub(super) async fn run(self, far: &mut mpsc::Receiver<u64>) -> Result<bool, PullError> {
        let key = Key::of_digest(&self.transfer.digest);
        let deadline = Instant::now() + HOPS_PATIENCE;
        loop {
            let rank = self.neighbours.rank(key, self.transfer.rank());
            self.transfer.raise(rank);
            let hops = self.neighbours.hops(key, rank);
            match self.follow(&hops, rank, deadline, far).await? {
                Ended::Complete => return Ok(true),
                Ended::PassedOver => break,
                Ended::Raised => {}
            }
        }
        // The intent is recorded before anybody is asked, so that of two nodes that mean to fetch
        // the same one sees the other's.
        self.transfer.raise(Rank::Home);
        self.take_from_holders(far).await
    }

    /// Tries hops until one has supplied what is missing.
    async fn follow(
        self,
        hops: &[Hop],
        rank: Rank,
        deadline: Instant,
        far: &mut mpsc::Receiver<u64>,
    ) -> Result<Ended, PullError> {
        for hop in hops {
            if Instant::now() >= deadline || self.transfer.candidates().are_exhausted() {
                break;
            }
            match self.through(*hop, rank, far).await? {
                Ended::PassedOver => {}
                ended => return Ok(ended),
            }
        }
        Ok(Ended::PassedOver)
    }

    async fn take_from_holders(self, far: &mut mpsc::Receiver<u64>) -> Result<bool, PullError> {
        let digest = &self.transfer.digest;
        let mut search = self.neighbours.search(digest, Purpose::Fetch);
        while let Some(peer) = search.next().await {
            if self.through_holder(peer, far).await? {
                return Ok(true);
            }
        }
        match search.fetching() {
            Some(peer) => self.through_holder(peer, far).await,
            None => Ok(false),
        }
    }

    async fn through_holder(
        self,
        peer: NodeId,
        far: &mut mpsc::Receiver<u64>,
    ) -> Result<bool, PullError> {
        let role = Role::Holder;
        let ended = self.through(Hop { peer, role }, Rank::Home, far).await?;
        Ok(matches!(ended, Ended::Complete))
    }

    async fn through(
        self,
        hop: Hop,
        rank: Rank,
        far: &mut mpsc::Receiver<u64>,
    ) -> Result<Ended, PullError> {
        let take = Take {
            transfer: self.transfer,
            sink: self.sink,
            neighbours: self.neighbours,
            rank,
        };
        match take.through(hop, far).await {
            Ok(ended) => Ok(ended),
            Err(Halt::Transfer(error) | Halt::Origin(error)) => Err(error),
        }
    }
}
