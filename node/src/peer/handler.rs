//! What a room above gives this one: the members to talk to, and the answers to their questions.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Digest, MediaType};
use millrace_protocol::wire::message::{
    AskHolds, AskManifest, AskVouch, BlobNews, Cause, Holding, HoldingsChange, OpenBlob,
    OriginName, Question, ReadChunks, RecallTag, Refusal, ResolveTag,
};
use tokio::sync::watch;

use crate::cluster::View;

/// Who may connect, and who can be connected to.
pub trait Members: Debug + Send + Sync + 'static {
    /// Returns the newest view; called within handshakes, so it waits for nothing.
    fn view(&self) -> Arc<View>;

    /// Tells of each new view.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Returns how busy a member says it is, which may be newer than the view.
    fn load(&self, id: &NodeId) -> u32 {
        self.view().member(id).map_or(0, |member| member.load)
    }
}

/// Answers the questions of peers.
///
/// A future or stream that is returned is dropped when the peer goes away. While it has nothing
/// to say the peer is told *pending*, so it may take as long as it must, if it waits for others.
pub trait Handler: Debug + Send + Sync + 'static {
    /// Tells about a blob, as the question's role demands, in the order of SPEC.md "Open".
    ///
    /// The stream goes on until the peer drops it; its end is the end of the news.
    fn open(
        &self,
        from: NodeId,
        question: OpenBlob,
    ) -> BoxStream<'static, Result<BlobNews, Refusal>>;

    /// Gives chunks in order, then one other event; what comes behind that is not asked for.
    fn read(&self, from: NodeId, question: ReadChunks) -> BoxStream<'static, ChunkEvent>;

    /// Gives a manifest.
    fn manifest(
        &self,
        from: NodeId,
        question: AskManifest,
    ) -> BoxFuture<'static, Result<PeerManifest, Refusal>>;

    /// Says what a tag points to.
    fn resolve(
        &self,
        from: NodeId,
        question: ResolveTag,
    ) -> BoxFuture<'static, Result<PeerTag, Refusal>>;

    /// Says what a tag last pointed to, if there is a record of it.
    fn recall(&self, from: NodeId, question: RecallTag) -> BoxFuture<'static, Option<PeerTag>>;

    /// Says which contents are here: one answer for each digest, in their order.
    fn holds(&self, from: NodeId, question: AskHolds) -> BoxFuture<'static, Vec<Holding>>;

    /// Says how long ago the upstream answered out of a repository that has this content; asks the
    /// upstream itself, and nobody else, if that is longer than the question allows.
    fn vouch(
        &self,
        from: NodeId,
        question: AskVouch,
    ) -> BoxFuture<'static, Result<Duration, Refusal>>;

    /// Tells which of what `from` is responsible for is here, and what changes about that, in the
    /// order of SPEC.md "Follow"; the peer room numbers what is told. Its end lets the peer ask
    /// anew.
    ///
    /// Who tells nothing is asked instead.
    fn follow(&self, _from: NodeId) -> BoxStream<'static, HoldingsChange> {
        Box::pin(stream::pending())
    }

    /// Says what is waited for now, before there can be a next answer to a question. If that is its own
    /// work for too long before the first, the question is given up: who asks had better ask elsewhere.
    fn waits_for(&self, _question: &Question) -> Cause {
        Cause::Others
    }

    /// Names who else may have the chunks, for a peer that finds all upload slots taken.
    fn others(&self, _from: NodeId, _question: ReadChunks) -> Vec<NodeId> {
        Vec::new()
    }
}

/// A manifest as a peer gives it; its digest is still to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerManifest {
    /// The exact `Content-Type`.
    pub media_type: MediaType,
    /// The bytes.
    pub bytes: Bytes,
    /// What it was fetched as.
    pub provenance: Vec<OriginName>,
}

/// What a peer says of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTag {
    /// The manifest that it points to.
    pub digest: Digest,
    /// Time since the upstream last said so.
    pub age: Duration,
    /// What it was resolved as.
    pub origin: OriginName,
}

/// What comes of a question for chunks: any number of chunks, then one of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkEvent {
    /// The next chunk, whole; whether its bytes are right is still to be checked.
    Chunk {
        /// Which one.
        index: u32,
        /// Its bytes, in order; not empty and at most `CHUNK_BYTES` together.
        bytes: Vec<Bytes>,
    },
    /// The next chunk, as [`ChunkEvent::Chunk`], ahead of the blob's chain.
    Far {
        /// Which one.
        index: u32,
        /// Its bytes, in order; `CHUNK_BYTES` together.
        bytes: Vec<Bytes>,
        /// What they were when they came to the node that had them of an upstream.
        digest: Digest,
    },
    /// All chunks that were asked for have come.
    Done,
    /// The next chunk is not there yet.
    NotYet,
    /// All upload slots are taken.
    Busy {
        /// Who may have the chunk.
        ask: Vec<NodeId>,
    },
    /// The blob is not there.
    Absent,
}
