//! Opening the index: one that is missing, damaged, incomplete or of another version is set aside and
//! made anew.
//!
//! What a new one has to be filled with is `recovery`'s.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::store::error::{FileContext, StoreError};
use crate::store::layout;

use super::Index;

/// Version of the index as a whole; another one means: build it anew.
const VERSION: &[u8] = b"1";

/// Memory that sled may use for its page cache.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// Whether the opened index can be trusted to be complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Opened {
    Existing,
    New,
}

impl Index {
    /// Opens the index, or a new one when there is none that can be used.
    ///
    /// # Errors
    /// When not even a new index can be made.
    pub(in crate::store) fn open(path: &Path) -> Result<(Self, Opened), StoreError> {
        if path.exists() {
            match Self::try_open(path) {
                Some(index) if index.has_version() => return Ok((index, Opened::Existing)),
                _ => set_aside(path)?,
            }
        }
        layout::make_private(path)?;
        let index = Self::try_open(path).ok_or_else(|| StoreError::Index {
            path: path.to_owned(),
            source: sled::Error::Unsupported("a new index cannot be opened".into()),
        })?;
        Ok((index, Opened::New))
    }

    /// Says that the index knows every file; one that never got so far is built anew.
    pub(in crate::store) fn complete(&self) -> Result<(), StoreError> {
        self.flush()?;
        self.write(self.db.insert("version", VERSION))?;
        self.flush()
    }

    /// Opens what is there; sled panics on some kinds of damage, which counts as damage too. It reads
    /// pages when they are needed, so whatever the start needs is read here.
    fn try_open(path: &Path) -> Option<Self> {
        let open = || -> Result<Self, sled::Error> {
            let db = sled::Config::new()
                .path(path)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(Some(1_000))
                .open()?;
            let by_access = db.open_tree("by_access")?;
            Ok(Self {
                path: path.to_owned(),
                blobs: db.open_tree("blobs")?,
                last_use: last_use(&by_access)?,
                by_access,
                tags: db.open_tree("tags")?,
                repositories: db.open_tree("repositories")?,
                db,
            })
        };
        match catch_unwind(AssertUnwindSafe(open)) {
            Ok(Ok(index)) => Some(index),
            Ok(Err(error)) => {
                tracing::warn!(%error, path = %path.display(), "the index cannot be opened");
                None
            }
            Err(_panic) => {
                tracing::warn!(path = %path.display(), "the index is damaged");
                None
            }
        }
    }

    fn has_version(&self) -> bool {
        self.db
            .get("version")
            .is_ok_and(|version| version.is_some_and(|v| v == VERSION))
    }
}

fn last_use(by_access: &sled::Tree) -> Result<u64, sled::Error> {
    let last = by_access.last()?;
    let number = last.and_then(|(key, _)| Some(u64::from_be_bytes(*key.first_chunk()?)));
    Ok(number.unwrap_or(0))
}

/// Moves an unusable index out of the way, replacing one that was moved before.
fn set_aside(path: &Path) -> Result<(), StoreError> {
    let aside = path.with_extension("damaged");
    tracing::warn!(
        path = %path.display(), moved_to = %aside.display(),
        "the index is incomplete, damaged or of another version; it is rebuilt from the files"
    );
    if aside.exists() {
        std::fs::remove_dir_all(&aside).doing("remove", &aside)?;
    }
    std::fs::rename(path, &aside).doing("move", path)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use super::*;
    use crate::store::index::record::{access_key, key};
    use crate::store::index::tests::{digest, record};

    #[test]
    fn a_damaged_index_is_set_aside() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("index");
        let (index, _) = Index::open(&path).expect("opened");
        index
            .put_repository("docker.io", &"library/alpine".parse().expect("valid name"))
            .expect("put");
        index.flush().expect("flushed");
        close(index);
        std::fs::write(path.join("db"), [0x5a; 8192]).expect("damaged");
        let (index, opened) = Index::open(&path).expect("opened again");
        assert_eq!(opened, Opened::New);
        assert!(index.repositories().is_empty());
        assert!(folder.path().join("index.damaged").exists());
    }

    #[test]
    fn an_index_whose_order_cannot_be_read_is_set_aside() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("index");
        let accessed = 0x1122_3344_5566_7788;
        let (index, _) = Index::open(&path).expect("opened");
        index
            .put_blob(&digest("a"), record(1, accessed))
            .expect("put");
        // So much that the log up to there is no longer read at a start.
        for number in 0..200u8 {
            let filling = index.repositories.insert([number], &[number; 10_000][..]);
            filling.expect("put");
        }
        index.complete().expect("marked");
        close(index);
        // Leaves a snapshot, which the next start reads instead.
        close(Index::open(&path).expect("opened").0);

        let mut bytes = std::fs::read(path.join("db")).expect("read");
        let access_key = access_key(accessed, &key(&digest("a")));
        let places: Vec<usize> = bytes
            .windows(access_key.len())
            .enumerate()
            .filter_map(|(at, window)| (window == access_key).then_some(at))
            .collect();
        assert!(!places.is_empty());
        places.iter().for_each(|&at| bytes[at] ^= 1);
        std::fs::write(path.join("db"), bytes).expect("damaged");
        let (index, opened) = Index::open(&path).expect("opened again");
        assert_eq!((opened, index.last_use()), (Opened::New, 0));
    }

    /// Drops an index and waits until sled's threads have let go of its files.
    fn close(index: Index) {
        let file = std::fs::File::open(index.path.join("db")).expect("sled's file");
        drop(index);
        flock(&file, FlockOperation::LockExclusive).expect("free");
    }

    #[test]
    fn only_a_complete_index_is_believed() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("index");
        let (index, _) = Index::open(&path).expect("opened");
        index.put_blob(&digest("a"), record(1, 10)).expect("put");
        close(index);
        let (index, opened) = Index::open(&path).expect("opened again");
        assert_eq!(opened, Opened::New, "its rebuild was interrupted");
        assert_eq!(index.last_use(), 0);
        index.put_blob(&digest("a"), record(1, 20)).expect("put");
        index.put_blob(&digest("b"), record(1, 30)).expect("put");
        index.complete().expect("marked");
        close(index);
        let (index, opened) = Index::open(&path).expect("opened");
        assert_eq!((opened, index.last_use()), (Opened::Existing, 30));
    }

    #[test]
    fn an_index_of_another_version_is_set_aside() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("index");
        let (index, _) = Index::open(&path).expect("opened");
        index.complete().expect("marked");
        index.db.insert("version", "0").expect("changed");
        close(index);
        assert_eq!(Index::open(&path).expect("opened again").1, Opened::New);
    }
}
