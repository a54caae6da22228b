//! A bounded window of recent bytes, for content that cannot be stored.
//!
//! The producer is paced by the fastest reader, so one reader at least always advances; who falls
//! out of the window is cut and comes back with a Range. Bookkeeping only; no I/O.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

/// Most bytes that a window holds.
pub(super) const WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// Consecutive bytes `start..end` of a blob.
#[derive(Debug)]
pub(super) struct Window {
    /// Where the first byte belonged that ever was in it.
    begun: u64,
    start: u64,
    end: u64,
    /// Position of the reader that has come furthest.
    fastest: u64,
    chunks: VecDeque<Bytes>,
}

impl Window {
    /// Makes an empty window at `start`.
    pub(super) fn new(start: u64) -> Self {
        Self {
            begun: start,
            start,
            end: start,
            fastest: start,
            chunks: VecDeque::new(),
        }
    }

    /// Returns all that has passed through, half-open.
    pub(super) fn passed(&self) -> Range<u64> {
        self.begun..self.end
    }

    /// Whether a reader at `position` finds its next byte here, now or soon.
    pub(super) fn serves(&self, position: u64) -> bool {
        (self.start..=self.end).contains(&position)
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Whether the producer must wait for the fastest reader.
    pub(super) fn is_full(&self) -> bool {
        self.end - self.fastest.min(self.end) >= WINDOW_BYTES
    }

    /// Adds the next bytes and lets go of what no longer fits.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.end += bytes.len() as u64;
        self.chunks.push_back(bytes);
        while let Some(oldest) = self.chunks.front()
            && self.end - self.start - oldest.len() as u64 >= WINDOW_BYTES
        {
            self.start += oldest.len() as u64;
            self.chunks.pop_front();
        }
    }

    /// Returns some bytes beginning at `position`, which must lie in the window, and before
    /// `limit`.
    pub(super) fn read(&self, position: u64, limit: u64) -> Option<Bytes> {
        let mut chunk_start = self.start;
        for chunk in &self.chunks {
            let chunk_end = chunk_start + chunk.len() as u64;
            if (chunk_start..chunk_end).contains(&position) {
                let from = usize::try_from(position - chunk_start).ok()?;
                let to = usize::try_from(limit.min(chunk_end) - chunk_start).ok()?;
                return (from < to).then(|| chunk.slice(from..to));
            }
            chunk_start = chunk_end;
        }
        None
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
        for _ in 0..3 {
            window.push(half.clone());
        }
        assert_eq!(window.passed(), 0..12 << 20);
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
        window.push(Bytes::from(vec![0; 8 << 20]));
        assert!(window.is_full());
        window.advance(101);
        assert!(!window.is_full());
        window.advance(100);
        assert!(!window.is_full(), "a slower reader does not matter");
    }
}
