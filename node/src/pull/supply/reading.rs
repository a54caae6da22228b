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

/// The same while this node has turned to another hop and nothing came since: whoever reads from it may
/// be whom it waits for there.
const ADRIFT_PATIENCE: Duration = Duration::from_secs(1);

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
        from,
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
    /// Who reads.
    from: NodeId,
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
                let found = wait(watch, &range, self.from).await;
                let may_be_late = matches!(found, Err(ChunkEvent::NotYet)) && !self.copy;
                if may_be_late && !is_in_vain(&transfer.state(), self.from) {
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

/// Waits until a range of a growing blob may be given away, or this node turns to another hop; not
/// where it waits for the reader itself.
async fn wait(
    watch: &mut watch::Receiver<State>,
    range: &Range<u64>,
    from: NodeId,
) -> Result<Found, ChunkEvent> {
    let (patience, was_adrift) = {
        let state = watch.borrow();
        (patience(&state), state.waiting.is_adrift())
    };
    let is_known = |state: &State| is_checked(state, range) || is_over(state);
    let ends = |state: &State| {
        let turns = state.waiting.is_adrift() && !was_adrift;
        is_known(state) || turns || state.waiting.is_for(from)
    };
    let Ok(ended) = tokio::time::timeout(patience, watch.wait_for(ends)).await else {
        return Err(ChunkEvent::NotYet);
    };
    let state = ended.map_err(|_| ChunkEvent::Absent)?;
    if !is_known(&state) {
        return Err(ChunkEvent::NotYet);
    }
    find(&state, range, None)
}

/// Returns how long the next chunk is waited for.
fn patience(state: &State) -> Duration {
    if state.written.is_empty() {
        FIRST_PATIENCE
    } else if state.waiting.is_adrift() {
        ADRIFT_PATIENCE
    } else {
        PATIENCE
    }
}

/// Whether a reader is not to wait here long, because it may be waited for itself.
fn is_in_vain(state: &State, from: NodeId) -> bool {
    state.waiting.is_adrift() || state.waiting.is_for(from)
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

#[cfg(test)]
mod tests {
    use super::*;

    const READER: NodeId = NodeId::new([1; 32]);
    const OTHER: NodeId = NodeId::new([2; 32]);
    const ANOTHER: NodeId = NodeId::new([3; 32]);

    /// The first chunk of a blob is here, which is taken through `hop`.
    fn begun(hop: NodeId) -> watch::Sender<State> {
        let state = watch::Sender::new(State::default());
        state.send_modify(|state| {
            state.learn_size(8 * CHUNK_BYTES);
            state.written.insert(0..CHUNK_BYTES);
            state.waiting.begin(hop);
        });
        state
    }

    /// Returns how long the second chunk is waited for in vain.
    async fn waited(state: &watch::Sender<State>) -> Duration {
        let began = Instant::now();
        let chunk = CHUNK_BYTES..2 * CHUNK_BYTES;
        let found = wait(&mut state.subscribe(), &chunk, READER).await;
        assert!(matches!(found, Err(ChunkEvent::NotYet)));
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_kept_waiting_whom_this_node_waits_for() {
        assert_eq!(waited(&begun(OTHER)).await, PATIENCE);
        assert_eq!(waited(&begun(READER)).await, Duration::ZERO);
        let state = begun(OTHER);
        let later = Duration::from_millis(300);
        let reading = async {
            tokio::time::sleep(later).await;
            state.send_modify(|state| state.waiting.read_from(READER));
        };
        let (waited, ()) = tokio::join!(waited(&state), reading);
        assert_eq!(waited, later);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_long_for_a_node_that_has_turned_to_another_hop() {
        let state = begun(OTHER);
        let later = Duration::from_millis(300);
        let turning = async {
            tokio::time::sleep(later).await;
            state.send_modify(|state| state.waiting.leave_hop());
            state.send_modify(|state| state.waiting.begin(ANOTHER));
        };
        let (before, ()) = tokio::join!(waited(&state), turning);
        assert_eq!(before, later);
        assert_eq!(waited(&state).await, ADRIFT_PATIENCE);
        state.send_modify(|state| state.waiting.get_on());
        assert_eq!(waited(&state).await, PATIENCE);
    }
}
