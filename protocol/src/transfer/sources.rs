//! Whom chunks may be read from, how each source has behaved, and who is asked next.
//!
//! Which chunks are missing is `transfer`'s; a source is told nothing of what is thought of it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::node_id::NodeId;

/// Most chunks of one read from the best source.
const READ_CHUNKS: u32 = 64;

/// Most chunks of one read from a source that helps out while a better one pauses, or is tried: what
/// it sends may be the second copy on its link.
pub(super) const HELP_CHUNKS: u32 = 4;

/// How long a source that had nothing new, or no free slot, is left alone while others are tried.
pub(super) const SLOW_PAUSE: Duration = Duration::from_millis(500);

/// How long a source that failed is left alone; doubled with each failure in a row.
const FAILED_PAUSE: Duration = Duration::from_secs(2);

/// Failures in a row after which a source is not tried again.
pub(super) const MAX_FAILURES: u32 = 3;

/// How long a source that lives and broke off its answer is left alone; doubled with each further
/// time. Nobody else is asked meanwhile: a moment is enough to know, and others may wait for it too.
pub(super) const BROKEN_PAUSE: Duration = Duration::from_millis(250);

/// Answers in a row that a source may break off, however many chunks came of them: else one chunk of
/// each would be all that ever comes. Fewer where none ever came.
pub(super) const MAX_BROKEN: u32 = 3;
pub(super) const MAX_BROKEN_BEFORE_ANY: u32 = 2;

/// How often the others must have had nothing before a source that was slower is asked: its few
/// chunks may take longer than they do.
const SLOWER_IDLE: u32 = 4;

/// The sources of one blob.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    /// Best first.
    known: Vec<NodeId>,
    /// Kept also of those that are not named any more.
    conduct: BTreeMap<NodeId, Conduct>,
}

/// How one source has behaved.
#[derive(Clone, Copy, Debug, Default)]
struct Conduct {
    /// Not to be asked before.
    paused_until: Option<Duration>,
    failures: u32,
    /// How many answers it broke off in a row.
    broken: u32,
    /// Whether a chunk ever came of it.
    has_given: bool,
    /// How often it had nothing new since a chunk last came from anybody.
    idle: u32,
    /// It sent a wrong chunk, or does not have the blob.
    banned: bool,
    /// It was left for a faster one, or was no better than the one that was left: others go first.
    slower: bool,
    /// It was left for a faster one, or tried in the place of another, and was no better.
    no_better: bool,
    /// How often it was tried in vain.
    in_vain: u32,
}

/// Whom to ask now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This one, for so many chunks at most.
    Ask(NodeId, u32),
    /// Nobody before this time.
    Pause(Duration),
    /// Nobody any more.
    Exhausted,
}

impl Sources {
    /// Whether a source is not asked again.
    pub(super) fn is_banned(&self, source: &NodeId) -> bool {
        let conduct = self.conduct.get(source);
        conduct.is_some_and(|conduct| conduct.banned)
    }

    /// Takes over whom to read from, best first.
    pub(super) fn replace(&mut self, sources: Vec<NodeId>) {
        self.known = sources;
    }

    /// Adds sources behind the known ones.
    pub(super) fn add(&mut self, hinted: &[NodeId]) {
        for source in hinted {
            if !self.known.contains(source) {
                self.known.push(*source);
            }
        }
    }

    /// Notes that a source sent a chunk that was asked of it.
    pub(super) fn gave(&mut self, source: NodeId) {
        let conduct = self.conduct.entry(source).or_default();
        conduct.failures = 0;
        conduct.has_given = true;
        self.conduct
            .values_mut()
            .for_each(|conduct| conduct.idle = 0);
    }

    /// Notes that a source gave all that it was asked for.
    pub(super) fn gave_all(&mut self, source: NodeId) {
        self.conduct.entry(source).or_default().broken = 0;
    }

    /// Leaves a source alone that had nothing new, or no free slot.
    pub(super) fn was_idle(&mut self, source: NodeId, now: Duration) {
        let conduct = self.conduct.entry(source).or_default();
        conduct.paused_until = Some(now + SLOW_PAUSE);
        conduct.idle += 1;
        conduct.broken = 0;
    }

    /// Leaves a source alone that failed, in the end for good.
    pub(super) fn failed(&mut self, source: NodeId, now: Duration) {
        let conduct = self.conduct.entry(source).or_default();
        let pause = FAILED_PAUSE * 2_u32.pow(conduct.failures.min(MAX_FAILURES));
        conduct.failures += 1;
        conduct.broken = 0;
        conduct.paused_until = Some(now + pause);
        conduct.banned |= conduct.failures >= MAX_FAILURES;
    }

    /// Leaves a source alone that lives and broke off its answer, soon for good.
    pub(super) fn broke_off(&mut self, source: NodeId, now: Duration) {
        let conduct = self.conduct.entry(source).or_default();
        let most = match conduct.has_given {
            true => MAX_BROKEN,
            false => MAX_BROKEN_BEFORE_ANY,
        };
        let pause = BROKEN_PAUSE * 2_u32.pow(conduct.broken.min(MAX_BROKEN));
        conduct.broken += 1;
        conduct.paused_until = Some(now + pause);
        conduct.banned |= conduct.broken >= most;
    }

    /// Does not ask a source again.
    pub(super) fn ban(&mut self, source: NodeId) {
        self.conduct.entry(source).or_default().banned = true;
    }

    /// Notes that a source is faster than one that was read: that one goes behind it, and so do those that
    /// were no better.
    pub(super) fn was_faster(&mut self, source: NodeId, left: NodeId) {
        self.conduct.entry(left).or_default().no_better = true;
        self.conduct.entry(source).or_default().no_better = false;
        self.conduct
            .values_mut()
            .for_each(|conduct| conduct.slower = conduct.no_better);
    }

    /// Notes that a source was tried and is not read from, perhaps because it is no better.
    pub(super) fn was_in_vain(&mut self, source: NodeId, is_no_better: bool) {
        let conduct = self.conduct.entry(source).or_default();
        conduct.in_vain += 1;
        conduct.no_better |= is_no_better;
    }

    /// Returns how many sources are known.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.known.len()).unwrap_or(u32::MAX)
    }

    /// Returns whom to try in the place of one that is read: of those that may be asked now and were
    /// not slower than others, the one that was tried in vain least often, and the first of these.
    pub(super) fn another(&self, reading: NodeId, now: Duration) -> Option<NodeId> {
        let others = self.known.iter().filter(|source| **source != reading);
        let others = others.map(|source| (source, self.conduct_of(source)));
        let others = others.filter(|(_, conduct)| {
            let pauses = conduct.paused_until.is_some_and(|until| until > now);
            !conduct.banned && !conduct.slower && !pauses
        });
        let least = others.min_by_key(|(_, conduct)| conduct.in_vain);
        least.map(|(source, _)| *source)
    }

    fn conduct_of(&self, source: &NodeId) -> Conduct {
        self.conduct.get(source).copied().unwrap_or_default()
    }

    /// Returns whom to ask now, else when somebody may be: of those who had nothing new least often
    /// the first. Else two that wait for each other's chunks, or for this node's, would be asked in
    /// turns for ever, and the last of the list never. Who broke off its answer comes before all.
    pub(super) fn choose(&self, now: Duration) -> Choice {
        if let Some(choice) = self.choose_broken(now) {
            return choice;
        }
        let mut earliest: Option<Duration> = None;
        let mut best: Option<(u32, NodeId)> = None;
        let quick_idle = self.idle_of_quick();
        for source in &self.known {
            let conduct = self.conduct_of(source);
            let idle = conduct.idle + if conduct.slower { SLOWER_IDLE } else { 0 };
            if conduct.banned || (conduct.slower && quick_idle.is_some_and(|it| it < idle)) {
                continue;
            }
            match conduct.paused_until {
                Some(until) if until > now => {
                    earliest = Some(earliest.map_or(until, |known| known.min(until)));
                }
                _ if best.is_none_or(|(least, _)| idle < least) => {
                    best = Some((idle, *source));
                }
                _ => {}
            }
        }
        match (best, earliest) {
            (Some((_, source)), _) => Choice::Ask(source, self.most(&source)),
            (None, Some(until)) => Choice::Pause(until),
            (None, None) => Choice::Exhausted,
        }
    }

    /// Returns when to ask the source that broke off its answer last, if one is still to be asked.
    fn choose_broken(&self, now: Duration) -> Option<Choice> {
        let broken = self.known.iter().find(|source| {
            let conduct = self.conduct_of(source);
            !conduct.banned && conduct.broken > 0
        });
        let source = broken?;
        let until = self.conduct_of(source).paused_until;
        Some(match until.filter(|until| *until > now) {
            Some(until) => Choice::Pause(until),
            None => Choice::Ask(*source, self.most(source)),
        })
    }

    /// Returns how often those had nothing new that were not slower than others, the best of them,
    /// also while it pauses.
    fn idle_of_quick(&self) -> Option<u32> {
        let conducts = self.known.iter().map(|source| self.conduct_of(source));
        let quick = conducts.filter(|conduct| !conduct.banned && !conduct.slower);
        quick.map(|conduct| conduct.idle).min()
    }

    /// Returns how many chunks are read of a source at a time: few, unless every source before it
    /// is out of the question; those that were slower come last.
    fn most(&self, source: &NodeId) -> u32 {
        let usable = self.known.iter().filter(|known| !self.is_banned(known));
        let best = usable.min_by_key(|known| self.conduct_of(known).slower);
        match best == Some(source) {
            true => READ_CHUNKS,
            false => HELP_CHUNKS,
        }
    }
}
