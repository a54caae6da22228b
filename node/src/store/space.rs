//! How much the store may hold, and how much it does.
//!
//! Arithmetic only: what is evicted to make room is decided in `eviction`.

use std::path::Path;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::config::Config;
use super::error::{FileContext, StoreError};
use super::layout::{Layout, replace};

/// Part of the file system that stays free unless configured: one twentieth.
const DEFAULT_MIN_FREE_DIVISOR: u64 = 20;

/// The bounds of a store, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most bytes that blobs and parts may take.
    pub max_size: u64,
    /// Free bytes that the file system keeps.
    pub min_free: u64,
}

/// Free and total bytes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) free: u64,
    total: u64,
}

impl Disk {
    pub(super) fn of(path: &Path) -> Result<Self, StoreError> {
        let stat = rustix::fs::statvfs(path).doing("examine", path)?;
        Ok(Self {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }
}

impl Limits {
    /// Takes the configured bounds, else those of the first start: half of what was free then,
    /// and one twentieth of the file system to stay free.
    pub(super) fn resolve(config: &Config, layout: &Layout) -> Result<Self, StoreError> {
        let path = layout.limits();
        let saved = std::fs::read(&path).ok();
        let saved: Option<Self> = saved.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let chosen = match saved {
            Some(limits) => limits,
            None => {
                let disk = Disk::of(layout.root())?;
                let limits = Self {
                    max_size: disk.free / 2,
                    min_free: disk.total / DEFAULT_MIN_FREE_DIVISOR,
                };
                let bytes = serde_json::to_vec(&limits).expect("two numbers are valid JSON");
                replace(&path, &bytes)?;
                limits
            }
        };
        Ok(Self {
            max_size: config.max_size.unwrap_or(chosen.max_size),
            min_free: config.min_free.unwrap_or(chosen.min_free),
        })
    }
}

/// Bytes that are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// By complete blobs.
    pub(super) blobs: u64,
    /// Number of complete blobs.
    pub(super) blob_count: u64,
    /// By parts that grow: what has come of them, and room for some more.
    pub(super) growing: u64,
    /// What these are going to take beyond that, if their sizes were stated rightly. Others make way
    /// for it only when it comes.
    promised: u64,
    /// Bytes of these that the file system has not allocated yet, so that it counts them as free.
    unallocated: u64,
    /// By parts that are suspended.
    pub(super) suspended: u64,
}

/// The account of one store.
#[derive(Debug)]
pub(super) struct Space {
    limits: Limits,
    taken: Mutex<Taken>,
}

impl Space {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            taken: Mutex::default(),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn taken(&self) -> Taken {
        *self.taken.lock()
    }

    /// Returns how many bytes have to go so that `ahead` more would fit.
    pub(super) fn lacking(&self, ahead: u64, free: u64) -> u64 {
        let taken = self.taken();
        let total = taken.blobs + taken.growing + taken.suspended;
        let by_size = total.saturating_add(ahead);
        let by_disk = self.limits.min_free.saturating_add(ahead);
        let free = free.saturating_sub(taken.unallocated);
        by_size
            .saturating_sub(self.limits.max_size)
            .max(by_disk.saturating_sub(free))
    }

    pub(super) fn add_blob(&self, size: u64) {
        let mut taken = self.taken.lock();
        taken.blobs += size;
        taken.blob_count += 1;
    }

    pub(super) fn remove_blob(&self, size: u64) {
        let mut taken = self.taken.lock();
        taken.blobs = taken.blobs.saturating_sub(size);
        taken.blob_count = taken.blob_count.saturating_sub(1);
    }

    pub(super) fn shrink(&self, size: u64) {
        let mut taken = self.taken.lock();
        taken.growing = taken.growing.saturating_sub(size);
    }

    /// Notes that the file system has allocated so many of the bytes that growing parts took, or
    /// never will.
    pub(super) fn allocated(&self, size: u64) {
        let mut taken = self.taken.lock();
        taken.unallocated = taken.unallocated.saturating_sub(size);
    }

    /// Promises bytes to a growing part if they would fit without what may be evicted: all but
    /// `pinned` bytes of blobs.
    ///
    /// `free` is as in [`Space::try_grow`].
    pub(super) fn try_promise(&self, size: u64, pinned: u64, free: u64) -> bool {
        let mut taken = self.taken.lock();
        let pinned = pinned.min(taken.blobs);
        let total = pinned + taken.growing + taken.promised;
        let free = free.saturating_add(taken.blobs - pinned + taken.suspended);
        let free = free.saturating_sub(taken.unallocated + taken.promised);
        let fits = total.saturating_add(size) <= self.limits.max_size
            && free >= self.limits.min_free.saturating_add(size);
        if fits {
            taken.promised += size;
        }
        fits
    }

    /// Takes a promise back, or notes that it was kept.
    pub(super) fn unpromise(&self, size: u64) {
        let mut taken = self.taken.lock();
        taken.promised = taken.promised.saturating_sub(size);
    }

    pub(super) fn suspend(&self, size: u64) {
        self.taken.lock().suspended += size;
    }

    /// Takes what a suspended part took of the disk out of the account.
    pub(super) fn remove_suspended(&self, size: u64) {
        self.resume(size, 0);
    }

    /// As [`Space::remove_suspended`], for a part that grows on from `here` bytes.
    pub(super) fn resume(&self, size: u64, here: u64) {
        let mut taken = self.taken.lock();
        taken.suspended = taken.suspended.saturating_sub(size);
        taken.growing += here;
    }

    /// Takes `needed` bytes for a growing part if they fit now.
    ///
    /// `free` is what the file system has free, what it has not allocated yet included.
    pub(super) fn try_grow(&self, needed: u64, free: u64) -> bool {
        let mut taken = self.taken.lock();
        let total = taken.blobs + taken.growing + taken.suspended;
        let fits = total.saturating_add(needed) <= self.limits.max_size
            && free.saturating_sub(taken.unallocated)
                >= self.limits.min_free.saturating_add(needed);
        if fits {
            taken.growing += needed;
            taken.unallocated += needed;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(max_size: u64, min_free: u64) -> Space {
        Space::new(Limits { max_size, min_free })
    }

    #[test]
    fn parts_and_blobs_share_the_bound() {
        let space = space(100, 0);
        space.add_blob(50);
        assert!(space.try_grow(50, 1_000));
        assert!(!space.try_grow(1, 1_000));
        space.shrink(50);
        space.suspend(50);
        assert!(!space.try_grow(1, 1_000));
        space.remove_blob(50);
        assert!(space.try_grow(50, 1_000));
    }

    #[test]
    fn what_a_part_has_counts_while_it_grows_on_and_needs_no_room_again() {
        let space = space(100, 0);
        space.suspend(60);
        space.resume(60, 50);
        assert_eq!((space.taken().suspended, space.taken().growing), (0, 50));
        assert!(!space.try_grow(51, 1_000));
        assert!(!space.try_promise(51, 0, 1_000));
        assert!(space.try_grow(50, 50), "the other half is on the disk");
    }

    #[test]
    fn the_file_system_keeps_its_reserve() {
        let space = space(u64::MAX, 100);
        assert!(!space.try_grow(10, 109));
        assert!(space.try_grow(10, 110));
    }

    #[test]
    fn what_is_not_allocated_yet_is_not_free() {
        let space = space(u64::MAX, 0);
        assert!(space.try_grow(60, 100));
        assert!(!space.try_grow(60, 100));
        space.allocated(60);
        assert!(space.try_grow(60, 100));
    }

    #[test]
    fn promises_count_on_what_may_be_evicted_and_on_each_other() {
        let space = space(100, 10);
        space.add_blob(90);
        assert!(!space.try_promise(60, 50, 1_000), "so much is being read");
        assert!(space.try_promise(60, 20, 1_000));
        assert!(!space.try_promise(30, 20, 1_000), "it was promised");
        space.unpromise(60);
        assert!(
            !space.try_promise(90, 0, 9),
            "the file system keeps its reserve"
        );
    }

    #[test]
    fn what_lacks_ahead_is_the_greater_of_both_bounds() {
        let space = space(100, 10);
        space.add_blob(90);
        assert_eq!(space.lacking(5, 1_000), 0);
        assert_eq!(space.lacking(15, 1_000), 5);
        assert_eq!(space.lacking(15, 12), 13);
    }

    #[test]
    fn default_bounds_are_those_of_the_first_start() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let layout = Layout::create(folder.path()).expect("folders");
        let config = Config::new(folder.path());
        let first = Limits::resolve(&config, &layout).expect("limits");
        assert!(first.max_size > 0 && first.min_free > 0);
        std::fs::write(layout.limits(), r#"{"max_size":7,"min_free":8}"#).expect("written");
        let next = Limits::resolve(&config, &layout).expect("limits");
        assert_eq!((next.max_size, next.min_free), (7, 8));
        let configured = Config {
            max_size: Some(9),
            ..config
        };
        assert_eq!(
            Limits::resolve(&configured, &layout)
                .expect("limits")
                .max_size,
            9
        );
    }
}
