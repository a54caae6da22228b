//! Bytes that look random and are the same in every run.
//!
//! They neither compress nor deduplicate, so that a test of a large layer moves all of it.

use std::io::{self, Read};

/// An endless stream of pseudo-random bytes (SplitMix64).
#[derive(Debug)]
pub struct Noise {
    state: u64,
}

impl Noise {
    /// Starts the stream that follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Returns the next number below `limit`, for choices that the seed makes; small limits are met
    /// evenly enough.
    ///
    /// # Panics
    /// When `limit` is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn next(&mut self) -> u64 {
        // Constants of SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators".
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Read for Noise {
    /// Fills `buffer` wholly, but for a rest of less than eight bytes that no word fits.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for piece in buffer.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
        Ok(buffer.len())
    }
}
