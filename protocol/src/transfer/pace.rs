//! Whether the source that is read keeps up with the node that was opened, and what came of another.
//!
//! The node that was opened tells check values as soon as it has the chunks, so each node knows
//! how long ago it could have had the next one. In a chain that flows this is the same for every chunk, however
//! many nodes are before it and however fast the upstream sends. Behind one that is slow it grows.
//! Decides when another source is worth a try, and whether it was better; whom to try is `Taking`'s.

use std::collections::VecDeque;
use std::time::Duration;

/// How much a node falls behind before it tries another source, if the bytes of the chunks come
/// slowly: then it is the source's own link that is slow, or this node's. A chain that flows loses
/// less in all of its life.
const SLOW: Duration = Duration::from_secs(1);

/// The same, for each source that is known, if the source has nothing to send for most of the time:
/// the slow one may be any before it, and is to be left by who reads from it. Who is nearer to the
/// front of the chain knows fewer.
const LATE: Duration = Duration::from_secs(2);

/// Sources of which each lets a node wait for another [`LATE`].
const MAX_LATE: u32 = 4;

/// It falls behind only where it loses half of the time or more; once it has not for so long, all
/// that was lost before is forgotten.
const STEP: Duration = Duration::from_secs(1);

/// How many times as fast as the one that falls behind another source has to be.
const BETTER: u32 = 2;

/// How long the source that is read is kept when another one was no better; [`REST_GROWS`] times
/// as long after each further try. All who take a blob that has been at the node that was opened
/// for long seem to fall behind: they are not to ask there again and again.
const REST: Duration = Duration::from_secs(5);
const REST_GROWS: u32 = 4;

/// The same when another one had no free slot, or failed: nothing is known of it.
const REST_UNKNOWN: Duration = Duration::from_secs(1);

/// Another source is given so long at least: a connection may have to be made first.
const LEAST_TRIAL: Duration = Duration::from_millis(200);

/// Most that is remembered of when chunks were told.
const MAX_TOLD: usize = 256;

/// How exact it is remembered, unless that is too much: for 25 s of a chain of takers.
const TOLD_STEP: Duration = Duration::from_millis(100);

/// How the source that is read does.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// How many chunks the node that was opened had, from when on; the latest last.
    told: VecDeque<(u32, Duration)>,
    /// What is told within this time counts as told at its beginning.
    told_step: Duration,
    watch: Option<Watch>,
    /// No other source is tried before.
    rest_until: Duration,
    /// How often another source was no better.
    in_vain: u32,
}

/// What is seen of one source.
#[derive(Clone, Copy, Debug)]
struct Watch {
    /// When a chunk last came.
    last: Duration,
    /// How long ago the next chunk could have been here, at the beginning.
    behind: Duration,
    /// When it was last looked whether this goes on, and how long ago the next chunk could have been here then.
    step: (Duration, Duration),
    all: Span,
    /// The longest time that one chunk took: a moment's trouble, which says nothing of the next.
    longest: Span,
}

/// What one chunk took, or several.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    time: Duration,
    /// How long bytes were on their way.
    sending: Duration,
    chunks: u32,
}

/// Another source that is tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    /// What a chunk takes from the source that falls behind.
    chunk_time: Duration,
    since: Duration,
    /// When a chunk last came, and how many did.
    last: Duration,
    chunks: u32,
}

/// What came of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The other source is that much better.
    Better,
    /// It is not.
    NoBetter,
    /// It sent nothing.
    Unknown,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            told: VecDeque::new(),
            told_step: TOLD_STEP,
            watch: None,
            rest_until: Duration::ZERO,
            in_vain: 0,
        }
    }

    /// Records that the node that was opened has so many chunks.
    pub(super) fn handle_told(&mut self, now: Duration, chunks: u32) {
        if self.told.back().is_some_and(|(known, _)| *known >= chunks) {
            return;
        }
        while self.told.len() == MAX_TOLD {
            self.told_step *= 2;
            let told = std::mem::take(&mut self.told);
            told.into_iter()
                .for_each(|(chunks, since)| self.remember(since, chunks));
        }
        self.remember(now, chunks);
    }

    fn remember(&mut self, now: Duration, chunks: u32) {
        match self.told.back_mut() {
            Some((known, since)) if now < *since + self.told_step => {
                *known = chunks.max(*known);
            }
            _ => self.told.push_back((chunks, now)),
        }
    }

    /// Records that a chunk came from the source that is read, whose bytes were on their way for `took`.
    /// Returns, if this node falls behind with it, what a chunk takes; `sources` is how many are known.
    pub(super) fn handle_chunk(
        &mut self,
        now: Duration,
        index: u32,
        took: Duration,
        sources: u32,
    ) -> Option<Duration> {
        let behind = self.behind(now, index.saturating_add(1));
        let began = now.saturating_sub(took);
        let watch = self
            .watch
            .get_or_insert(Watch::new(began, behind.saturating_sub(took)));
        watch.handle_chunk(now, took);
        let seen = watch.seen();
        // Of the longest time all counts as lost.
        let lost = behind.saturating_sub(watch.behind + watch.longest.time);
        let is_losing = lost * 2 >= seen.time;
        let limit = match seen.sending * 2 >= seen.time {
            true => SLOW,
            false => LATE * sources.min(MAX_LATE),
        };
        let falls_behind = is_losing && lost >= limit && now >= self.rest_until;
        if !watch.goes_on_losing(now, behind) {
            self.watch = None;
        }
        seen.time.checked_div(seen.chunks).filter(|_| falls_behind)
    }

    /// Records that another source is read from now on, or the same after a pause.
    pub(super) fn handle_change(&mut self) {
        self.watch = None;
    }

    /// Records what came of a trial.
    pub(super) fn handle_verdict(&mut self, now: Duration, verdict: Verdict) {
        self.watch = None;
        match verdict {
            Verdict::Better => self.in_vain = 0,
            Verdict::NoBetter => {
                let grows = REST_GROWS.saturating_pow(self.in_vain);
                self.rest_until = now + REST.saturating_mul(grows);
                self.in_vain += 1;
            }
            Verdict::Unknown => self.rest_until = now + REST_UNKNOWN,
        }
    }

    /// Returns how long ago a chunk could have been had; zero if it was not told yet.
    fn behind(&mut self, now: Duration, index: u32) -> Duration {
        while self
            .told
            .front()
            .is_some_and(|(chunks, _)| *chunks <= index)
        {
            self.told.pop_front();
        }
        let told = self.told.front();
        told.map_or(Duration::ZERO, |(_, since)| now.saturating_sub(*since))
    }
}

impl Watch {
    fn new(now: Duration, behind: Duration) -> Self {
        Self {
            last: now,
            behind,
            step: (now, behind),
            all: Span::default(),
            longest: Span::default(),
        }
    }

    fn handle_chunk(&mut self, now: Duration, took: Duration) {
        let span = Span {
            time: now.saturating_sub(self.last),
            sending: took,
            chunks: 1,
        };
        self.last = now;
        self.all.time += span.time;
        self.all.sending += span.sending;
        self.all.chunks += 1;
        if span.time >= self.longest.time {
            self.longest = span;
        }
    }

    /// Whether half of the time was lost since this was last looked at, or it is too early to say.
    fn goes_on_losing(&mut self, now: Duration, behind: Duration) -> bool {
        let (since, before) = self.step;
        let time = now.saturating_sub(since);
        if time < STEP {
            return true;
        }
        self.step = (now, behind);
        behind.saturating_sub(before) * 2 >= time
    }

    /// Returns what was seen but for the longest time.
    fn seen(&self) -> Span {
        Span {
            time: self.all.time.saturating_sub(self.longest.time),
            sending: self.all.sending.saturating_sub(self.longest.sending),
            chunks: self.all.chunks.saturating_sub(self.longest.chunks),
        }
    }
}

impl Trial {
    /// Tries another source in the place of one from which a chunk takes `chunk_time`.
    pub(super) fn new(now: Duration, chunk_time: Duration) -> Self {
        Self {
            chunk_time,
            since: now,
            last: now,
            chunks: 0,
        }
    }

    /// Records that the other source was asked.
    pub(super) fn handle_asked(&mut self, now: Duration) {
        self.since = now;
        self.last = now;
    }

    /// Records that it has sent a chunk.
    pub(super) fn handle_chunk(&mut self, now: Duration) {
        self.last = now;
        self.chunks += 1;
    }

    /// Records that nothing more came of it until now.
    pub(super) fn handle_nothing(&mut self, now: Duration) {
        self.last = now;
    }

    /// Returns when `count` chunks come too late for it to be better.
    pub(super) fn deadline(&self, count: u32) -> Duration {
        self.since + (self.chunk_time * count / BETTER).max(LEAST_TRIAL)
    }

    /// Returns when something was last heard of it.
    pub(super) fn last(&self) -> Duration {
        self.last
    }

    /// Returns what came of it.
    pub(super) fn verdict(&self) -> Verdict {
        let Some(chunk_time) = (self.last - self.since).checked_div(self.chunks) else {
            return Verdict::Unknown;
        };
        match chunk_time * BETTER <= self.chunk_time {
            true => Verdict::Better,
            false => Verdict::NoBetter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: u32 = 3;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Chunks that come while the node that was opened gets one every 20 ms.
    struct Chunks {
        pace: Pace,
        now: Duration,
        next: u32,
    }

    impl Chunks {
        fn new() -> Self {
            Self {
                pace: Pace::new(),
                now: ms(100),
                next: 0,
            }
        }

        /// Lets the next chunk come `gap` behind the one before, on its way for `took`.
        fn come(&mut self, gap: u64, took: u64) -> Option<Duration> {
            for _ in 0..gap / 20 {
                self.now += ms(20);
                let told = self.now.as_millis() / 20;
                self.pace
                    .handle_told(self.now, u32::try_from(told).expect("a short test"));
            }
            self.next += 1;
            self.pace
                .handle_chunk(self.now, self.next - 1, ms(took), SOURCES)
        }
    }

    #[test]
    fn who_sends_slowly_is_seen_with_the_chunk_that_makes_a_second() {
        let mut chunks = Chunks::new();
        assert_eq!(chunks.come(600, 600), None, "may be a moment's trouble");
        assert_eq!(chunks.come(600, 600), None);
        assert_eq!(chunks.come(600, 600), Some(ms(600)));
    }

    #[test]
    fn who_waits_itself_is_given_longer_the_more_sources_there_are() {
        let mut chunks = Chunks::new();
        let seen = (0..).find(|_| chunks.come(500, 20).is_some());
        let limit = LATE * SOURCES;
        assert!(
            chunks.now > limit && chunks.now < limit + ms(2500),
            "{seen:?}"
        );
    }

    #[test]
    fn a_moment_of_trouble_is_none_of_the_source() {
        let mut chunks = Chunks::new();
        for gap in [20, 20, 6000, 20, 20, 20, 20] {
            assert_eq!(chunks.come(gap, gap), None);
        }
    }

    #[test]
    fn who_brings_as_much_as_the_hop_gets_keeps_up_however_late_it_is() {
        let mut chunks = Chunks::new();
        chunks.come(9000, 20);
        chunks.pace.handle_change();
        for _ in 0..1000 {
            assert_eq!(chunks.come(20, 20), None);
        }
    }

    #[test]
    fn behind_a_trial_in_vain_the_next_one_is_later_each_time() {
        let mut chunks = Chunks::new();
        let mut seen = Vec::new();
        while seen.len() < 3 {
            if chunks.come(600, 600).is_some() {
                seen.push(chunks.now);
                chunks.pace.handle_verdict(chunks.now, Verdict::NoBetter);
            }
        }
        assert!(seen[1] - seen[0] >= REST, "{seen:?}");
        assert!(seen[2] - seen[1] >= REST * REST_GROWS, "{seen:?}");
    }

    #[test]
    fn what_is_remembered_of_the_hop_is_bounded() {
        let mut pace = Pace::new();
        for chunk in 1..100_000 {
            pace.handle_told(ms(chunk.into()), chunk);
        }
        assert!(pace.told.len() <= MAX_TOLD);
        let behind = pace.behind(ms(100_000), 60_000);
        assert!((ms(39_000)..ms(41_000)).contains(&behind), "{behind:?}");
    }

    #[test]
    fn another_source_is_better_when_it_is_twice_as_fast() {
        let trial = |chunk: u64| {
            let mut trial = Trial::new(ms(0), ms(100));
            trial.handle_asked(ms(1000));
            (1..=4).for_each(|index| trial.handle_chunk(ms(1000 + index * chunk)));
            trial
        };
        assert_eq!(trial(50).verdict(), Verdict::Better);
        assert_eq!(trial(51).verdict(), Verdict::NoBetter);
        let mut paused = trial(10);
        paused.handle_nothing(ms(9000));
        assert_eq!(paused.verdict(), Verdict::NoBetter);
        assert_eq!(Trial::new(ms(0), ms(100)).verdict(), Verdict::Unknown);
    }
}
