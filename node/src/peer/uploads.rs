//! The slots in which chunks are sent to peers: so many at a time, and few of them for copies that
//! nobody waits for. Bookkeeping only; no I/O.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of so many slots one may send what nobody waits for.
const COPIES_HAVE_ONE_OF: usize = 4;

/// The slots of a node; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Uploads {
    slots: Arc<Semaphore>,
    /// The part of the slots that copies may have.
    copy_slots: Arc<Semaphore>,
    most: usize,
}

/// The right to answer one request for chunks, until it is dropped.
#[derive(Debug)]
pub(super) struct Upload {
    _slot: OwnedSemaphorePermit,
    /// Beside the slot, where nobody waits for the chunks.
    _copy_slot: Option<OwnedSemaphorePermit>,
}

impl Uploads {
    pub(super) fn new(most: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(most)),
            copy_slots: Arc::new(Semaphore::new(most.div_ceil(COPIES_HAVE_ONE_OF))),
            most,
        }
    }

    /// Takes a slot if one is free.
    pub(super) fn try_take(&self, is_copy: bool) -> Option<Upload> {
        let copy_slot = match is_copy {
            true => Some(Arc::clone(&self.copy_slots).try_acquire_owned().ok()?),
            false => None,
        };
        Some(Upload {
            _slot: Arc::clone(&self.slots).try_acquire_owned().ok()?,
            _copy_slot: copy_slot,
        })
    }

    /// Returns how many are taken.
    pub(super) fn taken(&self) -> usize {
        self.most.saturating_sub(self.slots.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_leave_most_slots_to_what_somebody_waits_for() {
        let uploads = Uploads::new(8);
        let copies: Vec<_> = std::iter::from_fn(|| uploads.try_take(true)).collect();
        assert_eq!(copies.len(), 2);
        let others: Vec<_> = std::iter::from_fn(|| uploads.try_take(false)).collect();
        assert_eq!(others.len(), 6);
        drop(copies);
        assert_eq!(uploads.taken(), 6);
        assert!(uploads.try_take(true).is_some());
    }
}
