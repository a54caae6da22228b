//! Listens to what the other members hold, for as long as the node runs.
//!
//! Each live member is asked to tell, and asked again when its stream has ended. What it tells goes
//! into the `directory`; this file decides nothing by it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use millrace_protocol::node_id::NodeId;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::peer::{Members, PeerError, Peers};

use super::directory::Directory;

/// How long a member is left alone that was just met, or whose stream has ended; the one of the
/// greater id waits twice as long. A member may not know this node yet: it would refuse the
/// connection, and then not be asked for a while. And of two nodes that dialled each other at the
/// same time, each would keep two connections, with half of the windows.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a member is only asked that holds more than can be kept, unless the placement changes
/// before.
const LONG_PAUSE: Duration = Duration::from_secs(600);

/// Keeps the directory as far as others let it.
#[derive(Debug)]
pub(super) struct Follower {
    pub(super) members: Arc<dyn Members>,
    pub(super) peers: Peers,
    pub(super) directory: Directory,
}

impl Follower {
    /// Follows everybody; does not return.
    ///
    /// # Cancel safety
    /// Dropping the future forgets what was told.
    pub(super) async fn run(self) {
        let mut changes = self.members.changes();
        let mut followed: HashSet<NodeId> = HashSet::new();
        let mut following = FuturesUnordered::new();
        loop {
            for peer in self.wanted() {
                if followed.insert(peer) {
                    following.push(self.follow(peer));
                }
            }
            tokio::select! {
                Some(peer) = following.next() => { followed.remove(&peer); }
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Returns whom to follow; nobody if this node is responsible for nothing.
    fn wanted(&self) -> Vec<NodeId> {
        let view = self.members.view();
        self.directory.retain(|id| view.member(id).is_some());
        if !view.placement().has_seat(&view.me()) {
            return Vec::new();
        }
        view.live().map(|member| member.id).collect()
    }

    /// Listens to one member, after a pause, until it ends.
    async fn follow(&self, peer: NodeId) -> NodeId {
        let is_first = self.members.view().me() < peer;
        sleep(if is_first { PAUSE } else { PAUSE * 2 }).await;
        if let Err(error) = self.listen(peer).await {
            tracing::debug!(peer.id = %peer.short(), %error, "holdings are not told any more");
        }
        peer
    }

    async fn listen(&self, peer: NodeId) -> Result<(), PeerError> {
        let mut changes = self.peers.follow(peer).await?;
        let telling = self.directory.open(peer);
        while let Some(change) = changes.next().await? {
            if telling.note(change).is_err() {
                drop(changes);
                tracing::warn!(
                    peer.id = %peer.short(),
                    "it holds more than can be kept in mind; it is asked instead"
                );
                // Meanwhile it is shown as what it is.
                self.pause_long().await;
                break;
            }
        }
        Ok(())
    }

    async fn pause_long(&self) {
        let before = self.members.view().placement().fingerprint();
        let mut changes: watch::Receiver<u64> = self.members.changes();
        let moved = changes.wait_for(|_| self.members.view().placement().fingerprint() != before);
        tokio::select! {
            // Without a sender there is nothing to follow either.
            _ = moved => {}
            () = sleep(LONG_PAUSE) => {}
        }
    }
}
