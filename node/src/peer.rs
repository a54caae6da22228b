//! Exchange of content with the other nodes, over QUIC: SPEC.md of the protocol crate.
//!
//! Both directions use one UDP socket. This room asks and answers, keeps connections, and keeps
//! everything that a peer sends within bounds; both ends prove who they are in the handshake, and
//! only members of the current view are talked to. What to ask, whom, what to answer, and whether
//! content is right is the business of the room above, which hands in a [`Handler`]. Who is a
//! member is the cluster's, which comes in as [`Members`].

mod accept;
mod answer;
mod ask;
mod blob_stream;
mod chunk_stream;
mod config;
mod endpoint;
mod error;
mod handler;
mod holdings_stream;
mod inbox;
mod link;
mod links;
mod metrics;
mod outbox;
pub mod raw_key;
mod status;
mod tls;
mod uploads;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::wire::message::{
    AskHolds, AskManifest, AskVouch, Holding, OpenBlob, ReadChunks, RecallTag, ResolveTag,
};
use prometheus_client::registry::Registry;
use tokio::time::timeout;
use tracing::{info, info_span};

pub use blob_stream::BlobStream;
pub use chunk_stream::ChunkStream;
pub use config::Config;
pub use error::{BindError, DialError, PeerError};
pub use handler::{ChunkEvent, Handler, Members, PeerManifest, PeerTag};
pub use holdings_stream::HoldingsStream;
pub use status::{PeerStatus, Status, Unreachable};

use answer::Answerer;
use link::Close;
use links::Links;
use metrics::Metrics;
use tls::Gate;

use crate::cluster::Identity;
use crate::task::Tasks;

/// How long the last packets may take to leave when the exchange is closed.
const CLOSE_PATIENCE: Duration = Duration::from_millis(500);

/// The exchange with peers; clones share it.
#[derive(Clone, Debug)]
pub struct Peers {
    links: Arc<Links>,
}

impl Peers {
    /// Opens the UDP socket. Peers can be asked at once; they are answered from
    /// [`Peers::serve`] on.
    ///
    /// # Errors
    /// [`BindError`] when the address is not to be had.
    pub fn bind(
        config: &Config,
        identity: &Identity,
        members: Arc<dyn Members>,
        tasks: &Tasks,
    ) -> Result<Self, BindError> {
        let metrics = Metrics::default();
        let gate = Arc::new(Gate::new(identity, members.clone(), metrics.clone())?);
        let endpoint = endpoint::bind(config, identity, &gate)?;
        let links = Arc::new(Links::new(
            config.clone(),
            endpoint,
            (gate, members),
            metrics,
            tasks.clone(),
        ));
        let (shared, stopping) = (links.clone(), tasks.stopping());
        tasks.spawn(info_span!("peer.members"), async move {
            tokio::select! {
                () = shared.clone().follow_members() => {}
                () = stopping => Close::Stopping.apply_to(&shared.endpoint),
            }
        });
        Ok(Self { links })
    }

    /// Begins to let peers connect and to answer them; a second call has no effect.
    pub fn serve(&self, handler: Arc<dyn Handler>) {
        let uploads = usize::from(self.links.config.uploads.get());
        if self.links.set_answerer(Answerer::new(handler, uploads)) {
            let links = self.links.clone();
            let span = info_span!("peer.accept");
            self.links.tasks.spawn(span, accept::accept(links));
            info!(address = ?self.local_address(), "answering peers");
        }
    }

    /// Returns the UDP address that is listened on.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.links.endpoint.local_addr().ok()
    }

    /// Asks `peer` for a blob; the news come from the stream.
    ///
    /// # Errors
    /// [`PeerError`] when the peer cannot be asked. That it refuses comes from the stream.
    /// # Cancel safety
    /// Dropping the future, like dropping the stream, tells the peer that it is not wanted.
    pub async fn open(&self, peer: NodeId, question: OpenBlob) -> Result<BlobStream, PeerError> {
        BlobStream::open(&self.links, peer, question).await
    }

    /// Asks `peer` for chunks, which come from the stream.
    ///
    /// # Errors
    /// [`PeerError`] when the peer cannot be asked.
    /// # Cancel safety
    /// As [`Peers::open`].
    pub async fn read(&self, peer: NodeId, question: ReadChunks) -> Result<ChunkStream, PeerError> {
        ChunkStream::read(&self.links, peer, question).await
    }

    /// Asks `peer` for a manifest, whose digest is still to be checked.
    ///
    /// # Errors
    /// [`PeerError`].
    /// # Cancel safety
    /// As [`Peers::open`].
    pub async fn manifest(
        &self,
        peer: NodeId,
        question: AskManifest,
    ) -> Result<PeerManifest, PeerError> {
        ask::manifest(&self.links, peer, question).await
    }

    /// Asks `peer` what a tag points to.
    ///
    /// # Errors
    /// [`PeerError`].
    /// # Cancel safety
    /// As [`Peers::open`].
    pub async fn resolve(&self, peer: NodeId, question: ResolveTag) -> Result<PeerTag, PeerError> {
        ask::resolve(&self.links, peer, question).await
    }

    /// Asks `peer` what it last knew of a tag; `None` when it has no record.
    ///
    /// # Errors
    /// [`PeerError`].
    /// # Cancel safety
    /// As [`Peers::open`].
    pub async fn recall(
        &self,
        peer: NodeId,
        question: RecallTag,
    ) -> Result<Option<PeerTag>, PeerError> {
        ask::recall(&self.links, peer, question).await
    }

    /// Asks `peer` which contents it has: one answer for each digest, in their order.
    ///
    /// # Errors
    /// [`PeerError`]; `Silent` after `patience`, whatever the reason, or after four times as long where
    /// there was no connection and none came about.
    /// # Cancel safety
    /// As [`Peers::open`].
    pub async fn holds(
        &self,
        peer: NodeId,
        question: AskHolds,
        patience: Duration,
    ) -> Result<Vec<Holding>, PeerError> {
        ask::holds(&self.links, peer, question, patience).await
    }

    /// Asks `peer` how long ago the upstream answered out of a repository that has some content.
    ///
    /// # Errors
    /// [`PeerError`]; `Refused` with what the upstream said.
    /// # Cancel safety
    /// As [`Peers::open`].
    pub async fn vouch(&self, peer: NodeId, question: AskVouch) -> Result<Duration, PeerError> {
        ask::vouch(&self.links, peer, question).await
    }

    /// Asks `peer` to tell what it holds of that which this node is responsible for; the changes
    /// come from the stream.
    ///
    /// # Errors
    /// [`PeerError`] when the peer cannot be asked.
    /// # Cancel safety
    /// As [`Peers::open`].
    pub async fn follow(&self, peer: NodeId) -> Result<HoldingsStream, PeerError> {
        HoldingsStream::open(&self.links, peer).await
    }

    /// Returns how many chunk requests of peers are being served.
    pub fn uploads(&self) -> usize {
        self.links.uploads()
    }

    /// Whether asking `peer` has a chance: false while connecting to it fails. One that has come
    /// back, or moved, since it was last tried has one.
    pub fn is_reachable(&self, peer: &NodeId) -> bool {
        let link = self.links.known(peer);
        link.is_none_or(|link| self.links.outage(&link).is_none())
    }

    /// Returns the round-trip time to `peer`; `None` without a connection.
    pub fn round_trip(&self, peer: &NodeId) -> Option<Duration> {
        self.links.known(peer)?.round_trip()
    }

    /// Returns what an operator may want to know.
    pub fn status(&self) -> Status {
        let links = self.links.all();
        Status {
            peers: links.iter().map(|link| PeerStatus::of(link)).collect(),
        }
    }

    /// Adds this room's metrics to `registry`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.links.metrics.register(registry);
    }

    /// Closes all connections and tells the peers.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the connections closed; peers may not hear of it.
    pub async fn close(&self) {
        Close::Stopping.apply_to(&self.links.endpoint);
        // Who does not confirm in time will find out by itself.
        let _ = timeout(CLOSE_PATIENCE, self.links.endpoint.wait_idle()).await;
    }
}
