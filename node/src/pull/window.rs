//! A bounded window of recent bytes, for content that cannot be stored.
//!
//! The producer is paced by the fastest reader, so one reader at least always advances; who falls
//! out of the window is cut and comes back with a Range. Bytes come in the blob's order, and leave out
//! only what is in a file. Bookkeeping only; no I/O.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};
use rangemap::RangeSet;

/// Most bytes that a window holds.
pub(super) const WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// Of these, what a whole batch may come in with while nobody looks: the fastest reader must not fall
/// out of the window by it. There are at most 4 chunks in one, or 512 KiB and what an upstream sends at
/// once.
const BATCH_BYTES: u64 = 2 * 1024 * 1024;

/// The latest bytes of a blob up to `end`.
#[derive(Debug)]
pub(super) struct Window {
    /// All that has passed through.
    passed: RangeSet<u64>,
    end: u64,
    /// Position of the reader that has come furthest.
    fastest: u64,
    /// Consecutive pieces, but for what is in a file: where each begins, and its bytes.
    pieces: VecDeque<(u64, Bytes)>,
    /// Of all pieces together.
    held_bytes: u64,
}

impl Window {
    /// Makes an empty window at `start`.
    pub(super) fn new(start: u64) -> Self {
        Self {
            passed: RangeSet::new(),
            end: start,
            fastest: start,
            pieces: VecDeque::new(),
            held_bytes: 0,
        }
    }

    /// Returns all that has passed through.
    pub(super) fn passed(&self) -> &RangeSet<u64> {
        &self.passed
    }

    /// Whether a reader at `position`, of which nothing is in a file, finds its next byte here, now or
    /// soon.
    pub(super) fn serves(&self, position: u64) -> bool {
        let start = self.pieces.front().map_or(self.end, |(start, _)| *start);
        (start..=self.end).contains(&position)
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Whether the producer must wait for the fastest reader.
    pub(super) fn is_full(&self) -> bool {
        self.end - self.fastest.min(self.end) >= WINDOW_BYTES - BATCH_BYTES
    }

    /// Adds `bytes` that belong at `position`, as far as they are new, and lets go of what no longer
    /// fits. Returns whether they are the next ones, except for what is in the file: `written`.
    pub(super) fn push(
        &mut self,
        position: u64,
        mut bytes: Bytes,
        written: &RangeSet<u64>,
    ) -> bool {
        if position > self.end && written.gaps(&(self.end..position)).next().is_some() {
            return false;
        }
        let known = self.end.saturating_sub(position).min(bytes.len() as u64);
        bytes.advance(usize::try_from(known).expect("at most the length"));
        if bytes.is_empty() {
            return true;
        }
        let start = position + known;
        self.end = start + bytes.len() as u64;
        self.held_bytes += bytes.len() as u64;
        self.passed.insert(start..self.end);
        self.pieces.push_back((start, bytes));
        while let Some((_, oldest)) = self.pieces.front()
            && self.held_bytes - oldest.len() as u64 >= WINDOW_BYTES
        {
            self.held_bytes -= oldest.len() as u64;
            self.pieces.pop_front();
        }
        true
    }

    /// Returns some bytes beginning at `position`, which must lie in the window, and before
    /// `limit`.
    pub(super) fn read(&self, position: u64, limit: u64) -> Option<Bytes> {
        let end_of = |(start, bytes): &(u64, Bytes)| start + bytes.len() as u64;
        let piece = self
            .pieces
            .partition_point(|piece| end_of(piece) <= position);
        let (start, bytes) = self.pieces.get(piece)?;
        let from = usize::try_from(position.checked_sub(*start)?).ok()?;
        let to = usize::try_from(limit.saturating_sub(*start)).unwrap_or(usize::MAX);
        let to = to.min(bytes.len());
        (from < to).then(|| bytes.slice(from..to))
    }

    /// Records how far a reader has come.
    pub(super) fn advance(&mut self, position: u64) {
        self.fastest = self.fastest.max(position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_keeps_the_latest_bytes() {
        let half = Bytes::from(vec![1; 4 * 1024 * 1024]);
        let mut window = Window::new(0);
        for index in 0..3 {
            assert!(window.push(index * (4 << 20), half.clone(), &RangeSet::new()));
        }
        assert!(window.passed().iter().eq([&(0..12 << 20)]));
        assert!(!window.serves((4 << 20) - 1));
        assert!(window.serves(4 << 20) && window.serves(12 << 20));
        assert_eq!(window.read(0, u64::MAX), None);
        assert_eq!(
            window.read((4 << 20) + 5, (4 << 20) + 8).map(|b| b.len()),
            Some(3)
        );
        assert_eq!(window.read(12 << 20, u64::MAX), None);
    }

    #[test]
    fn the_fastest_reader_paces_the_producer() {
        let mut window = Window::new(100);
        window.push(100, Bytes::from(vec![0; 6 << 20]), &RangeSet::new());
        assert!(window.is_full());
        window.advance(101);
        assert!(!window.is_full());
        window.advance(100);
        assert!(!window.is_full(), "a slower reader does not matter");
        window.push(
            window.end(),
            Bytes::from(vec![0; 2 << 20]),
            &RangeSet::new(),
        );
        assert!(window.serves(101), "a batch does not push it out");
    }

    #[test]
    fn bytes_that_are_not_the_next_ones_do_not_come_in() {
        let mut window = Window::new(10);
        assert!(window.push(10, Bytes::from_static(b"abc"), &RangeSet::new()));
        assert!(
            !window.push(14, Bytes::from_static(b"e"), &RangeSet::new()),
            "a gap"
        );
        assert!(window.push(12, Bytes::from_static(b"cd"), &RangeSet::new()));
        assert!(
            window.push(10, Bytes::from_static(b"abcd"), &RangeSet::new()),
            "known"
        );
        assert_eq!(window.end(), 14);
        let read = |position| window.read(position, u64::MAX);
        assert_eq!(read(10).as_deref(), Some(&b"abc"[..]));
        assert_eq!(read(13).as_deref(), Some(&b"d"[..]));
        assert_eq!(read(14), None);
    }

    #[test]
    fn what_is_in_the_file_is_left_out() {
        let mut window = Window::new(0);
        let mut written = RangeSet::new();
        written.insert(2..6);
        assert!(window.push(0, Bytes::from_static(b"ab"), &written));
        assert!(window.push(6, Bytes::from_static(b"gh"), &written));
        assert!(window.passed().iter().eq([&(0..2), &(6..8)]));
        let read = |position| window.read(position, u64::MAX);
        assert_eq!(read(1).as_deref(), Some(&b"b"[..]));
        assert_eq!(read(4), None);
        assert_eq!(read(6).as_deref(), Some(&b"gh"[..]));
    }
}
