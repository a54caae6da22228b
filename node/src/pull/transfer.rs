//! One blob on its way to this node, shared by all who wait for it.
//!
//! The state is a snapshot that the filler changes and readers watch: which ranges are here, who
//! may supply the rest, how it ended. This file moves no bytes; `fill` writes and `blob` reads.

use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::chunk::{CHUNK_BYTES, ChainValue};
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::Refusal;
use parking_lot::Mutex;
use rangemap::RangeSet;
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant};

use crate::store::{BlobFile, FileReader, Provenance};

use super::TransferStatus;
use super::candidates::Candidates;
use super::error::PullError;
use super::far::FarChunks;
use super::origin::{Origin, Source};
use super::rank::Rank;
use super::refusal;
use super::segment::{SegmentId, Segments};
use super::sink::Sink;
use super::window::Window;

/// Bytes at the end of a blob that nobody gets before the digest is verified, so that a wrong
/// body never completes. A blob of at most this size is verified before its headers leave.
pub(super) const HELD_BACK_BYTES: u64 = 64 * 1024;

/// A range whose bytes are not expected within this time opens a segment of its own.
const FAR: Duration = Duration::from_secs(5);

/// Most requests for far ranges that wait for the filler; more are repeated by their readers.
const MAX_FAR_REQUESTS: usize = 16;

/// A transfer; shared by its filler and its waiters.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) digest: Digest,
    started: Instant,
    state: watch::Sender<State>,
    waiters: watch::Sender<usize>,
    rank: watch::Sender<Rank>,
    candidates: Mutex<Candidates>,
    far: mpsc::Sender<u64>,
}

/// What readers watch.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) size: Option<u64>,
    pub(super) phase: Phase,
    /// Half-open ranges that are in the file.
    pub(super) written: RangeSet<u64>,
    /// The file, once there is one; it may lack the end of a blob that is relayed.
    pub(super) file: Option<FileReader>,
    /// Recent bytes of a blob that cannot be stored.
    pub(super) window: Option<Window>,
    pub(super) segments: Segments,
    /// The chain over the bytes that are here without a gap; by it others check what they take.
    pub(super) chain: Vec<ChainValue>,
    /// Chunks that are here ahead of the chain.
    pub(super) far: FarChunks,
    /// Who is asked for bytes now.
    pub(super) supply: Supply,
    /// Another node that asked for it had some already: others may have more than is here.
    pub(super) begun_elsewhere: bool,
    /// What the blob was fetched as, as far as peers that supplied it, or the store, say.
    pub(super) provenance: Vec<Provenance>,
    /// The origin whose upstream has answered with the blob, until it fails: a name that somebody
    /// asks by proves nothing.
    pub(super) fetched: Option<Provenance>,
    /// Keeps a blob that was found in the store from eviction.
    found: Option<BlobFile>,
}

/// How far a transfer has come.
#[derive(Clone, Debug, Default)]
pub(super) enum Phase {
    /// No byte yet.
    #[default]
    Opening,
    /// Bytes are arriving.
    Flowing,
    /// All bytes are here and right.
    Verified,
    /// It ended without that.
    Failed(PullError),
}

/// Who is asked for bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Supply {
    /// Not decided yet, or nobody any more.
    #[default]
    Nobody,
    /// Other nodes.
    Peers,
    /// An upstream.
    Upstream,
}

/// What a reader can do at its position.
pub(super) enum Step {
    /// Read the file up to this position.
    File(FileReader, u64),
    /// Take these bytes.
    Bytes(Bytes),
    /// Stop: the position is the end.
    End,
    /// Wait for a change.
    Wait,
    /// Give up.
    Fail(PullError),
}

impl Transfer {
    /// Makes a transfer and the filler's end of its queue of far ranges.
    pub(super) fn new(digest: Digest, rank: Rank) -> (Arc<Self>, mpsc::Receiver<u64>) {
        let (far, far_requests) = mpsc::channel(MAX_FAR_REQUESTS);
        let transfer = Self {
            digest,
            started: Instant::now(),
            state: watch::Sender::default(),
            waiters: watch::Sender::default(),
            rank: watch::Sender::new(rank),
            candidates: Mutex::default(),
            far,
        };
        (Arc::new(transfer), far_requests)
    }

    /// Adds a waiter and the origins that it named, the one it wants an answer of first.
    pub(super) fn join(self: &Arc<Self>, origins: &[Origin]) -> Waiter {
        let mut candidates = self.candidates.lock();
        for origin in origins {
            candidates.add(origin);
        }
        drop(candidates);
        self.waiters.send_modify(|waiters| *waiters += 1);
        Waiter {
            provenance: origins.first().map(Origin::provenance),
            transfer: Arc::clone(self),
        }
    }

    /// Returns whom this transfer may wait for.
    pub(super) fn rank(&self) -> Rank {
        *self.rank.borrow()
    }

    /// Whether the bytes come from other nodes, if they come: nobody should wait for them here.
    pub(super) fn waits_for_others(&self) -> bool {
        self.rank() < Rank::Home && self.state().supply != Supply::Upstream
    }

    /// Lets the transfer act in at least this rank from now on.
    pub(super) fn raise(&self, rank: Rank) {
        self.rank.send_if_modified(|known| {
            let raised = rank > *known;
            *known = rank.max(*known);
            raised
        });
    }

    /// Resolves when the transfer must not wait any more for what it could wait for in `rank`.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(super) async fn raised_above(&self, rank: Rank) {
        // The sender lives in the transfer that is borrowed here.
        let _ = self.rank.subscribe().wait_for(|now| *now > rank).await;
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(super) fn watch_waiters(&self) -> watch::Receiver<usize> {
        self.waiters.subscribe()
    }

    pub(super) fn state(&self) -> watch::Ref<'_, State> {
        self.state.borrow()
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.state.send_modify(|state| result = Some(change(state)));
        result.expect("send_modify calls its argument")
    }

    pub(super) fn candidates(&self) -> parking_lot::MutexGuard<'_, Candidates> {
        self.candidates.lock()
    }

    pub(super) fn has_waiters(&self) -> bool {
        *self.waiters.borrow() > 0
    }

    /// Ends the transfer with the blob that turned out to be in the store, fetched as `provenance`.
    pub(super) fn found(&self, blob: BlobFile, provenance: Vec<Provenance>) {
        self.change(|state| {
            state.provenance = provenance;
            state.size = Some(blob.size());
            if blob.size() > 0 {
                state.written.insert(0..blob.size());
            }
            state.file = Some(blob.reader().clone());
            state.found = Some(blob);
            state.phase = Phase::Verified;
        });
    }

    pub(super) fn status(&self) -> TransferStatus {
        let state = self.state();
        let written = state.written_bytes();
        let window = state.window.as_ref();
        let relayed = window.map_or(0, |window| window.passed().end - window.passed().start);
        TransferStatus {
            digest: self.digest,
            origins: self.candidates().names(),
            source: match state.supply {
                Supply::Nobody => None,
                Supply::Peers => Some(Source::Peer),
                Supply::Upstream => Some(Source::Upstream),
            },
            size_bytes: state.size,
            received_bytes: written + relayed,
            relayed: window.is_some(),
            waiters: *self.waiters.borrow(),
            age_seconds: self.started.elapsed().as_secs(),
        }
    }

    /// Asks for a segment of its own for a reader whose bytes are not expected soon.
    pub(super) fn hurry(&self, position: u64, waited: Duration) {
        let late = {
            let state = self.state.borrow();
            let expected = state.segments.expected_in(position, Instant::now());
            match expected {
                Some(time) => time > FAR,
                None => waited > FAR,
            }
        };
        if late {
            // A full queue means that the filler is busy with others; the reader asks again.
            let _ = self.far.try_send(position);
        }
    }
}

impl State {
    /// Whether the first bytes are in hand, so that headers may leave.
    pub(super) fn is_confirmed(&self) -> bool {
        match self.phase {
            Phase::Verified => true,
            Phase::Flowing => {
                let here = !self.written.is_empty() || self.window.is_some();
                here && self.size.is_none_or(|size| size > HELD_BACK_BYTES)
            }
            Phase::Opening | Phase::Failed(_) => false,
        }
    }

    /// Whether some of the blob has been fetched before, by this node or by another that asked.
    pub(super) fn was_begun(&self) -> bool {
        self.begun_elsewhere || !self.written.is_empty()
    }

    pub(super) fn written_bytes(&self) -> u64 {
        let lengths = self.written.iter().map(|range| range.end - range.start);
        lengths.sum()
    }

    /// Returns how many chunks, from the first on, are here and can be checked by others.
    pub(super) fn checked_chunks(&self) -> u32 {
        u32::try_from(self.chain.len()).unwrap_or(u32::MAX)
    }

    /// Claims the next stretch to fetch; `None` when everything is here or on its way.
    pub(super) fn claim(&mut self) -> Option<SegmentId> {
        let mut here = self.written.clone();
        let passed = self.window.as_ref().map(Window::passed);
        if let Some(passed) = passed.filter(|passed| !passed.is_empty()) {
            here.insert(passed);
        }
        self.segments.claim(&here, self.size)
    }

    /// Splits a segment for a reader far ahead; what is relayed comes in order only.
    pub(super) fn split(&mut self, position: u64) -> Option<SegmentId> {
        let size = self.size.filter(|_| self.window.is_none())?;
        let split = self.segments.split(position);
        split.or_else(|| self.segments.claim_at(position, &self.written, size))
    }

    /// Takes over what hashing has passed, in order and ahead of it.
    pub(super) fn learn_hashed(&mut self, sink: &Sink) {
        sink.publish_chain(&mut self.chain);
        sink.publish_far(&mut self.far);
        self.far.forget(self.chain.len());
    }

    /// Takes over the size; what an earlier answer sent beyond it was no part of the blob.
    pub(super) fn learn_size(&mut self, size: u64) {
        self.size = Some(size);
        if size < u64::MAX {
            self.written.remove(size..u64::MAX);
        }
        self.segments.limit(size);
    }

    /// Forgets what was stated of a blob of which no byte is here.
    pub(super) fn forget_if_empty(&mut self) {
        if self.written.is_empty() && self.window.is_none() {
            self.size = None;
            self.provenance.clear();
        }
    }

    /// Returns what the blob was, or is being, fetched as; empty when nobody knows yet.
    pub(super) fn fetched_as(&self) -> Vec<Provenance> {
        let fetched = self.fetched.iter();
        let unknown = fetched.filter(|fetched| !self.provenance.contains(fetched));
        self.provenance.iter().chain(unknown).cloned().collect()
    }

    /// Whether the blob is only relayed and its window does not serve a reader at `position`.
    pub(super) fn is_out_of_window(&self, position: u64) -> bool {
        let window = self.window.as_ref();
        !self.written.contains(&position) && window.is_some_and(|window| !window.serves(position))
    }

    /// Records how far a reader of relayed bytes has come.
    pub(super) fn advance_reader(&mut self, position: u64) {
        if let Some(window) = &mut self.window {
            window.advance(position);
        }
    }

    /// Records that a segment has come up to `position`.
    pub(super) fn advance(&mut self, id: SegmentId, position: u64) {
        self.segments.advance(id, position, Instant::now());
        self.phase = Phase::Flowing;
    }

    pub(super) fn failure(&self) -> Option<&PullError> {
        match &self.phase {
            Phase::Failed(error) => Some(error),
            _ => None,
        }
    }

    pub(super) fn source(&self) -> Source {
        match (&self.found, self.supply) {
            (Some(_), _) => Source::Local,
            (None, Supply::Peers) => Source::Peer,
            (None, Supply::Nobody | Supply::Upstream) => Source::Upstream,
        }
    }

    /// Returns the end of what a reader may have, beginning at `position`.
    fn visible_end(&self, position: u64) -> u64 {
        let in_file = self.written.get(&position).map(|range| range.end);
        let in_window = self.window.as_ref().map(Window::end);
        let end = in_file.or(in_window).unwrap_or(0);
        match (&self.phase, self.size) {
            (Phase::Verified, _) => end,
            (_, Some(size)) => end.min(size.saturating_sub(HELD_BACK_BYTES)),
            // Any byte may turn out to belong to the tail.
            (_, None) => end.saturating_sub(HELD_BACK_BYTES),
        }
    }

    /// Whether all of `range` is in the file and may be given away before the digest is verified:
    /// its end is checked by the chain.
    pub(super) fn is_checked(&self, range: &std::ops::Range<u64>) -> bool {
        match &self.phase {
            Phase::Verified => true,
            Phase::Failed(error) if error.is_corrupt() => false,
            // The last chunk is checked by the digest alone.
            _ => {
                let chained = self.chain.len() as u64 * CHUNK_BYTES;
                range.end <= chained && self.size.is_some_and(|size| range.end < size)
            }
        }
    }

    /// Returns the digest of a whole chunk that is here ahead of the chain; the last has none,
    /// because a blob's end is nobody's before the whole is right.
    pub(super) fn far_digest(&self, range: &std::ops::Range<u64>) -> Option<Digest> {
        let is_here = self.written.gaps(range).next().is_none();
        let is_last = self.size.is_none_or(|size| range.end >= size);
        if !is_here || is_last || matches!(self.phase, Phase::Failed(_)) {
            return None;
        }
        let index = u32::try_from(range.start / CHUNK_BYTES).ok()?;
        self.far.get(index).map(|chunk| chunk.digest)
    }

    /// Returns what a reader of `position..end` does next.
    pub(super) fn step(&self, position: u64, end: u64) -> Step {
        let end = end.min(self.size.unwrap_or(u64::MAX));
        if position >= end {
            return Step::End;
        }
        // After a wrong digest nobody gets another byte.
        if let Phase::Failed(error) = &self.phase
            && error.is_corrupt()
        {
            return Step::Fail(error.clone());
        }
        let limit = end.min(self.visible_end(position));
        if position < limit {
            return self.take(position, limit);
        }
        match &self.phase {
            Phase::Failed(error) => Step::Fail(error.clone()),
            Phase::Verified => Step::End,
            Phase::Opening | Phase::Flowing => Step::Wait,
        }
    }

    fn take(&self, position: u64, limit: u64) -> Step {
        if let (Some(file), Some(range)) = (&self.file, self.written.get(&position)) {
            return Step::File(file.clone(), limit.min(range.end));
        }
        let bytes = self
            .window
            .as_ref()
            .and_then(|window| window.read(position, limit));
        bytes.map_or(Step::Fail(PullError::FellBehind), Step::Bytes)
    }
}

/// Someone who waits for a transfer; dropping it is all that leaving means.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) transfer: Arc<Transfer>,
    /// Of the origin whose refusal is this waiter's answer.
    provenance: Option<Provenance>,
}

impl Waiter {
    /// Waits until headers may leave.
    ///
    /// # Errors
    /// The final answer of this waiter's own origin, or that of the transfer.
    pub(super) async fn confirmed(&self) -> Result<(), PullError> {
        let mut watch = self.transfer.watch();
        loop {
            {
                let state = watch.borrow_and_update();
                if state.is_confirmed() {
                    return Ok(());
                }
                let candidates = self.transfer.candidates();
                let own = self.provenance.as_ref();
                if let Some(refusal) = own.and_then(|own| candidates.refusal(own)) {
                    return Err(refusal.clone());
                }
                if let Some(error) = state.failure() {
                    return Err(error.clone());
                }
            }
            if watch.changed().await.is_err() {
                return Err(PullError::Stopped);
            }
        }
    }
}

impl Waiter {
    /// Returns the answer for another node when the transfer ended with `error`.
    pub(super) fn refusal(&self, error: &PullError) -> Refusal {
        let candidates = self.transfer.candidates();
        let origin = self
            .provenance
            .as_ref()
            .and_then(|own| candidates.find(own));
        refusal::refusal(origin, error)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.transfer.waiters.send_modify(|waiters| *waiters -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flowing(size: u64, written: std::ops::Range<u64>) -> State {
        let mut state = State {
            size: Some(size),
            phase: Phase::Flowing,
            window: Some(Window::new(0)),
            ..State::default()
        };
        state.written.insert(written);
        state
    }

    #[test]
    fn the_tail_is_held_back_until_the_digest_is_right() {
        let size = HELD_BACK_BYTES * 3;
        let mut state = flowing(size, 0..size);
        assert_eq!(state.visible_end(0), size - HELD_BACK_BYTES);
        state.phase = Phase::Verified;
        assert_eq!(state.visible_end(0), size);
    }

    #[test]
    fn a_blob_of_unknown_size_shows_nothing_near_its_growing_end() {
        let mut state = flowing(0, 0..HELD_BACK_BYTES + 10);
        state.size = None;
        assert_eq!(state.visible_end(0), 10);
    }

    #[test]
    fn a_small_blob_is_confirmed_only_when_verified() {
        let mut state = flowing(10, 0..10);
        assert!(!state.is_confirmed());
        state.phase = Phase::Verified;
        assert!(state.is_confirmed());
        assert!(flowing(HELD_BACK_BYTES + 1, 0..1).is_confirmed());
    }

    #[test]
    fn nobody_gets_a_byte_after_a_wrong_digest() {
        let mut state = flowing(1 << 20, 0..1 << 20);
        let digest = Digest::of(millrace_protocol::oci::Algorithm::Sha256, b"");
        state.phase = Phase::Failed(PullError::Corrupt {
            expected: digest,
            actual: digest,
        });
        assert!(matches!(
            state.step(0, 10),
            Step::Fail(PullError::Corrupt { .. })
        ));
        state.phase = Phase::Failed(PullError::Stopped);
        assert!(!matches!(state.step(0, 10), Step::Wait | Step::End));
    }
}
