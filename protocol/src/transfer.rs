//! From whom the next chunks of a blob are read: decisions of a node that takes it from peers.
//!
//! Time is counted from any moment that the caller chooses. A [`Taking`] is told what happens
//! (`handle_*`) and says what to do next ([`Taking::poll`]). It reads from one source at a time, the
//! first of the list that the owner gave, in the order in which readers need the chunks; it leaves a
//! source that is gone, wrong, or too far behind what the owner is known to have, and comes back to
//! one that was only slow (`sources`). It moves no bytes, checks no chunk and reads no clock.
//! Source: SPEC.md "Transfer".

mod sources;

use std::ops::Range;
use std::time::Duration;

use rangemap::RangeSet;

use crate::node_id::NodeId;
use sources::{Choice, Sources};

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask `source` for `count` chunks from `first` on.
    Read {
        /// Whom to ask.
        source: NodeId,
        /// Index of the first chunk.
        first: u32,
        /// How many, at least 1.
        count: u32,
    },
    /// Nothing before this time, unless something is handled; `None`: only then.
    Wait(Option<Duration>),
    /// Every chunk is here.
    Complete,
    /// No source is left that may be asked, now or later.
    Exhausted,
}

/// A blob that is being taken from peers.
#[derive(Clone, Debug)]
pub struct Taking {
    chunks: u32,
    /// Chunks that are here.
    here: RangeSet<u32>,
    /// What is to be read next.
    wanted: u32,
    sources: Sources,
    /// The source that is being read, and the next chunk it will send.
    reading: Option<(NodeId, u32)>,
}

impl Taking {
    /// Starts to take a blob of so many chunks.
    pub fn new(chunks: u32) -> Self {
        Self {
            chunks,
            here: RangeSet::new(),
            wanted: 0,
            sources: Sources::default(),
            reading: None,
        }
    }

    /// Returns the source that is being read.
    pub fn reading(&self) -> Option<NodeId> {
        self.reading.map(|(source, _)| source)
    }

    /// Whether a source is not asked again.
    pub fn is_banned(&self, source: &NodeId) -> bool {
        self.sources.is_banned(source)
    }

    /// Whether every chunk is here.
    pub fn is_complete(&self) -> bool {
        self.missing_from(0).is_none()
    }

    /// Takes over whom to read from, best first.
    pub fn handle_sources(&mut self, sources: Vec<NodeId>) {
        self.sources.replace(sources);
    }

    /// Adds sources behind the known ones: somebody without a free slot has named them.
    pub fn handle_hint(&mut self, hinted: &[NodeId]) {
        self.sources.add(hinted);
    }

    /// Records that a chunk is here and right.
    pub fn handle_chunk(&mut self, index: u32) {
        self.here.insert(index..index + 1);
        if let Some((source, next)) = &mut self.reading
            && *next == index
        {
            *next += 1;
            self.sources.gave(*source);
        }
    }

    /// Records that a chunk is here and right which came beside the running read.
    pub fn handle_chunk_of_lane(&mut self, index: u32) {
        self.here.insert(index..index + 1);
    }

    /// Records that `index` is to be read next; a read that is running goes on.
    pub fn handle_wanted(&mut self, index: u32) {
        self.wanted = index.min(self.chunks);
    }

    /// Records that the read has ended after all it was asked for.
    pub fn handle_done(&mut self) {
        self.reading = None;
    }

    /// Records that the source has nothing new yet, or no free slot.
    pub fn handle_not_yet(&mut self, now: Duration) {
        if let Some((source, _)) = self.reading.take() {
            self.sources.was_idle(source, now);
        }
    }

    /// Records that the source could not be reached, fell silent or broke off.
    pub fn handle_failed(&mut self, now: Duration) {
        if let Some((source, _)) = self.reading.take() {
            self.sources.failed(source, now);
        }
    }

    /// Records that a source sent a wrong chunk, stalled, or does not have the blob: not asked again.
    pub fn handle_wrong(&mut self, source: NodeId) {
        self.sources.ban(source);
        self.reading.take_if(|(reading, _)| *reading == source);
    }

    /// Returns what to do next.
    pub fn poll(&mut self, now: Duration) -> Step {
        if self.is_complete() {
            return Step::Complete;
        }
        if self.reading.is_some() {
            return Step::Wait(None);
        }
        let Some(Range { start: first, end }) = self.next_range() else {
            return Step::Wait(None);
        };
        match self.sources.choose(now) {
            Choice::Ask(source, most) => {
                self.reading = Some((source, first));
                let count = (end - first).min(most);
                Step::Read {
                    source,
                    first,
                    count,
                }
            }
            Choice::Pause(until) => Step::Wait(Some(until)),
            Choice::Exhausted => Step::Exhausted,
        }
    }

    /// Returns the next missing run: from where readers are, else from the beginning.
    fn next_range(&self) -> Option<Range<u32>> {
        self.missing_from(self.wanted)
            .or_else(|| self.missing_from(0))
    }

    /// Returns the first run of missing chunks at or behind `from`.
    fn missing_from(&self, from: u32) -> Option<Range<u32>> {
        self.here.gaps(&(from..self.chunks)).next()
    }
}

#[cfg(test)]
mod tests {
    use super::sources::{MAX_FAILURES, SLOW_PAUSE};
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    fn read(source: u8, first: u32, count: u32) -> Step {
        Step::Read {
            source: node(source),
            first,
            count,
        }
    }

    fn taking(chunks: u32, sources: &[u8]) -> Taking {
        let mut taking = Taking::new(chunks);
        taking.handle_sources(sources.iter().copied().map(node).collect());
        taking
    }

    #[test]
    fn chunks_are_read_in_order_from_the_best_source() {
        let now = Duration::ZERO;
        let mut taking = taking(70, &[1, 2]);
        assert_eq!(taking.poll(now), read(1, 0, 64));
        assert_eq!(taking.poll(now), Step::Wait(None), "one read at a time");
        (0..64).for_each(|index| taking.handle_chunk(index));
        taking.handle_done();
        assert_eq!(taking.poll(now), read(1, 64, 6));
        (64..70).for_each(|index| taking.handle_chunk(index));
        assert_eq!(taking.poll(now), Step::Complete);
    }

    #[test]
    fn a_source_that_has_nothing_new_is_left_for_a_moment() {
        let now = Duration::ZERO;
        let mut taking = taking(10, &[1, 2]);
        taking.poll(now);
        taking.handle_chunk(0);
        taking.handle_not_yet(now);
        assert_eq!(taking.poll(now), read(2, 1, 4), "it helps out");
        taking.handle_not_yet(now);
        assert_eq!(taking.poll(now), Step::Wait(Some(now + SLOW_PAUSE)));
        assert_eq!(taking.poll(now + SLOW_PAUSE), read(1, 1, 9));
    }

    #[test]
    fn who_had_nothing_is_asked_again_after_the_others() {
        let mut now = Duration::ZERO;
        let mut taking = taking(10, &[1, 2, 3]);
        // Each is waited for longer than one that had nothing is left alone.
        for (source, count) in [(1, 10), (2, 4), (3, 4), (1, 10), (2, 4)] {
            assert_eq!(taking.poll(now), read(source, 0, count));
            now += SLOW_PAUSE * 6;
            taking.handle_not_yet(now);
            now += SLOW_PAUSE;
        }
        assert_eq!(taking.poll(now), read(3, 0, 4));
        taking.handle_chunk(0);
        taking.handle_not_yet(now);
        assert_eq!(taking.poll(now), read(1, 1, 9), "something flows again");
    }

    #[test]
    fn a_wrong_source_is_never_asked_again_and_a_failing_one_three_times() {
        let mut now = Duration::ZERO;
        let mut taking = taking(10, &[1, 2]);
        assert_eq!(taking.poll(now), read(1, 0, 10));
        taking.handle_wrong(node(1));
        for _ in 0..MAX_FAILURES {
            assert_eq!(taking.poll(now), read(2, 0, 10));
            taking.handle_failed(now);
            now += Duration::from_secs(60);
        }
        assert_eq!(taking.poll(now), Step::Exhausted);
        taking.handle_hint(&[node(1), node(3)]);
        assert_eq!(taking.poll(now), read(3, 0, 10));
    }

    #[test]
    fn what_readers_need_comes_first_and_the_rest_after() {
        let now = Duration::ZERO;
        let mut taking = taking(200, &[1]);
        assert_eq!(taking.poll(now), read(1, 0, 64));
        taking.handle_wanted(190);
        assert_eq!(taking.poll(now), Step::Wait(None), "one read at a time");
        taking.handle_done();
        assert_eq!(taking.poll(now), read(1, 190, 10));
        (190..200).for_each(|index| taking.handle_chunk(index));
        taking.handle_done();
        assert_eq!(taking.poll(now), read(1, 0, 64));
    }

    #[test]
    fn runs_of_chunks_join_in_any_order() {
        let mut taking = Taking::new(6);
        for index in [4, 0, 2, 1, 5] {
            taking.handle_chunk(index);
        }
        assert_eq!(taking.missing_from(0), Some(3..4));
        taking.handle_chunk(3);
        assert!(taking.is_complete());
    }
}
