//! The lanes of a session: who fetches which stretch of the blob.
//!
//! One lane takes chunks in order from the best source; that one is `session`'s. For a reader far
//! ahead a further lane takes chunks from the node that was opened, which knows best what it has
//! ahead of the chain. As with an upstream, no byte belongs to two lanes: each has a segment of the
//! transfer, by whose rates readers know what is far. A chunk that comes ahead of the chain is
//! checked by the digest that comes with it, and by the chain when that has come there.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use millrace_protocol::chunk::{self, CHUNK_BYTES, ChainValue};
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::ReadChunks;
use tokio::sync::watch;

use crate::peer::{ChunkEvent, ChunkStream};
use crate::pull::claimed::Claimed;
use crate::pull::error::PullError;
use crate::pull::far::FarChunk;
use crate::pull::memory::Room;
use crate::pull::neighbours::Hop;
use crate::pull::sink::{Arrived, Check, Checked, Taken};
use crate::pull::transfer::{Phase, State};

use super::{Take, check, range};

/// Chunks that a far lane holds in memory at most: one that arrives, one that is written.
const CHUNKS_IN_MEMORY: u32 = 2;

/// Most chunks of one question of a far lane: between two of them others get a turn at the node
/// that was opened.
const READ_CHUNKS: u32 = 32;

/// What a far lane reports.
#[derive(Clone, Copy, Debug)]
pub(super) enum LaneEvent {
    /// A chunk is here.
    Here(u32),
    /// The node that was opened sent a chunk that is not what it says itself.
    Wrong(u32),
    /// The lane has ended.
    Ended,
}

type Events<'a> = BoxStream<'a, Result<LaneEvent, PullError>>;

/// The far lanes of a session.
pub(super) struct Lanes<'a> {
    take: Take<'a>,
    hop: Hop,
    size: u64,
    chain: watch::Receiver<Vec<ChainValue>>,
    running: SelectAll<Events<'a>>,
    /// Nothing is taken ahead of the chain any more: the node that was opened sent a wrong chunk, or has
    /// a part only.
    is_barred: bool,
}

impl<'a> Lanes<'a> {
    pub(super) fn new(
        take: Take<'a>,
        hop: Hop,
        size: u64,
        chain: watch::Receiver<Vec<ChainValue>>,
    ) -> Self {
        Self {
            take,
            hop,
            size,
            chain,
            running: SelectAll::new(),
            is_barred: false,
        }
    }

    /// Opens a lane for a reader at `position`, unless there are enough or one comes there soon.
    pub(super) fn begin(&mut self, position: u64) {
        let start = position - position % CHUNK_BYTES;
        // The end of a blob is nobody's before the whole is right.
        let is_barred = self.is_barred || self.take.sink.is_relaying();
        if is_barred || start + CHUNK_BYTES >= self.size {
            return;
        }
        let Some(room) = self.take.neighbours.memory.try_room(CHUNKS_IN_MEMORY) else {
            return;
        };
        let transfer = self.take.transfer;
        let Some(id) = transfer.change(|state| state.split(start, position)) else {
            return;
        };
        tracing::debug!(peer.id = %self.hop.peer.short(), start, "a lane for a far range");
        let lane = Lane {
            take: self.take,
            hop: self.hop,
            size: self.size,
            chain: self.chain.clone(),
            segment: Claimed::new(transfer, id),
            reading: None,
            _room: room,
        };
        self.running.push(lane.events().boxed());
    }

    /// Takes nothing ahead of the chain any more.
    pub(super) fn bar(&mut self) {
        self.is_barred = true;
        self.running.clear();
    }

    /// Waits for what a lane reports; for ever while there is none.
    ///
    /// # Errors
    /// What was taken cannot be stored.
    /// # Cancel safety
    /// No event is lost when dropped.
    pub(super) async fn next(&mut self) -> Result<LaneEvent, PullError> {
        match self.running.next().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

/// One far lane.
struct Lane<'a> {
    take: Take<'a>,
    hop: Hop,
    size: u64,
    chain: watch::Receiver<Vec<ChainValue>>,
    segment: Claimed<'a>,
    reading: Option<ChunkStream>,
    _room: Room,
}

impl<'a> Lane<'a> {
    fn events(self) -> impl stream::Stream<Item = Result<LaneEvent, PullError>> + Send + 'a {
        stream::unfold(Some(self), |lane| async move {
            let mut lane = lane?;
            match lane.next().await {
                Ok(event @ LaneEvent::Here(_)) => Some((Ok(event), Some(lane))),
                // With the segment given back before the session looks for the next stretch.
                end => {
                    drop(lane);
                    Some((end, None))
                }
            }
        })
    }

    /// Takes the next chunk.
    async fn next(&mut self) -> Result<LaneEvent, PullError> {
        // Its time is that of a source which says nothing, and covers what the check waits for.
        let patience = self.take.neighbours.source_patience;
        let event = tokio::time::timeout(patience, self.receive()).await;
        match event {
            Ok(Some(ChunkEvent::Chunk { index, .. } | ChunkEvent::Far { index, .. }))
                if !self.segment.chunks().contains(&index) =>
            {
                // Somebody else's meanwhile.
                Ok(LaneEvent::Ended)
            }
            Ok(Some(ChunkEvent::Chunk { index, bytes })) => self.take_chained(index, bytes).await,
            Ok(Some(ChunkEvent::Far {
                index,
                bytes,
                digest,
            })) => self.take_far(index, bytes, digest).await,
            // Whoever still waits asks for another lane.
            _ => Ok(LaneEvent::Ended),
        }
    }

    /// Takes a chunk that the chain has come to.
    async fn take_chained(
        &mut self,
        index: u32,
        bytes: Vec<Bytes>,
    ) -> Result<LaneEvent, PullError> {
        let Some(check) = self.check(index).await else {
            return Ok(LaneEvent::Ended);
        };
        if !self.has_room(index).await? {
            return Ok(LaneEvent::Ended);
        }
        let written = self.take.transfer.state().written.clone();
        let chunk = Arrived {
            offset: u64::from(index) * CHUNK_BYTES,
            bytes,
            check,
        };
        let checked = self.take.sink.take_checked(vec![chunk], written).await?;
        let [checked] = &checked[..] else {
            return Ok(LaneEvent::Ended);
        };
        Ok(self.show(index, checked, None))
    }

    /// Takes a chunk that has a digest of its own.
    async fn take_far(
        &mut self,
        index: u32,
        bytes: Vec<Bytes>,
        digest: Digest,
    ) -> Result<LaneEvent, PullError> {
        if !self.has_room(index).await? {
            return Ok(LaneEvent::Ended);
        }
        let start = u64::from(index) * CHUNK_BYTES;
        let checked = self.take.sink.take_far(start, bytes, digest).await?;
        let stated_by = Some(self.hop.peer);
        Ok(self.show(index, &checked, Some(FarChunk { digest, stated_by })))
    }

    /// Whether the disk has room for a chunk; only the lane ends for want of it.
    async fn has_room(&self, index: u32) -> Result<bool, PullError> {
        let Take { transfer, sink, .. } = self.take;
        let written = transfer.state().written.clone();
        let chunk = range(index, self.size);
        let is_awaited = transfer.is_awaited();
        let size = Some(self.size);
        match sink.reserve(size, chunk, &written, is_awaited).await {
            Err(error) if error.is_full() => Ok(false),
            reserved => reserved.map(|()| true).map_err(PullError::from),
        }
    }

    /// Receives the next chunk of this lane; `None` when it is over.
    async fn receive(&mut self) -> Option<ChunkEvent> {
        let last = u32::try_from(chunk::count(self.size))
            .ok()?
            .checked_sub(1)?;
        loop {
            let chunks = self.segment.chunks();
            if self.segment.is_over() || chunks.start >= last {
                return None;
            }
            if self.reading.is_none() {
                let question = ReadChunks {
                    digest: self.take.transfer.digest,
                    first: chunks.start,
                    count: (chunks.end.min(last) - chunks.start).min(READ_CHUNKS),
                    far: true,
                    copy: false,
                };
                let peers = &self.take.neighbours.peers;
                self.reading = Some(peers.read(self.hop.peer, question).await.ok()?);
            }
            match self.reading.as_mut()?.next().await {
                Ok(ChunkEvent::Done) => self.reading = None,
                Ok(event) => return Some(event),
                Err(error) => {
                    tracing::debug!(peer.id = %self.hop.peer.short(), %error, "a far lane broke");
                    return None;
                }
            }
        }
    }

    /// Waits until the chain tells what a chunk is checked by.
    async fn check(&mut self, index: u32) -> Option<Check> {
        let (digest, size) = (self.take.transfer.digest, self.size);
        let known = |chain: &Vec<ChainValue>| check(&digest, chain, index, size).is_some();
        let patience = self.take.neighbours.source_patience;
        let chain = tokio::time::timeout(patience, self.chain.wait_for(known));
        let chain = chain.await.ok()?.ok()?;
        check(&digest, &chain, index, size)
    }

    /// Shows a chunk to readers, if it was right and is in the file.
    fn show(&self, index: u32, checked: &Checked, far: Option<FarChunk>) -> LaneEvent {
        match checked {
            Checked::Wrong(_) => return LaneEvent::Wrong(index),
            // Readers of a window have no use for it.
            Checked::Right(Taken::Relayed(_)) => return LaneEvent::Ended,
            Checked::Right(Taken::Written) => {}
        }
        let range = range(index, self.size);
        let received = &self.take.neighbours.metrics.received_bytes;
        received.inc_by(range.end - range.start);
        self.take.transfer.change(|state: &mut State| {
            state.written.insert(range.clone());
            state.advance(self.segment.id(), range.end);
            if let Some(far) = far {
                state.far.insert(index, far);
            }
            state.phase = Phase::Flowing;
        });
        LaneEvent::Here(index)
    }
}
