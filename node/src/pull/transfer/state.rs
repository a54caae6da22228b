//! What is here of a blob on its way, who may supply the rest, and what a reader does next.
//!
//! Decisions over a snapshot: nothing here waits, and nothing moves a byte.

use bytes::Bytes;
use millrace_protocol::chunk::{CHUNK_BYTES, ChainValue};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use rangemap::RangeSet;
use tokio::time::Instant;

use crate::pull::error::PullError;
use crate::pull::far::FarChunks;
use crate::pull::origin::Source;
use crate::pull::segment::{SegmentId, Segments};
use crate::pull::sink::Sink;
use crate::pull::window::Window;
use crate::store::{BlobFile, FileReader, Pin, Provenance};

use super::Waiting;

/// Bytes at the end of a blob that nobody gets before the digest is verified, so that a wrong
/// body never completes. A blob of at most this size is verified before its headers leave.
const HELD_BACK_BYTES: u64 = 64 * 1024;

/// What readers watch.
#[derive(Debug, Default)]
pub(in crate::pull) struct State {
    pub(in crate::pull) size: Option<u64>,
    pub(in crate::pull) phase: Phase,
    /// Half-open ranges that are in the file.
    pub(in crate::pull) written: RangeSet<u64>,
    /// The file, once there is one; it may lack the end of a blob that is relayed.
    pub(in crate::pull) file: Option<FileReader>,
    /// Recent bytes of a blob that cannot be stored.
    pub(in crate::pull) window: Option<Window>,
    pub(in crate::pull) segments: Segments,
    /// The chain over the bytes that are here without a gap; by it others check what they take.
    pub(in crate::pull) chain: Vec<ChainValue>,
    /// Chunks that are here ahead of the chain.
    pub(in crate::pull) far: FarChunks,
    /// Who is asked for bytes now.
    pub(in crate::pull) supply: Supply,
    /// Which of them it waits for.
    pub(in crate::pull) waiting: Waiting,
    /// Whether an upstream was asked.
    pub(in crate::pull) has_asked: bool,
    /// Whom it was taken from was found to be wrong: others may have the same of the same node, which is
    /// not collected, nor given as a part.
    pub(in crate::pull) is_doubted: bool,
    /// Another node that asked for it had some already: others may have more than is here.
    pub(in crate::pull) begun_elsewhere: bool,
    /// Who has all of it and asks for a further copy.
    pub(in crate::pull) offered_by: Option<NodeId>,
    /// What the blob was fetched as, as far as peers that supplied it, or the store, say.
    pub(in crate::pull) provenance: Vec<Provenance>,
    /// The origin whose upstream has answered with the blob, until it fails: a name that somebody
    /// asks by proves nothing. With it, when that was asked last.
    pub(in crate::pull) fetched: Option<(Provenance, Instant)>,
    /// Keeps a blob that was committed from eviction while somebody still reads it.
    pub(in crate::pull) pin: Option<Pin>,
    /// Keeps a blob that was found in the store from eviction.
    found: Option<BlobFile>,
}

/// How far a transfer has come.
#[derive(Clone, Debug, Default)]
pub(in crate::pull) enum Phase {
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
pub(in crate::pull) enum Supply {
    /// Not decided yet, or nobody any more.
    #[default]
    Nobody,
    /// Other nodes.
    Peers,
    /// An upstream.
    Upstream,
}

/// What a reader can do at its position.
pub(in crate::pull) enum Step {
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

impl State {
    /// Takes over all of a blob that turned out to be in the store.
    pub(super) fn find(&mut self, blob: BlobFile, provenance: Vec<Provenance>) {
        self.provenance = provenance;
        self.size = Some(blob.size());
        if blob.size() > 0 {
            self.written.insert(0..blob.size());
        }
        self.file = Some(blob.reader().clone());
        self.found = Some(blob);
        self.phase = Phase::Verified;
    }

    /// Whether the first bytes are in hand, so that headers may leave.
    pub(in crate::pull) fn is_confirmed(&self) -> bool {
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
    pub(in crate::pull) fn was_begun(&self) -> bool {
        !self.is_doubted && (self.begun_elsewhere || !self.written.is_empty())
    }

    /// Returns what is in the file, and what has passed through the window.
    pub(in crate::pull) fn here(&self) -> RangeSet<u64> {
        let mut here = self.written.clone();
        if let Some(window) = &self.window {
            here.extend(window.passed().iter().cloned());
        }
        here
    }

    /// Returns how many bytes these are.
    pub(in crate::pull) fn here_bytes(&self) -> u64 {
        let here = self.here();
        here.iter().map(|range| range.end - range.start).sum()
    }

    /// Returns how many chunks, from the first on, are here and can be checked by others; 0 where that
    /// is in doubt.
    pub(in crate::pull) fn checked_chunks(&self) -> u32 {
        if self.is_doubted {
            return 0;
        }
        u32::try_from(self.chain.len()).unwrap_or(u32::MAX)
    }

    /// Claims the next stretch to fetch; `None` when everything is here or on its way.
    pub(in crate::pull) fn claim(&mut self) -> Option<SegmentId> {
        self.segments.claim(&self.here(), self.size)
    }

    /// Splits a segment at `start` for a reader at `position`, which may lie behind it; what is relayed
    /// comes in order only. Where none covers it, the first that is missing between the two is claimed.
    pub(in crate::pull) fn split(&mut self, start: u64, position: u64) -> Option<SegmentId> {
        let size = self.size.filter(|_| self.window.is_none())?;
        let split = self.segments.split(start);
        let wanted = start..=position;
        split.or_else(|| self.segments.claim_at(wanted, &self.written, size))
    }

    /// Takes over what hashing has passed, in order and ahead of it.
    pub(in crate::pull) fn learn_hashed(&mut self, sink: &Sink) {
        sink.publish_chain(&mut self.chain);
        sink.publish_far(&mut self.far);
        self.far.forget(self.chain.len());
    }

    /// Takes over the size; what an earlier answer sent beyond it was no part of the blob.
    pub(in crate::pull) fn learn_size(&mut self, size: u64) {
        self.size = Some(size);
        if size < u64::MAX {
            self.written.remove(size..u64::MAX);
        }
        self.segments.limit(size);
    }

    /// Leaves a hop of which not all has come. What it stated of a blob of which no byte is here is
    /// forgotten: nobody has been told, and others may know better.
    pub(in crate::pull) fn leave_hop(&mut self) {
        self.waiting.leave_hop();
        if self.written.is_empty() && self.window.is_none() {
            self.size = None;
            self.provenance.clear();
        }
    }

    /// Returns what the blob was, or is being, fetched as; empty when nobody knows yet.
    pub(in crate::pull) fn fetched_as(&self) -> Vec<Provenance> {
        let fetched = self.fetched.iter().map(|(origin, _)| origin);
        let unknown = fetched.filter(|fetched| !self.provenance.contains(fetched));
        self.provenance.iter().chain(unknown).cloned().collect()
    }

    /// Whether the blob is only relayed and its window does not serve a reader at `position`.
    pub(in crate::pull) fn is_out_of_window(&self, position: u64) -> bool {
        let Some(window) = &self.window else {
            return false;
        };
        // Behind what is in the file the window goes on.
        let end = window.end();
        let is_next = position >= end && self.written.gaps(&(end..position)).next().is_none();
        !(is_next || self.written.contains(&position) || window.serves(position))
    }

    /// Lets readers have bytes that are not kept, from `start` on. Returns whether they are the next ones.
    pub(in crate::pull) fn relay(&mut self, start: u64, chunks: Vec<Bytes>) -> bool {
        let Self {
            window, written, ..
        } = self;
        let window = window.get_or_insert_with(|| Window::new(start));
        let mut position = start;
        chunks.into_iter().all(|chunk| {
            let length = chunk.len() as u64;
            let is_next = window.push(position, chunk, written);
            position += length;
            is_next
        })
    }

    /// Records how far a reader of relayed bytes has come.
    pub(in crate::pull) fn advance_reader(&mut self, position: u64) {
        if let Some(window) = &mut self.window {
            window.advance(position);
        }
    }

    /// Records that a segment has come up to `position`.
    pub(in crate::pull) fn advance(&mut self, id: SegmentId, position: u64) {
        self.segments.advance(id, position, Instant::now());
        self.waiting.get_on();
        self.phase = Phase::Flowing;
    }

    pub(in crate::pull) fn failure(&self) -> Option<&PullError> {
        match &self.phase {
            Phase::Failed(error) => Some(error),
            _ => None,
        }
    }

    pub(in crate::pull) fn source(&self) -> Source {
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
    pub(in crate::pull) fn is_checked(&self, range: &std::ops::Range<u64>) -> bool {
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
    pub(in crate::pull) fn far_digest(&self, range: &std::ops::Range<u64>) -> Option<Digest> {
        let is_here = self.written.gaps(range).next().is_none();
        let is_last = self.size.is_none_or(|size| range.end >= size);
        if !is_here || is_last || matches!(self.phase, Phase::Failed(_)) {
            return None;
        }
        let index = u32::try_from(range.start / CHUNK_BYTES).ok()?;
        self.far.get(index).map(|chunk| chunk.digest)
    }

    /// Returns what a reader of `position..end` does next.
    pub(in crate::pull) fn step(&self, position: u64, end: u64) -> Step {
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
            // The window comes here only at the pace of those whom it serves, who may be nobody.
            _ if self.is_out_of_window(position) => Step::Fail(PullError::FellBehind),
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
