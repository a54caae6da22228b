//! Making room: what was not used for longest goes first, and what is being read never.
//!
//! Suspended parts go before blobs, and last copies of a cluster after all others. This waits for
//! nobody: the bound of the disk holds whatever other nodes have. The account of bytes is kept in
//! `space`, room ahead of need in `custody`.

use std::sync::Arc;

use millrace_protocol::oci::Digest;
use tokio::time::Instant;

use super::changes::Change;
use super::error::StoreError;
use super::space::Disk;
use super::{Inner, layout, log_failure};

impl Inner {
    /// Takes `needed` bytes for a growing part, evicting until they fit; blocks.
    pub(super) fn make_room(&self, needed: u64) -> Result<(), StoreError> {
        let max_bytes = self.space.limits().max_size;
        if needed > max_bytes {
            return Err(StoreError::TooLarge {
                size_bytes: needed,
                max_bytes,
            });
        }
        let fits = || -> Result<bool, StoreError> {
            let fits = self
                .space
                .try_grow(needed, Disk::of(self.layout.root())?.free);
            if fits {
                self.scarce.notify_one();
            }
            Ok(fits)
        };
        if fits()? {
            return Ok(());
        }
        let _one_at_a_time = self.eviction.lock();
        self.flush_touched()?;
        let is_spared = |digest: &Digest| self.spared.lock().contains(digest);
        let last_copies = std::iter::once_with(|| self.index.least_recent()).flatten();
        let mut victims = self
            .index
            .least_recent()
            .filter(|digest| !is_spared(digest))
            .chain(last_copies.filter(is_spared));
        while !fits()? {
            if self.evict_suspended() {
                continue;
            }
            let Some(victim) = victims.next() else {
                return Err(StoreError::NoSpace {
                    needed_bytes: needed,
                });
            };
            self.evict(&victim);
        }
        Ok(())
    }

    /// Promises `more` bytes to a part that is said to become `size` bytes long, if everything that
    /// is not in use could make way for it; nothing is evicted yet. Blocks.
    pub(super) fn promise(&self, size: u64, more: u64) -> Result<(), StoreError> {
        let max_bytes = self.space.limits().max_size;
        if size > max_bytes {
            return Err(StoreError::TooLarge {
                size_bytes: size,
                max_bytes,
            });
        }
        // Before, it is not known how much could be evicted.
        let free = if *self.index_ready.borrow() {
            Disk::of(self.layout.root())?.free
        } else {
            u64::MAX
        };
        if self.space.try_promise(more, self.pinned_bytes()?, free) {
            return Ok(());
        }
        Err(StoreError::NoSpace { needed_bytes: more })
    }

    /// Returns how many bytes of blobs are being read.
    fn pinned_bytes(&self) -> Result<u64, StoreError> {
        let pinned: Vec<Digest> = self.pins.lock().keys().copied().collect();
        let mut bytes = 0;
        for digest in pinned {
            bytes += self.index.blob(&digest)?.map_or(0, |record| record.size);
        }
        Ok(bytes)
    }

    /// Brings the store within its bounds, after a start with smaller ones; blocks.
    pub(super) fn trim(&self) -> Result<(), StoreError> {
        match self.make_room(0) {
            // Everything left is being read: the next reservation tries again.
            Err(StoreError::NoSpace { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes the suspended part that waits longest; if its file stays, the next start removes it.
    /// Returns whether there was one.
    fn evict_suspended(&self) -> bool {
        // Held until the file is gone, so that a fill that starts now does not continue it.
        let mut suspended = self.suspended.lock();
        let oldest = suspended.iter().min_by_key(|(_, part)| part.since);
        let Some((digest, part)) = oldest.map(|(digest, part)| (*digest, *part)) else {
            return false;
        };
        suspended.remove(&digest);
        self.space.remove_suspended(part.bytes);
        for file in [self.layout.part_state(&digest), self.layout.part(&digest)] {
            log_failure(layout::remove(&file), "remove a suspended part");
        }
        self.metrics.evicted_parts.inc();
        true
    }

    /// Removes a blob unless it is being read. Returns whether it is gone.
    ///
    /// One that cannot be removed, such as in a folder of another user, is logged and must not keep
    /// others from making way: its next turn comes after all of them, and not before a while.
    pub(super) fn evict(&self, digest: &Digest) -> bool {
        let now = Instant::now();
        if self.unremovable.contains(digest, now) {
            return false;
        }
        // Readers pin under this lock before they open the file, so none can slip in between.
        let pins = self.pins.lock();
        if pins.contains_key(digest) {
            return false;
        }
        let is_last = self.spared.lock().contains(digest);
        let removed = self.remove_blob(digest);
        drop(pins);
        if removed.is_err() {
            self.unremovable.add(digest, now);
            self.touch(digest);
            if self.removals.is_due() {
                log_failure(removed, "evict; other content makes way instead");
            }
            return false;
        }
        self.metrics.evicted_blobs.inc();
        if is_last {
            self.metrics.evicted_last_copies.inc();
        }
        tracing::debug!(blob.digest = %digest, is_last, "evicted");
        true
    }

    /// Removes a blob's files and index entries; others hear of it first.
    pub(super) fn remove_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.announcer.announce(Change::Went(*digest));
        let path = self.layout.blob(digest);
        let removed = layout::remove(&path);
        if removed.is_err() && path.is_file() {
            self.announcer.announce(Change::Came(*digest));
        }
        removed?;
        self.spared.lock().remove(digest);
        self.unremovable.forget(digest);
        layout::remove(&self.layout.sidecar(digest))?;
        self.forget(digest)
    }
}

/// Keeps a blob from eviction while it lives.
#[derive(Debug)]
pub struct Pin {
    inner: Arc<Inner>,
    digest: Digest,
}

impl Pin {
    pub(super) fn new(inner: &Arc<Inner>, digest: &Digest) -> Self {
        *inner.pins.lock().entry(*digest).or_insert(0) += 1;
        Self {
            inner: Arc::clone(inner),
            digest: *digest,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.inner.pins.lock();
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}
