//! Copies beyond the first: the other owners of a zone are asked to pull what its first owner has
//! just got (`cluster.replicas`).
//!
//! It is a favour, done once and without a promise: whoever cannot help now has the content pulled
//! through it when somebody asks. It never holds up a pull.

use std::sync::Arc;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{AskManifest, BlobNews, OpenBlob, OriginName, Role};
use tokio::sync::Semaphore;

use crate::peer::PeerError;
use crate::task::Tasks;

use super::neighbours::{Hop, Neighbours};

/// Most contents that other owners are being asked for; further ones are left out.
const MAX_RUNNING: usize = 32;

/// Asks other owners; clones share their bound.
#[derive(Clone, Debug)]
pub(super) struct Replicas {
    neighbours: Neighbours,
    tasks: Tasks,
    /// Owners of a zone that keep a copy, the first among them.
    wanted: usize,
    running: Arc<Semaphore>,
}

/// What is to be copied.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Blob,
    Manifest,
}

impl Replicas {
    pub(super) fn new(neighbours: Neighbours, tasks: Tasks, wanted: usize) -> Self {
        Self {
            neighbours,
            tasks,
            wanted,
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
        }
    }

    /// Has the other owners pull `digest`, if this node is its first owner; does not wait.
    pub(super) fn copy(&self, kind: Kind, digest: &Digest, origins: Vec<OriginName>) {
        let others = self.others(digest);
        if others.is_empty() {
            return;
        }
        let Ok(place) = Arc::clone(&self.running).try_acquire_owned() else {
            tracing::debug!(%digest, "too many copies are being made; this one is left out");
            return;
        };
        let (replicas, digest) = (self.clone(), *digest);
        let stopping = self.tasks.stopping();
        let span = tracing::info_span!("replicate", %digest);
        self.tasks.spawn(span, async move {
            let _place = place;
            tokio::select! {
                () = replicas.ask_all(kind, digest, &others, &origins) => {}
                () = stopping => {}
            }
        });
    }

    /// Returns the owners of the zone that keep a copy besides this node, which is the first.
    fn others(&self, digest: &Digest) -> Vec<NodeId> {
        let view = self.neighbours.view();
        let mut owners = view
            .placement()
            .owners(view.zone(), Key::of_digest(digest))
            .take(self.wanted);
        if owners.next() != Some(view.me()) {
            return Vec::new();
        }
        owners.collect()
    }

    async fn ask_all(&self, kind: Kind, digest: Digest, others: &[NodeId], origins: &[OriginName]) {
        for peer in others {
            let asked = match kind {
                Kind::Blob => self.ask_for_blob(*peer, digest, origins.to_vec()).await,
                Kind::Manifest => self.ask_for_manifest(*peer, digest, origins.to_vec()).await,
            };
            if let Err(error) = asked {
                tracing::debug!(peer.id = %peer.short(), %error, "no copy was made");
            }
        }
    }

    async fn ask_for_blob(
        &self,
        peer: NodeId,
        digest: Digest,
        origins: Vec<OriginName>,
    ) -> Result<(), PeerError> {
        let question = OpenBlob {
            digest,
            role: Role::Owner,
            origins,
            zone: self.neighbours.view().zone().to_owned(),
            have: 0,
            copy: true,
        };
        let hop = Hop {
            peer,
            role: question.role,
        };
        let mut news = self.neighbours.peers.open(peer, question).await?;
        // As long as this node listens the other one has a reason to pull.
        while let Some(news) = self.neighbours.news_of_copy(hop, &mut news).await? {
            if news == BlobNews::Whole {
                break;
            }
        }
        Ok(())
    }

    async fn ask_for_manifest(
        &self,
        peer: NodeId,
        digest: Digest,
        origins: Vec<OriginName>,
    ) -> Result<(), PeerError> {
        let question = AskManifest {
            digest,
            role: Role::Owner,
            origins,
        };
        let hop = Hop {
            peer,
            role: question.role,
        };
        let asking = self.neighbours.peers.manifest(peer, question);
        self.neighbours.in_time(hop, asking).await?;
        Ok(())
    }
}
