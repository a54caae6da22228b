//! The digest in the making: bytes hashed in the blob's order, and chunks checked on the way.
//!
//! A chunk from another node is hashed from the value before it, which is a step of the whole's own
//! hash: it is not hashed again. All of it blocks; where it runs is `sink`'s.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::chunk::{CHUNK_BYTES, ChainHasher, ChainValue};
use millrace_protocol::oci::{Algorithm, Digest};
use parking_lot::Mutex;
use rangemap::RangeSet;

use super::passing::Passing;
use super::{Checked, Taken};
use crate::store::{PartWriter, StoreError};

/// Size of the buffer through which written bytes are read again for hashing.
const REREAD_BYTES: usize = 256 * 1024;

/// Most chunks whose hashes wait for that of the chunk before them; further ones are hashed again.
const MAX_AHEAD: usize = 16;

/// The values by which the chunks of a blob are checked, from its first chunk on, as far as its
/// bytes were hashed; they are right once the digest is.
pub(super) type Chain = Arc<Mutex<Vec<ChainValue>>>;

/// The digest in the making.
#[derive(Debug)]
pub(super) struct Verification {
    hasher: ChainHasher,
    chain: Chain,
    /// Chunks that were checked before the one before them: start → value before, hasher behind.
    ahead: BTreeMap<u64, (ChainValue, ChainHasher)>,
}

/// What a chunk from another node must fit.
#[derive(Debug)]
pub(in crate::pull) struct Check {
    /// The value before the chunk.
    pub(in crate::pull) before: ChainValue,
    /// The value behind it; `None` for the last chunk, which must lead to the digest.
    pub(in crate::pull) after: Option<ChainValue>,
}

/// A chunk from another node.
#[derive(Debug)]
pub(in crate::pull) struct Arrived {
    pub(in crate::pull) offset: u64,
    pub(in crate::pull) bytes: Vec<Bytes>,
    pub(in crate::pull) check: Check,
}

impl Arrived {
    /// Checks the chunk, writes it, and adds it to the digest in the making; without a writer it is
    /// only checked. Blocks.
    ///
    /// # Errors
    /// It is right and cannot be written.
    pub(super) fn take(
        self,
        digest: &Digest,
        writer: Option<&PartWriter>,
        progress: &Mutex<Verification>,
    ) -> Result<Checked, (StoreError, Passing)> {
        let Self {
            offset,
            bytes,
            check,
        } = self;
        let hasher = match check.run(digest, offset, &bytes) {
            Ok(hasher) => hasher,
            Err(wrong) => return Ok(Checked::Wrong(wrong)),
        };
        let before = check.before;
        let Some(writer) = writer else {
            let passing = Passing::checked(bytes, before, hasher);
            return Ok(Checked::Right(Taken::Relayed(passing)));
        };
        if let Err(error) = writer.write(offset, &bytes) {
            return Err((error, Passing::checked(bytes, before, hasher)));
        }
        progress.lock().adopt(offset, before, hasher);
        Ok(Checked::Right(Taken::Written))
    }
}

impl Check {
    /// Hashes a chunk and compares; returns the hasher behind it.
    ///
    /// # Errors
    /// The chunk is wrong; with the digest of the whole for a last one.
    fn run(
        &self,
        digest: &Digest,
        offset: u64,
        chunks: &[Bytes],
    ) -> Result<ChainHasher, Option<Digest>> {
        let mut hasher = ChainHasher::resume(self.before.clone(), offset / CHUNK_BYTES);
        for chunk in chunks {
            hasher.update(chunk, |_| ());
        }
        match &self.after {
            Some(after) if hasher.value() == Some(after) => Ok(hasher),
            Some(_) => Err(None),
            None => {
                let actual = hasher.clone().finish();
                if actual == *digest {
                    Ok(hasher)
                } else {
                    Err(Some(actual))
                }
            }
        }
    }
}

impl Verification {
    /// Begins with nothing hashed; the values are added to `chain`.
    pub(super) fn new(algorithm: Algorithm, chain: Chain) -> Self {
        Self {
            hasher: ChainHasher::new(algorithm),
            chain,
            ahead: BTreeMap::new(),
        }
    }

    /// Returns the digest of what was hashed.
    pub(super) fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    pub(super) fn hashed(&self) -> u64 {
        self.hasher.hashed()
    }

    /// Adds bytes if they are the next ones; returns whether they are.
    pub(super) fn add(&mut self, offset: u64, chunks: &[Bytes]) -> bool {
        let are_next = offset == self.hashed();
        if are_next {
            chunks.iter().for_each(|chunk| self.update(chunk));
        }
        are_next
    }

    /// Goes on behind the chunk at `offset` that `checked` has hashed from `before`, if that is
    /// where this blob's own chain ends.
    pub(super) fn adopt(&mut self, offset: u64, before: ChainValue, checked: ChainHasher) {
        if self.ahead.len() < MAX_AHEAD {
            self.ahead.insert(offset, (before, checked));
        } else if offset == self.hashed() {
            self.follow(offset, &before, checked);
        }
        while let Some((before, checked)) = self.ahead.remove(&self.hashed()) {
            let offset = self.hashed();
            self.follow(offset, &before, checked);
        }
        self.ahead = self.ahead.split_off(&self.hashed());
    }

    fn follow(&mut self, offset: u64, before: &ChainValue, checked: ChainHasher) {
        let mut chain = self.chain.lock();
        let start = ChainValue::start(before.algorithm());
        let is_next = chain.len() as u64 * CHUNK_BYTES == offset;
        if is_next && chain.last().unwrap_or(&start) == before {
            chain.extend(checked.value().cloned());
            self.hasher = checked;
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        let chain = &self.chain;
        self.hasher.update(bytes, |value| chain.lock().push(value));
    }

    /// Hashes what was written out of order, up to the position `until`; blocks.
    pub(super) fn catch_up(
        &mut self,
        file: Option<&PartWriter>,
        written: &RangeSet<u64>,
        until: u64,
    ) -> Result<(), StoreError> {
        let Some(file) = file else { return Ok(()) };
        let mut buffer = Vec::new();
        while self.hashed() < until
            && let Some(range) = written.get(&self.hashed())
        {
            buffer.resize(REREAD_BYTES, 0);
            let length = (range.end.min(until) - self.hashed()).min(REREAD_BYTES as u64);
            let piece = &mut buffer[..usize::try_from(length).expect("at most REREAD_BYTES")];
            file.read(self.hashed(), piece)?;
            self.update(piece);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_that_are_checked_out_of_order_are_adopted_in_order() {
        let chunk = usize::try_from(CHUNK_BYTES).expect("it fits");
        let bytes = vec![7; chunk * 3 + 9];
        let mut values = Vec::new();
        let mut whole = ChainHasher::new(Algorithm::Sha256);
        whole.update(&bytes, |value| values.push(value));
        let mut verification = Verification::new(Algorithm::Sha256, Chain::default());
        for index in [2, 1, 3, 0] {
            let start = index * chunk;
            let before = match index.checked_sub(1) {
                None => ChainValue::start(Algorithm::Sha256),
                Some(last) => values[last].clone(),
            };
            let mut hasher = ChainHasher::resume(before.clone(), index as u64);
            hasher.update(&bytes[start..bytes.len().min(start + chunk)], |_| ());
            verification.adopt(start as u64, before, hasher);
        }
        assert_eq!(*verification.chain.lock(), values);
        assert_eq!(verification.hashed(), bytes.len() as u64);
        assert_eq!(verification.digest(), whole.finish());
        assert!(verification.ahead.is_empty());
    }

    #[test]
    fn the_chain_has_a_value_for_each_whole_chunk_that_came_in_order() {
        let chunk = usize::try_from(CHUNK_BYTES).expect("it fits");
        let bytes = Bytes::from(vec![7; chunk * 2 + 9]);
        let mut verification = Verification::new(Algorithm::Sha256, Chain::default());
        verification.add(5, &[bytes.slice(5..)]);
        assert!(verification.chain.lock().is_empty(), "not in order");
        verification.add(0, &[bytes.slice(..chunk / 2), bytes.slice(chunk / 2..)]);
        let mut values = Vec::new();
        let mut expected = ChainHasher::new(Algorithm::Sha256);
        expected.update(&bytes, |value| values.push(value));
        assert_eq!(*verification.chain.lock(), values);
        assert_eq!(values.len(), 2);
        assert_eq!(verification.hashed(), bytes.len() as u64);
    }
}
