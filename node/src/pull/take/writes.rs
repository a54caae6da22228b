//! Chunks that have arrived in order: they wait for their check values, then are checked and written.
//!
//! In batches, since each costs a thread's wake-up, and two of these at a time: one is hashed while
//! the other is written. Where chunks come from, and what follows from a wrong one, is `session`'s.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use millrace_protocol::chunk::ChainValue;
use millrace_protocol::node_id::NodeId;

use crate::pull::claimed::Claimed;
use crate::pull::error::PullError;
use crate::pull::memory::Room;
use crate::pull::sink::{Arrived, Check, Checked};

use super::{Take, check, range};

/// Chunks of one batch.
const BATCH_CHUNKS: usize = 4;

/// Batches that are checked and written at a time.
const BATCHES: usize = 2;

/// A chunk that has arrived.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) source: NodeId,
    pub(super) index: u32,
    pub(super) bytes: Vec<Bytes>,
    /// Its place in memory.
    pub(super) _room: Room,
}

/// What came of a batch: its chunks up to the first wrong one.
pub(super) type Written = Result<Vec<(Chunk, Checked)>, PullError>;

/// The chunks of one session.
pub(super) struct Writes<'a> {
    take: Take<'a>,
    size: u64,
    /// They wait for their check values, or for the writes before them.
    waiting: Vec<Chunk>,
    running: FuturesOrdered<BoxFuture<'a, Written>>,
}

impl<'a> Writes<'a> {
    pub(super) fn new(take: Take<'a>, size: u64) -> Self {
        Self {
            take,
            size,
            waiting: Vec::new(),
            running: FuturesOrdered::new(),
        }
    }

    /// Whether a further chunk may arrive.
    pub(super) fn have_room(&self) -> bool {
        self.waiting.len() < BATCH_CHUNKS
    }

    /// Whether chunks wait.
    pub(super) fn are_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether chunks are being written.
    pub(super) fn are_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Whether all that has arrived is dealt with.
    pub(super) fn are_done(&self) -> bool {
        !self.are_waiting() && !self.are_running()
    }

    /// Adds a chunk that has arrived, behind those before it.
    pub(super) fn push(&mut self, chunk: Chunk) {
        self.waiting.push(chunk);
    }

    /// Drops the chunks that wait, from this one on.
    pub(super) fn drop_from(&mut self, index: u32) {
        self.waiting.retain(|chunk| chunk.index < index);
    }

    /// Drops the chunks that wait.
    pub(super) fn clear_waiting(&mut self) {
        self.waiting.clear();
    }

    /// Begins to check and write what waits, as far as it is of `stretch` and `chain` has come.
    pub(super) fn begin(&mut self, stretch: &Claimed<'_>, chain: &[ChainValue]) {
        if self.running.len() == BATCHES {
            return;
        }
        let Take { transfer, sink, .. } = self.take;
        let size = self.size;
        // What lies behind the stretch is another lane's by now.
        let behind = stretch.chunks().end;
        let own = self.waiting.iter();
        let own = own.take_while(|chunk| chunk.index < behind);
        let check = |chunk: &Chunk| check(&transfer.digest, chain, chunk.index, size);
        let checks: Vec<Check> = own.map_while(check).collect();
        let chunks: Vec<Chunk> = self.waiting.drain(..checks.len()).collect();
        let Some(last) = chunks.last() else {
            return;
        };
        let start = chunks
            .first()
            .map_or(0, |chunk| range(chunk.index, size).start);
        let end = range(last.index, size).end;
        transfer.change(|state| state.segments.begin_write(stretch.id(), end));
        let writing = async move {
            let written = transfer.state().written.clone();
            let is_awaited = transfer.is_awaited();
            let batch = start..end;
            match sink.reserve(Some(size), batch, &written, is_awaited).await {
                // A copy without room ends alone.
                Err(error) if error.is_full() && !is_awaited => return Err(PullError::Stopped),
                reserved => reserved?,
            }
            let arrived = |(chunk, check): (&Chunk, Check)| Arrived {
                offset: range(chunk.index, size).start,
                bytes: chunk.bytes.clone(),
                check,
            };
            let batch = chunks.iter().zip(checks).map(arrived).collect();
            let checked = sink.take_checked(batch, written).await?;
            Ok(chunks.into_iter().zip(checked).collect())
        };
        self.running.push_back(writing.boxed());
    }

    /// Waits for the next batch, in the order of the blob; for ever while there is none.
    ///
    /// # Errors
    /// What was taken cannot be stored.
    /// # Cancel safety
    /// No batch is lost when dropped.
    pub(super) async fn next(&mut self) -> Written {
        match self.running.next().await {
            Some(written) => written,
            None => std::future::pending().await,
        }
    }
}
