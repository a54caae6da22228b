//! Chunks for a node that reads them: from the store, or from a blob that is still on its way.
//!
//! Only what was checked is given away; ahead of the chain only to who asked for far chunks, with
//! the digest that it was checked by. For a chunk that is about to come it is waited a moment, so
//! that nodes behind each other in a chain need not ask all the time.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use millrace_protocol::chunk::{self, CHUNK_BYTES};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::ReadChunks;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::peer::ChunkEvent;
use crate::pull::blob::HURRY_INTERVAL;
use crate::pull::transfer::{State, Transfer};
use crate::store::{BlobFile, FileReader};

use super::Shared;
use super::far_readers::FarSlot;
use super::takers::Slot;

/// How long the next chunk is waited for before the reader is told to look elsewhere: a reader that
/// left its place earlier would make one link carry the blob twice.
const PATIENCE: Duration = Duration::from_secs(8);

/// The same while nothing of the blob is here. It covers the way of the first chunk along a chain
/// of nodes; longer would be lost where those who have been sent to each other have no good source.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);

/// How long the size of a blob is waited for that this node has just begun to take. Not longer: it
/// may have been left by its own hop, and then look for sources among those who ask it.
const SIZE_PATIENCE: Duration = Duration::from_secs(1);

/// Sends the chunks that are asked for, as far as they come.
pub(super) fn read(
    shared: Arc<Shared>,
    from: NodeId,
    question: ReadChunks,
) -> BoxStream<'static, ChunkEvent> {
    let events = async move {
        match open(&shared, from, &question).await {
            Ok(reading) => reading.events().boxed(),
            Err(event) => stream::once(async { event }).boxed(),
        }
    };
    stream::once(events).flatten().boxed()
}

async fn open(shared: &Shared, from: NodeId, question: &ReadChunks) -> Result<Reading, ChunkEvent> {
    let inner = &shared.puller.inner;
    let digest = &question.digest;
    // Before the store is looked into: what is on its way now may be stored, and no longer be on its
    // way, by the time that the store was found to lack it.
    let under_way = inner.fillers.table.get(digest);
    let stored = inner.store.blob(digest).await.map_err(|error| {
        tracing::error!(%error, "a blob cannot be read for a peer");
        ChunkEvent::Absent
    })?;
    let (content, size) = match stored {
        Some(blob) => {
            let size = blob.size();
            (Content::Stored(blob), size)
        }
        None => {
            let transfer = inner.fillers.table.get(digest).or(under_way);
            let transfer = transfer.ok_or(ChunkEvent::Absent)?;
            let mut watch = transfer.watch();
            let size = known_size(&mut watch).await?;
            (Content::Growing { transfer, watch }, size)
        }
    };
    let slot = if question.far {
        let slot = shared.far_readers.read(digest).map(Held::Far);
        slot.ok_or(ChunkEvent::Busy { ask: Vec::new() })?
    } else {
        let slot = shared.takers.read(digest, from, size, question.copy);
        let slot = slot.map(Held::Near);
        slot.map_err(|ask| ChunkEvent::Busy { ask })?
    };
    let end = question.first.saturating_add(question.count);
    let chunks = u32::try_from(chunk::count(size)).unwrap_or(u32::MAX);
    Ok(Reading {
        content,
        size,
        chunks: question.first..end.min(chunks),
        far: question.far,
        copy: question.copy,
        _slot: slot,
    })
}

/// Waits for the size of a growing blob: whoever was sent here may have come before it.
async fn known_size(watch: &mut watch::Receiver<State>) -> Result<u64, ChunkEvent> {
    let known = watch.wait_for(|state| state.size.is_some() || state.failure().is_some());
    let Ok(known) = tokio::time::timeout(SIZE_PATIENCE, known).await else {
        return Err(ChunkEvent::NotYet);
    };
    let state = known.map_err(|_| ChunkEvent::Absent)?;
    state.size.ok_or(ChunkEvent::Absent)
}

/// What a reader holds while it reads.
#[expect(dead_code, reason = "held for its drop alone")]
enum Held {
    Near(Slot),
    Far(FarSlot),
}

enum Content {
    Stored(BlobFile),
    Growing {
        transfer: Arc<Transfer>,
        watch: watch::Receiver<State>,
    },
}

struct Reading {
    content: Content,
    size: u64,
    /// Indices that are still to be sent.
    chunks: Range<u32>,
    /// Whether chunks may be given ahead of the chain.
    far: bool,
    /// Whether nobody waits for them.
    copy: bool,
    _slot: Held,
}

/// A chunk that may be given away.
struct Found {
    file: FileReader,
    /// What it is, ahead of the chain.
    digest: Option<Digest>,
}

impl Reading {
    fn events(self) -> impl futures_util::Stream<Item = ChunkEvent> {
        stream::unfold(Some(self), |reading| async move {
            let mut reading = reading?;
            let event = reading.next().await;
            let goes_on = matches!(event, ChunkEvent::Chunk { .. } | ChunkEvent::Far { .. });
            Some((event, goes_on.then_some(reading)))
        })
    }

    async fn next(&mut self) -> ChunkEvent {
        let Some(index) = self.chunks.next() else {
            return ChunkEvent::Done;
        };
        let start = u64::from(index) * CHUNK_BYTES;
        let range = start..(start + CHUNK_BYTES).min(self.size);
        let found = match &mut self.content {
            Content::Stored(blob) => Ok(Found {
                file: blob.reader().clone(),
                digest: None,
            }),
            Content::Growing { transfer, watch } if self.far => {
                wait_far(transfer, watch, &range).await
            }
            Content::Growing { transfer, watch } => {
                let found = wait(watch, &range).await;
                if matches!(found, Err(ChunkEvent::NotYet)) && !self.copy {
                    transfer.hurry(range.start, PATIENCE);
                }
                found
            }
        };
        let Found { file, digest } = match found {
            Ok(found) => found,
            Err(event) => return event,
        };
        match (read_all(&file, range).await, digest) {
            (Ok(bytes), None) => ChunkEvent::Chunk { index, bytes },
            (Ok(bytes), Some(digest)) => ChunkEvent::Far {
                index,
                bytes,
                digest,
            },
            (Err(error), _) => {
                tracing::error!(%error, "a chunk cannot be read for a peer");
                ChunkEvent::Absent
            }
        }
    }
}

/// Waits until a range of a growing blob may be given away.
async fn wait(watch: &mut watch::Receiver<State>, range: &Range<u64>) -> Result<Found, ChunkEvent> {
    let here = |state: &State| is_checked(state, range) || is_over(state);
    let patience = if watch.borrow().written.is_empty() {
        FIRST_PATIENCE
    } else {
        PATIENCE
    };
    let waited = tokio::time::timeout(patience, watch.wait_for(here)).await;
    let Ok(waited) = waited else {
        return Err(ChunkEvent::NotYet);
    };
    let state = waited.map_err(|_| ChunkEvent::Absent)?;
    find(&state, range, None)
}

/// As [`wait`], also ahead of the chain, and asking again and again that the range be fetched now,
/// as a reader of this node would.
async fn wait_far(
    transfer: &Transfer,
    watch: &mut watch::Receiver<State>,
    range: &Range<u64>,
) -> Result<Found, ChunkEvent> {
    let here = |state: &State| {
        let is_here = is_checked(state, range) || state.far_digest(range).is_some();
        is_here || is_over(state)
    };
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        transfer.hurry(range.start, began.elapsed());
        let waited = tokio::time::timeout(HURRY_INTERVAL, watch.wait_for(here)).await;
        if let Ok(waited) = waited {
            let state = waited.map_err(|_| ChunkEvent::Absent)?;
            return find(&state, range, state.far_digest(range));
        }
    }
    Err(ChunkEvent::NotYet)
}

/// Whether nothing is coming that could be waited for: the blob has failed, is only passed on from
/// here on, or its hop was given up with nothing of it here. Then this node looks for other sources,
/// perhaps among those who wait.
fn is_over(state: &State) -> bool {
    state.failure().is_some() || state.size.is_none() || state.window.is_some()
}

fn is_checked(state: &State, range: &Range<u64>) -> bool {
    state.written.gaps(range).next().is_none() && state.is_checked(range)
}

/// Returns what is here of a range that was waited for: checked by the chain, else with the digest
/// that it has ahead of it.
fn find(state: &State, range: &Range<u64>, far: Option<Digest>) -> Result<Found, ChunkEvent> {
    if state.size.is_none() {
        return Err(ChunkEvent::NotYet);
    }
    let file = state.file.as_ref().filter(|_| state.failure().is_none());
    let file = file.ok_or(ChunkEvent::Absent)?.clone();
    let digest = far.filter(|_| !is_checked(state, range));
    if digest.is_none() && !is_checked(state, range) {
        return Err(ChunkEvent::Absent);
    }
    Ok(Found { file, digest })
}

async fn read_all(file: &FileReader, range: Range<u64>) -> std::io::Result<Vec<Bytes>> {
    let mut pieces = Vec::new();
    let mut position = range.start;
    while position < range.end {
        let bytes = file.read(position, range.end).await?;
        position += bytes.len() as u64;
        pieces.push(bytes);
    }
    Ok(pieces)
}
