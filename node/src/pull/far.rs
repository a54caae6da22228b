//! Chunks that came ahead of the chain: what each was when it came, and by whose word.
//!
//! Whoever reads far ahead cannot wait until hashing has come there. A chunk that is here before is
//! known by a digest of its own: the node that has it of an upstream computes it while the bytes
//! arrive, and those who take it from there check it and pass it on. It is as provisional as the
//! chain is: what counts in the end is that the chain, and then the whole, fit. Bookkeeping only; no
//! I/O.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest, Hasher};

/// Most stretches that are hashed at the same time; there are fewer segments.
const MAX_RUNS: usize = 8;

/// The chunks of one blob that are here ahead of its chain.
#[derive(Debug, Default)]
pub(super) struct FarChunks {
    known: BTreeMap<u32, FarChunk>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FarChunk {
    pub(super) digest: Digest,
    /// Who stated the digest; `None` when it was computed here from an upstream's bytes.
    pub(super) stated_by: Option<NodeId>,
}

impl FarChunks {
    pub(super) fn insert(&mut self, index: u32, chunk: FarChunk) {
        self.known.insert(index, chunk);
    }

    pub(super) fn get(&self, index: u32) -> Option<&FarChunk> {
        self.known.get(&index)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Forgets the chunks that a chain of so many values has come to.
    pub(super) fn forget(&mut self, chained: usize) {
        while let Some(first) = self.known.first_entry()
            && (*first.key() as usize) < chained
        {
            first.remove();
        }
    }
}

/// Digests of whole chunks whose bytes arrive out of the blob's order.
#[derive(Debug, Default)]
pub(super) struct FarHasher {
    runs: Vec<Run>,
    found: Vec<(u32, Digest)>,
}

/// A chunk whose bytes are here from its start up to `next`.
#[derive(Debug)]
struct Run {
    next: u64,
    hasher: Hasher,
}

impl FarHasher {
    /// Adds consecutive bytes, beginning at `offset`.
    pub(super) fn add(&mut self, mut offset: u64, chunks: &[Bytes]) {
        for bytes in chunks {
            self.add_piece(offset, bytes);
            offset += bytes.len() as u64;
        }
    }

    fn add_piece(&mut self, mut offset: u64, mut bytes: &[u8]) {
        let run = self.runs.iter().position(|run| run.next == offset);
        let mut hasher = run.map(|run| self.runs.swap_remove(run).hasher);
        while !bytes.is_empty() {
            if offset.is_multiple_of(CHUNK_BYTES) {
                hasher = Some(Algorithm::Sha256.hasher());
            }
            let to_end = CHUNK_BYTES - offset % CHUNK_BYTES;
            let take = usize::try_from(to_end).map_or(bytes.len(), |room| room.min(bytes.len()));
            let (now, later) = bytes.split_at(take);
            if let Some(hasher) = &mut hasher {
                hasher.update(now);
            }
            offset += now.len() as u64;
            bytes = later;
            if offset.is_multiple_of(CHUNK_BYTES)
                && let Some(hasher) = hasher.take()
                && let Ok(index) = u32::try_from(offset / CHUNK_BYTES - 1)
            {
                self.found.push((index, hasher.finish()));
            }
        }
        if let Some(hasher) = hasher {
            if self.runs.len() == MAX_RUNS {
                self.runs.remove(0);
            }
            self.runs.push(Run {
                next: offset,
                hasher,
            });
        }
    }

    /// Gives the digests that were found since.
    pub(super) fn take(&mut self) -> Vec<(u32, Digest)> {
        std::mem::take(&mut self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk() -> usize {
        usize::try_from(CHUNK_BYTES).expect("fits")
    }

    fn content(length: usize) -> Bytes {
        (0..length).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[test]
    fn whole_chunks_are_hashed_in_whatever_order_stretches_arrive() {
        let bytes = content(chunk() * 4);
        let mut hasher = FarHasher::default();
        let (second, fourth) = (chunk() + 7, chunk() * 3);
        // Two stretches in turns; the first begins in the middle of a chunk.
        for at in 0..8 {
            let step = chunk() / 4;
            for start in [second, fourth] {
                let from = start + at * step;
                let piece = bytes.slice(from.min(bytes.len())..(from + step).min(bytes.len()));
                hasher.add(from as u64, &[piece]);
            }
        }
        let mut found = hasher.take();
        found.sort_by_key(|(index, _)| *index);
        let whole = |index: usize| {
            let bytes = &bytes[index * chunk()..(index + 1) * chunk()];
            Digest::of(Algorithm::Sha256, bytes)
        };
        assert_eq!(found, [(2, whole(2)), (3, whole(3))]);
        assert!(hasher.take().is_empty());
        assert!(hasher.runs.len() <= MAX_RUNS);
    }

    #[test]
    fn what_the_chain_has_come_to_is_forgotten() {
        let mut far = FarChunks::default();
        let chunk = FarChunk {
            digest: Digest::of(Algorithm::Sha256, b""),
            stated_by: None,
        };
        for index in [3, 9] {
            far.insert(index, chunk);
        }
        far.forget(4);
        assert_eq!(far.get(3), None);
        assert_eq!(far.get(9), Some(&chunk));
        far.forget(10);
        assert!(far.is_empty());
    }
}
