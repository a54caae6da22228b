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
#[cfg(test)]
mod tests;

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
        if let Some((source, _)) = self.reading.take() {
            self.sources.gave_all(source);
        }
        self.end_trial();
    }

    /// Records that the source has nothing new yet, or no free slot.
    pub fn handle_not_yet(&mut self, now: Duration) {
        if let Some((source, _)) = self.reading.take() {
            self.sources.was_idle(source, now);
            self.pause(now);
        }
    }

    /// Records that the source could not be reached, or fell silent.
    pub fn handle_failed(&mut self, now: Duration) {
        if let Some((source, _)) = self.reading.take() {
            self.sources.failed(source, now);
            self.pause(now);
        }
    }

    /// Records that the source lives, and broke off its answer or sent something that is none. It is not
    /// asked again when it does so again and again.
    pub fn handle_broken_off(&mut self, now: Duration) {
        if let Some((source, _)) = self.reading.take() {
            self.sources.broke_off(source, now);
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
