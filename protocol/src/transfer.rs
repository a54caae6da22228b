//! From whom the next chunks of a blob are read: decisions of a node that takes it from peers.
//!
//! Time is counted from any moment that the caller chooses. A [`Taking`] is told what happens
//! (`handle_*`) and says what to do next ([`Taking::poll`]). It reads from one source at a time, the
//! first of the list that the owner gave, in the order in which readers need the chunks; it leaves a
//! source that is gone, wrong, or slow, and comes back to one that only had nothing for a moment
//! (`sources`). Slow is one behind which this node falls further and further behind what the owner is
//! known to have, while another one is faster (`pace`). It moves no bytes, checks no chunk and reads
//! no clock. Source: SPEC.md "Transfer".

mod pace;
mod sources;

use std::ops::Range;
use std::time::Duration;

use rangemap::RangeSet;

use crate::node_id::NodeId;
use pace::{Pace, Trial, Verdict};
use sources::{Choice, HELP_CHUNKS, Sources};

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
    /// The source that was read last, and how this node keeps up with it.
    paced: Option<NodeId>,
    pace: Pace,
    /// Another one that is tried, or is to be.
    trial: Option<(NodeId, Trial)>,
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
            paced: None,
            pace: Pace::new(),
            trial: None,
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

    /// Records that the node that was opened has so many chunks, from the first on.
    pub fn handle_told(&mut self, now: Duration, chunks: u32) {
        self.pace.handle_told(now, chunks);
    }

    /// Records that a chunk has come from the source that is read, whose bytes were on their way for
    /// `took`; it is still to be checked. If this node falls behind with that source, it is not read
    /// any more, and another one is tried.
    pub fn handle_arrived(&mut self, now: Duration, index: u32, took: Duration) {
        if let Some((_, trial)) = &mut self.trial {
            return trial.handle_chunk(now);
        }
        let known = self.sources.count();
        if let Some(reading) = self.reading()
            && let Some(chunk_time) = self.pace.handle_chunk(now, index, took, known)
            && let Some(other) = self.sources.another(reading, now)
        {
            self.reading = None;
            self.trial = Some((other, Trial::new(now, chunk_time)));
        }
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
        self.end_trial();
    }

    /// Records that the source has nothing new yet, or no free slot.
    pub fn handle_not_yet(&mut self, now: Duration) {
        if let Some((source, _)) = self.reading.take() {
            self.sources.was_idle(source, now);
            self.pause(now);
        }
    }

    /// Records that the source could not be reached, fell silent or broke off.
    pub fn handle_failed(&mut self, now: Duration) {
        if let Some((source, _)) = self.reading.take() {
            self.sources.failed(source, now);
            self.pause(now);
        }
    }

    /// Records that a source sent a wrong chunk, stalled, or does not have the blob: not asked again.
    pub fn handle_wrong(&mut self, source: NodeId) {
        self.sources.ban(source);
        self.reading.take_if(|(reading, _)| *reading == source);
        self.trial.take_if(|(other, _)| *other == source);
    }

    /// Returns what to do next. A read that was running is over when nobody is
    /// [read](Self::reading) behind it.
    pub fn poll(&mut self, now: Duration) -> Step {
        if self.is_complete() {
            return Step::Complete;
        }
        if self.reading.is_some() {
            return self.wait_for_trial(now);
        }
        let Some(Range { start: first, end }) = self.next_range() else {
            return Step::Wait(None);
        };
        let choice = match &mut self.trial {
            Some((other, trial)) => {
                trial.handle_asked(now);
                Choice::Ask(*other, HELP_CHUNKS)
            }
            None => self.sources.choose(now),
        };
        match choice {
            Choice::Ask(source, most) => {
                self.begin(source, first);
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

    fn begin(&mut self, source: NodeId, first: u32) {
        self.reading = Some((source, first));
        if self.trial.is_none() && self.paced.replace(source) != Some(source) {
            self.pace.handle_change();
        }
    }

    /// Waits for a read that is running; it ends when it is a trial that has become hopeless.
    fn wait_for_trial(&mut self, now: Duration) -> Step {
        let Some((_, trial)) = &mut self.trial else {
            return Step::Wait(None);
        };
        let deadline = trial.deadline(HELP_CHUNKS);
        if now >= deadline {
            trial.handle_nothing(now);
            self.handle_done();
        }
        Step::Wait(Some(deadline))
    }

    /// Ends what is seen of a source that pauses from now on.
    fn pause(&mut self, now: Duration) {
        self.pace.handle_change();
        if let Some((_, trial)) = &mut self.trial {
            trial.handle_nothing(now);
        }
        self.end_trial();
    }

    /// Ends a trial: whichever source was faster is preferred from now on.
    fn end_trial(&mut self) {
        let Some((other, trial)) = self.trial.take() else {
            return;
        };
        let verdict = trial.verdict();
        self.pace.handle_verdict(trial.last(), verdict);
        match (verdict, self.paced) {
            (Verdict::Better, Some(left)) => self.sources.was_faster(other, left),
            _ => {
                let is_no_better = verdict == Verdict::NoBetter;
                self.sources.was_in_vain(other, is_no_better);
            }
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

    /// Lets a source bring chunks, each after `millis`; returns when it is left, with the next chunk.
    fn bring(taking: &mut Taking, now: &mut Duration, first: u32, millis: u64) -> u32 {
        let mut index = first;
        while taking.reading().is_some() {
            *now += Duration::from_millis(millis);
            taking.handle_arrived(*now, index, Duration::from_millis(millis));
            taking.handle_chunk(index);
            index += 1;
        }
        index
    }

    #[test]
    fn one_behind_which_it_falls_is_left_for_a_faster_one_and_comes_back() {
        let mut now = Duration::ZERO;
        let mut taking = taking(200, &[1, 2, 3]);
        taking.handle_told(now, 199);
        assert_eq!(taking.poll(now), read(1, 0, 64));
        let next = bring(&mut taking, &mut now, 0, 600);
        assert_eq!(taking.poll(now), read(2, next, 4), "it is tried");
        for index in next..next + 4 {
            now += Duration::from_millis(20);
            taking.handle_arrived(now, index, Duration::ZERO);
            taking.handle_chunk(index);
        }
        taking.handle_done();
        assert_eq!(taking.poll(now), read(2, next + 4, 64), "it is faster");
        for source in [3, 2, 3, 2, 3, 2, 3] {
            taking.handle_not_yet(now);
            now += SLOW_PAUSE;
            let count = if source == 2 { 64 } else { 4 };
            assert_eq!(taking.poll(now), read(source, next + 4, count));
        }
        taking.handle_not_yet(now);
        now += SLOW_PAUSE;
        assert_eq!(
            taking.poll(now),
            read(1, next + 4, 4),
            "others have nothing"
        );
    }

    #[test]
    fn one_that_is_no_better_when_tried_is_not_read_from() {
        let mut now = Duration::ZERO;
        let mut taking = taking(200, &[1, 2, 3]);
        taking.handle_told(now, 199);
        taking.poll(now);
        let next = bring(&mut taking, &mut now, 0, 600);
        assert_eq!(taking.poll(now), read(2, next, 4));
        now += Duration::from_secs(1);
        taking.handle_arrived(now, next, Duration::ZERO);
        taking.handle_chunk(next);
        taking.handle_not_yet(now);
        assert_eq!(taking.poll(now), read(1, next + 1, 64));
        let next = bring(&mut taking, &mut now, next + 1, 600);
        assert_eq!(taking.poll(now), read(3, next, 4), "another one is tried");
        let deadline = now + Duration::from_millis(600 * 4 / 2);
        assert_eq!(taking.poll(now), Step::Wait(Some(deadline)));
        taking.poll(deadline);
        assert_eq!(taking.reading(), None, "it would be too late");
        assert_eq!(taking.poll(deadline), read(1, next, 64));
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
