//! The consecutive stretches of a blob that are being fetched at the same time.
//!
//! Usually one, from the first byte to the last. A reader far ahead splits it; no byte belongs to
//! two segments. Bookkeeping only; no I/O.

use std::ops::RangeInclusive;

use rangemap::RangeSet;
use tokio::time::{Duration, Instant};

/// Most segments of one transfer at a time.
const MAX_SEGMENTS: usize = 4;

/// A rate is believed only after this time.
const RATE_AFTER: Duration = Duration::from_millis(500);

/// The segments of one transfer.
#[derive(Debug, Default)]
pub(super) struct Segments {
    active: Vec<Segment>,
    next_id: u64,
}

/// Names a segment for as long as its transfer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentId(u64);

#[derive(Debug)]
struct Segment {
    id: SegmentId,
    start: u64,
    /// The next byte that is not here.
    position: u64,
    /// One past the last byte that is being written; nobody else writes up to there.
    begun: u64,
    /// One past the last byte; `u64::MAX` while the size is unknown.
    end: u64,
    /// When its first bytes arrived.
    flowing_since: Option<Instant>,
}

impl Segments {
    /// Claims the first stretch that is neither here nor being fetched.
    ///
    /// `None` when nothing is left to claim.
    pub(super) fn claim(
        &mut self,
        written: &RangeSet<u64>,
        size: Option<u64>,
    ) -> Option<SegmentId> {
        let whole = 0..size.unwrap_or(u64::MAX);
        if whole.is_empty() {
            return None;
        }
        let gap = self.taken(written).gaps(&whole).next()?;
        Some(self.begin(gap.start, gap.end))
    }

    /// Splits the segment that would reach `position` in the end, so that it is fetched now.
    ///
    /// `None` when no segment covers it, it is being written or next anyway, or there are enough
    /// segments.
    pub(super) fn split(&mut self, position: u64) -> Option<SegmentId> {
        if self.active.len() >= MAX_SEGMENTS {
            return None;
        }
        let covers = |segment: &&mut Segment| {
            segment.position.max(segment.begun) < position && position < segment.end
        };
        let segment = self.active.iter_mut().find(covers)?;
        let end = std::mem::replace(&mut segment.end, position);
        Some(self.begin(position, end))
    }

    /// Claims what is neither here nor being fetched, from the first such byte of `wanted` on.
    ///
    /// `None` when there is none in it, or there are enough segments.
    pub(super) fn claim_at(
        &mut self,
        wanted: RangeInclusive<u64>,
        written: &RangeSet<u64>,
        size: u64,
    ) -> Option<SegmentId> {
        let (first, last) = wanted.into_inner();
        if self.active.len() >= MAX_SEGMENTS || first >= size {
            return None;
        }
        let gap = self.taken(written).gaps(&(first..size)).next()?;
        (gap.start <= last).then(|| self.begin(gap.start, gap.end))
    }

    /// Returns what is here or being fetched.
    fn taken(&self, written: &RangeSet<u64>) -> RangeSet<u64> {
        let mut taken = written.clone();
        for segment in &self.active {
            if segment.position < segment.end {
                taken.insert(segment.position..segment.end);
            }
        }
        taken
    }

    fn begin(&mut self, start: u64, end: u64) -> SegmentId {
        let id = SegmentId(self.next_id);
        self.next_id += 1;
        self.active.push(Segment {
            id,
            start,
            position: start,
            begun: start,
            end,
            flowing_since: None,
        });
        id
    }

    /// Ends a segment; what it did not fetch can be claimed again.
    pub(super) fn finish(&mut self, id: SegmentId) {
        self.active.retain(|segment| segment.id != id);
    }

    /// Returns the position and the end of a segment; they are equal once it was ended.
    pub(super) fn bounds(&self, id: SegmentId) -> (u64, u64) {
        let segment = self.active.iter().find(|segment| segment.id == id);
        segment.map_or((0, 0), |segment| (segment.position, segment.end))
    }

    /// Records that a segment is being written up to `end`.
    pub(super) fn begin_write(&mut self, id: SegmentId, end: u64) {
        if let Some(segment) = self.active.iter_mut().find(|segment| segment.id == id) {
            segment.begun = end;
        }
    }

    /// Records that a segment has come up to `position`.
    pub(super) fn advance(&mut self, id: SegmentId, position: u64, now: Instant) {
        if let Some(segment) = self.active.iter_mut().find(|segment| segment.id == id) {
            segment.position = position;
            segment.flowing_since.get_or_insert(now);
        }
    }

    /// Cuts segments at the size when it becomes known.
    pub(super) fn limit(&mut self, size: u64) {
        for segment in &mut self.active {
            segment.end = segment.end.min(size);
        }
    }

    /// Estimates when a position will be reached at the present rate.
    ///
    /// `None` while there is nothing to estimate from.
    pub(super) fn expected_in(&self, position: u64, now: Instant) -> Option<Duration> {
        let covers = |segment: &&Segment| segment.position <= position && position < segment.end;
        let segment = self.active.iter().find(covers)?;
        let flowing = now.duration_since(segment.flowing_since?);
        if flowing < RATE_AFTER {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rate = (segment.position - segment.start) as f64 / flowing.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = (position - segment.position) as f64 / rate.max(1.0);
        Some(Duration::from_secs_f64(seconds.min(1e6)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(ranges: &[std::ops::Range<u64>]) -> RangeSet<u64> {
        ranges.iter().cloned().collect()
    }

    #[test]
    fn the_first_gap_is_claimed_once() {
        let mut segments = Segments::default();
        let written = ranges(&[0..10, 20..30]);
        let first = segments.claim(&written, Some(40)).expect("a gap");
        assert_eq!(segments.bounds(first), (10, 20));
        let second = segments.claim(&written, Some(40)).expect("a gap");
        assert_eq!(segments.bounds(second), (30, 40));
        assert_eq!(segments.claim(&written, Some(40)), None);
        segments.finish(first);
        assert!(segments.claim(&written, Some(40)).is_some());
        assert_eq!(Segments::default().claim(&ranges(&[]), Some(0)), None);
    }

    #[test]
    fn a_split_gives_each_byte_to_one_segment() {
        let mut segments = Segments::default();
        let first = segments.claim(&ranges(&[]), Some(100)).expect("all");
        let second = segments.split(60).expect("a far range");
        assert_eq!(segments.bounds(first), (0, 60));
        assert_eq!(segments.bounds(second), (60, 100));
        assert_eq!(segments.split(60), None, "it is next already");
    }

    #[test]
    fn what_is_being_written_is_nobody_elses() {
        let mut segments = Segments::default();
        let first = segments.claim(&ranges(&[]), Some(100)).expect("all");
        segments.begin_write(first, 60);
        assert_eq!(segments.split(30), None);
        assert_eq!(segments.claim_at(30..=30, &ranges(&[]), 100), None);
        assert_eq!(segments.split(60), None, "it is next anyway");
        segments.advance(first, 20, Instant::now());
        assert_eq!(segments.split(30), None);
        assert!(segments.split(70).is_some());
        assert_eq!(segments.bounds(first), (20, 70));
    }

    #[test]
    fn a_far_range_that_no_segment_comes_to_is_claimed() {
        let mut segments = Segments::default();
        let written = ranges(&[0..10, 60..70]);
        let first = segments.claim(&written, Some(100)).expect("a gap");
        assert_eq!(segments.bounds(first), (10, 60));
        let mut claim = |position| {
            let claimed = segments.claim_at(position..=position, &written, 100);
            claimed.map(|id| segments.bounds(id))
        };
        assert_eq!(claim(20), None, "it is coming");
        assert_eq!(claim(65), None, "it is here");
        assert_eq!(claim(100), None, "the end");
        assert_eq!(claim(80), Some((80, 100)));
    }

    #[test]
    fn a_gap_that_begins_within_a_chunk_is_claimed_beside_a_far_segment() {
        let mut segments = Segments::default();
        let first = segments.claim(&ranges(&[]), Some(100)).expect("all");
        let far = segments.split(60).expect("a far range");
        // The first one broke off.
        segments.finish(first);
        let written = ranges(&[0..20, 20..25]);
        assert_eq!(
            segments.claim_at(20..=24, &written, 100),
            None,
            "it is here"
        );
        let rest = segments.claim_at(20..=29, &written, 100).expect("a gap");
        assert_eq!(segments.bounds(rest), (25, 60));
        assert_eq!(segments.bounds(far), (60, 100));
    }

    #[test]
    fn segments_are_few() {
        let mut segments = Segments::default();
        segments.claim(&ranges(&[]), Some(1_000)).expect("all");
        let splits = (1..100)
            .filter(|n| segments.split(n * 10).is_some())
            .count();
        assert_eq!(splits, MAX_SEGMENTS - 1);
    }

    #[test]
    fn the_expected_time_follows_the_rate() {
        let mut segments = Segments::default();
        let id = segments.claim(&ranges(&[]), Some(1_000)).expect("all");
        let start = Instant::now();
        assert_eq!(segments.expected_in(500, start), None);
        segments.advance(id, 0, start);
        segments.advance(id, 100, start + Duration::from_secs(1));
        let expected = segments.expected_in(600, start + Duration::from_secs(1));
        assert_eq!(expected, Some(Duration::from_secs(5)));
    }
}
