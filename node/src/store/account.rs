//! Keeps the index and the account of bytes in step, also while the index is still being read.
//!
//! At start the sizes of all blobs are added up behind the first requests. A cursor says how far
//! that has come: a change in front of it is counted when the cursor arrives, a change behind it
//! at once.

use millrace_protocol::oci::Digest;

use super::Inner;
use super::error::StoreError;
use super::index::{BlobRecord, key};

/// How far the index has been counted.
#[derive(Debug)]
pub(super) enum Counted {
    /// Up to and including this key.
    UpTo(Option<Vec<u8>>),
    /// Wholly; every change counts at once.
    All,
}

impl Counted {
    fn includes(&self, key: &[u8]) -> bool {
        match self {
            Self::UpTo(cursor) => cursor.as_deref().is_some_and(|cursor| key <= cursor),
            Self::All => true,
        }
    }
}

impl Inner {
    /// Puts a blob into the index and the account.
    pub(super) fn record(&self, digest: &Digest, record: BlobRecord) -> Result<(), StoreError> {
        let counted = self.counted.lock();
        let old = self.index.put_blob(digest, record)?;
        if counted.includes(&key(digest)) {
            if let Some(old) = old {
                self.space.remove_blob(old.size);
            }
            self.space.add_blob(record.size);
        }
        Ok(())
    }

    /// Takes a blob out of the index and the account.
    pub(super) fn forget(&self, digest: &Digest) -> Result<(), StoreError> {
        let counted = self.counted.lock();
        let old = self.index.remove_blob(digest)?;
        if let Some(old) = old
            && counted.includes(&key(digest))
        {
            self.space.remove_blob(old.size);
        }
        Ok(())
    }

    /// Adds up the sizes of an index that was there at start; blocks, and returns early when
    /// `stop` says so.
    pub(super) fn count(&self, stop: impl Fn() -> bool) {
        let mut blobs = self.index.blobs();
        while !stop() {
            let mut counted = self.counted.lock();
            let Some((key, record)) = blobs.next() else {
                *counted = Counted::All;
                return;
            };
            if let Some(record) = record {
                self.space.add_blob(record.size);
            }
            *counted = Counted::UpTo(Some(key));
        }
    }

    /// Remembers that a blob was used; cheap, written to the index later.
    pub(super) fn touch(&self, digest: &Digest) {
        // The number is taken under the lock, so that of two uses the later one stays.
        let mut touched = self.touched.lock();
        touched.insert(*digest, self.uses.next());
    }

    /// Writes the accesses since the last call to the index; blocks.
    pub(super) fn flush_touched(&self) -> Result<(), StoreError> {
        let touched = std::mem::take(&mut *self.touched.lock());
        for (digest, accessed) in touched {
            if let Some(record) = self.index.blob(&digest)? {
                self.record(&digest, BlobRecord { accessed, ..record })?;
            }
        }
        Ok(())
    }
}
