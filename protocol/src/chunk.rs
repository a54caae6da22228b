//! Chunks of a blob and the values by which each is checked before the whole blob is here.
//!
//! A blob is cut into chunks of [`CHUNK_BYTES`]. The check value of a chunk is the running state
//! of the blob's own hash function behind the chunk's last byte. A chunk is right if hashing it
//! from the value before leads to the value behind it; the last chunk must lead to the digest
//! itself. So one pass over the bytes checks every chunk *and* the whole, and a node that has
//! fetched a blob has its chain of values without hashing anything twice. Two chunks that pass
//! the same check would be a collision of the hash function.
//!
//! A chain that somebody else states is provisional until the digest is reached: a wrong one may
//! cost a pull, never a wrong byte in a store. Source: FIPS 180-4 section 6; SPEC.md "Chunks".

use serde::{Deserialize, Serialize};
use sha2::block_api::{compress256, compress512};

use crate::oci::{Algorithm, Digest};

/// Bytes of every chunk but the last, which may be shorter. A chain of nodes delays a blob by the
/// time of one chunk per node, a value costs 32 bytes: a quarter of a mebibyte is little of both.
pub const CHUNK_BYTES: u64 = 256 * 1024;

/// Most chunks of one blob: 4 TiB of content, or 1 GiB of values for it.
pub const MAX_CHUNKS: u32 = 16 * 1024 * 1024;

/// Bytes of a block of sha256.
const BLOCK_256: usize = 64;
/// Bytes of a block of sha512.
const BLOCK_512: usize = 128;

/// Returns how many chunks a blob of `size` bytes has.
pub fn count(size: u64) -> u64 {
    size.div_ceil(CHUNK_BYTES)
}

/// The state of a blob's hash behind a whole number of chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChainValue {
    /// State of sha256.
    Sha256([u32; 8]),
    /// State of sha512; boxed because it is twice as large and rarely used.
    Sha512(Box<[u64; 8]>),
}

impl ChainValue {
    /// Returns the state before the first byte.
    pub fn start(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256([
                0x6a09_e667,
                0xbb67_ae85,
                0x3c6e_f372,
                0xa54f_f53a,
                0x510e_527f,
                0x9b05_688c,
                0x1f83_d9ab,
                0x5be0_cd19,
            ]),
            Algorithm::Sha512 => Self::Sha512(Box::new([
                0x6a09_e667_f3bc_c908,
                0xbb67_ae85_84ca_a73b,
                0x3c6e_f372_fe94_f82b,
                0xa54f_f53a_5f1d_36f1,
                0x510e_527f_ade6_82d1,
                0x9b05_688c_2b3e_6c1f,
                0x1f83_d9ab_fb41_bd6b,
                0x5be0_cd19_137e_2179,
            ])),
        }
    }

    /// Returns the algorithm whose state this is.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Adds whole blocks.
    fn compress(&mut self, blocks: &[u8]) {
        match self {
            Self::Sha256(state) => {
                let (blocks, rest) = blocks.as_chunks::<BLOCK_256>();
                debug_assert!(rest.is_empty(), "whole blocks only");
                compress256(state, blocks);
            }
            Self::Sha512(state) => {
                let (blocks, rest) = blocks.as_chunks::<BLOCK_512>();
                debug_assert!(rest.is_empty(), "whole blocks only");
                compress512(state, blocks);
            }
        }
    }

    fn block_bytes(&self) -> usize {
        match self {
            Self::Sha256(_) => BLOCK_256,
            Self::Sha512(_) => BLOCK_512,
        }
    }

    /// Returns the digest of `size` bytes of which the last block is not full and is `rest`.
    fn finish(mut self, rest: &[u8], size: u64) -> Digest {
        let block = self.block_bytes();
        // The length field of sha256 has 8 bytes, that of sha512 has 16.
        let length_bytes = block / 8;
        let mut padding = rest.to_vec();
        padding.push(0x80);
        let filled = (padding.len() + length_bytes).next_multiple_of(block);
        padding.resize(filled - 8, 0);
        padding.extend_from_slice(&(size * 8).to_be_bytes());
        self.compress(&padding);
        self.into_digest()
    }

    fn into_digest(self) -> Digest {
        let (algorithm, hash) = match self {
            Self::Sha256(state) => {
                let hash: Vec<u8> = state.iter().flat_map(|word| word.to_be_bytes()).collect();
                (Algorithm::Sha256, hash)
            }
            Self::Sha512(state) => {
                let hash: Vec<u8> = state.iter().flat_map(|word| word.to_be_bytes()).collect();
                (Algorithm::Sha512, hash)
            }
        };
        Digest::from_hash(algorithm, &hash)
    }
}

/// Computes the chain of a blob and its digest in one pass over its bytes.
#[derive(Clone, Debug)]
pub struct ChainHasher {
    state: ChainValue,
    /// Bytes of a block that is not full; shorter than a block.
    rest: Vec<u8>,
    hashed: u64,
}

impl ChainHasher {
    /// Starts before the first byte.
    pub fn new(algorithm: Algorithm) -> Self {
        Self {
            state: ChainValue::start(algorithm),
            rest: Vec::with_capacity(BLOCK_512),
            hashed: 0,
        }
    }

    /// Returns how many bytes were added.
    pub fn hashed(&self) -> u64 {
        self.hashed
    }

    /// Returns the value behind the bytes that were added, which are whole chunks.
    pub fn value(&self) -> Option<&ChainValue> {
        self.hashed
            .is_multiple_of(CHUNK_BYTES)
            .then_some(&self.state)
    }

    /// Adds the next bytes, and calls `reached` with each value at a chunk's end.
    pub fn update(&mut self, mut bytes: &[u8], mut reached: impl FnMut(ChainValue)) {
        while !bytes.is_empty() {
            let to_end = CHUNK_BYTES - self.hashed % CHUNK_BYTES;
            let take = usize::try_from(to_end).map_or(bytes.len(), |room| room.min(bytes.len()));
            let (now, later) = bytes.split_at(take);
            self.add(now);
            if self.hashed.is_multiple_of(CHUNK_BYTES) {
                reached(self.state.clone());
            }
            bytes = later;
        }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        self.hashed += bytes.len() as u64;
        let block = self.state.block_bytes();
        if !self.rest.is_empty() {
            let take = (block - self.rest.len()).min(bytes.len());
            self.rest.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.rest.len() < block {
                return;
            }
            self.state.compress(&self.rest);
            self.rest.clear();
        }
        let whole = bytes.len() - bytes.len() % block;
        self.state.compress(&bytes[..whole]);
        self.rest.extend_from_slice(&bytes[whole..]);
    }

    /// Goes on behind whole chunks that were checked elsewhere.
    ///
    /// `chunks` is how many chunks lie before `value`.
    pub fn resume(value: ChainValue, chunks: u64) -> Self {
        Self {
            state: value,
            rest: Vec::with_capacity(BLOCK_512),
            hashed: chunks * CHUNK_BYTES,
        }
    }

    /// Returns the digest of everything that was added.
    pub fn finish(self) -> Digest {
        self.state.finish(&self.rest, self.hashed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[test]
    fn the_chain_ends_in_the_digest() {
        let chunk = usize::try_from(CHUNK_BYTES).expect("fits");
        for algorithm in Algorithm::ALL {
            for length in [
                0,
                1,
                55,
                56,
                64,
                111,
                112,
                128,
                chunk - 1,
                chunk,
                chunk * 2 + 77,
            ] {
                let bytes = content(length);
                let mut hasher = ChainHasher::new(algorithm);
                let mut values = 0;
                for piece in bytes.chunks(chunk / 3 + 13) {
                    hasher.update(piece, |_| values += 1);
                }
                assert_eq!(values, length / chunk);
                assert_eq!(hasher.finish(), Digest::of(algorithm, &bytes), "{length}");
            }
        }
    }

    #[test]
    fn a_chunk_is_checked_from_the_value_before_it() {
        let chunk = usize::try_from(CHUNK_BYTES).expect("fits");
        let bytes = content(chunk * 2 + 5);
        let mut values = Vec::new();
        let mut hasher = ChainHasher::new(Algorithm::Sha256);
        hasher.update(&bytes, |value| values.push(value));

        let mut second = ChainHasher::resume(values[0].clone(), 1);
        second.update(&bytes[chunk..chunk * 2], |_| ());
        assert_eq!(second.value(), Some(&values[1]));
        second.update(&bytes[chunk * 2..], |_| ());
        assert_eq!(second.value(), None);
        assert_eq!(second.finish(), Digest::of(Algorithm::Sha256, &bytes));

        let mut wrong = bytes[chunk..chunk * 2].to_vec();
        wrong[77] ^= 1;
        let mut second = ChainHasher::resume(values[0].clone(), 1);
        second.update(&wrong, |_| ());
        assert_ne!(second.value(), Some(&values[1]));
    }
}
