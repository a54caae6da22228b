//! How many read far chunks of a blob from this node at a time.
//!
//! They have slots of their own: who takes the blob in order must not wait behind them, nor they
//! behind it. Bookkeeping only; no I/O.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_protocol::oci::Digest;
use parking_lot::Mutex;

/// Most readers of far chunks of one blob at a time. Each makes this node's link carry some of the
/// blob once more than the chain of takers does; as many can have a segment of their own.
const MAX_FAR_READERS: usize = 4;

/// The readers of far chunks; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct FarReaders {
    readers: Arc<Mutex<HashMap<Digest, usize>>>,
}

/// Someone who reads far chunks of a blob; dropping it frees the slot.
#[derive(Debug)]
pub(super) struct FarSlot {
    all: FarReaders,
    digest: Digest,
}

impl FarReaders {
    /// Takes a slot; `None` when all are taken.
    pub(super) fn read(&self, digest: &Digest) -> Option<FarSlot> {
        let mut readers = self.readers.lock();
        let count = readers.entry(*digest).or_default();
        if *count >= MAX_FAR_READERS {
            return None;
        }
        *count += 1;
        Some(FarSlot {
            all: self.clone(),
            digest: *digest,
        })
    }
}

impl Drop for FarSlot {
    fn drop(&mut self) {
        let mut readers = self.all.readers.lock();
        if let Some(count) = readers.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&self.digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_protocol::oci::Algorithm;

    #[test]
    fn slots_are_few_for_each_blob_and_nothing_is_kept_of_who_has_left() {
        let all = FarReaders::default();
        let digest = |content: &[u8]| Digest::of(Algorithm::Sha256, content);
        let read = |content: &[u8]| all.read(&digest(content));
        let slots: Vec<_> = (0..MAX_FAR_READERS).map(|_| read(b"one")).collect();
        assert!(slots.iter().all(Option::is_some));
        assert!(read(b"one").is_none());
        assert!(read(b"other").is_some());
        drop(slots);
        assert!(all.readers.lock().is_empty());
    }
}
