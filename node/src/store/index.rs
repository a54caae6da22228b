//! The sled index: sizes, access order, tags and repositories.
//!
//! It only makes things quick to find. Whether content exists is decided by its file; whatever
//! stands here can be rebuilt from files and sidecars. This file reads and writes its rows; whether
//! an index that is found can be used is said in `opening`.

mod opening;
mod record;

use std::path::PathBuf;

use millrace_protocol::oci::{Digest, RepositoryName};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StoreError;
pub(super) use opening::Opened;
pub(super) use record::key;
use record::{access_key, decode, digest_of, encode};

/// What the index knows of one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub(super) struct BlobRecord {
    pub(super) size: u64,
    /// The last use, as `uses` numbers them.
    pub(super) accessed: u64,
}

/// The opened index.
#[derive(Clone, Debug)]
pub(super) struct Index {
    path: PathBuf,
    db: sled::Db,
    blobs: sled::Tree,
    by_access: sled::Tree,
    tags: sled::Tree,
    repositories: sled::Tree,
    /// The greatest number of a use when it was opened.
    last_use: u64,
}

impl Index {
    /// Returns the record of a blob.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Option<BlobRecord>, StoreError> {
        let value = self.write(self.blobs.get(key(digest)))?;
        Ok(value.and_then(|value| decode(&value)))
    }

    /// Writes the record of a blob and returns the one it replaces.
    pub(super) fn put_blob(
        &self,
        digest: &Digest,
        record: BlobRecord,
    ) -> Result<Option<BlobRecord>, StoreError> {
        let key = key(digest);
        let old = self.write(self.blobs.insert(&key, encode(&record)))?;
        let old = self.forget_use(&key, old)?;
        self.write(
            self.by_access
                .insert(access_key(record.accessed, &key), &[]),
        )?;
        Ok(old)
    }

    /// Removes the record of a blob and returns it.
    pub(super) fn remove_blob(&self, digest: &Digest) -> Result<Option<BlobRecord>, StoreError> {
        let key = key(digest);
        let old = self.write(self.blobs.remove(&key))?;
        self.forget_use(&key, old)
    }

    /// Takes what was the record of a blob out of the order of uses, and returns it.
    fn forget_use(
        &self,
        key: &[u8],
        old: Option<sled::IVec>,
    ) -> Result<Option<BlobRecord>, StoreError> {
        let old: Option<BlobRecord> = old.and_then(|value| decode(&value));
        if let Some(old) = old {
            self.write(self.by_access.remove(access_key(old.accessed, key)))?;
        }
        Ok(old)
    }

    /// Yields all blobs in order of their keys; those that are put behind the iterator's place
    /// meanwhile are among them.
    pub(super) fn blobs(&self) -> impl Iterator<Item = (Vec<u8>, Option<BlobRecord>)> + use<> {
        self.blobs
            .iter()
            .filter_map(Result::ok)
            .map(|(key, value)| (key.to_vec(), decode(&value)))
    }

    /// Returns the greatest number of a use from before this run; 0 when there is none.
    pub(super) fn last_use(&self) -> u64 {
        self.last_use
    }

    /// Yields digests, least recently used first.
    pub(super) fn least_recent(&self) -> impl Iterator<Item = Digest> + use<> {
        self.by_access
            .iter()
            .keys()
            .filter_map(Result::ok)
            .filter_map(|key| digest_of(key.get(8..)?))
    }

    /// Returns the record stored under a tag's key.
    pub(super) fn tag<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let value = self.write(self.tags.get(key))?;
        Ok(value.and_then(|value| decode(&value)))
    }

    /// Writes the record of a tag.
    pub(super) fn put_tag<T: Serialize>(&self, key: &str, record: &T) -> Result<(), StoreError> {
        self.write(self.tags.insert(key, encode(record))).map(drop)
    }

    /// Removes the record of a tag.
    pub(super) fn remove_tag(&self, key: &str) -> Result<(), StoreError> {
        self.write(self.tags.remove(key)).map(drop)
    }

    /// Remembers that content of a repository was fetched.
    pub(super) fn put_repository(
        &self,
        upstream: &str,
        repository: &RepositoryName,
    ) -> Result<(), StoreError> {
        let name = format!("{upstream}/{repository}");
        if self.write(self.repositories.contains_key(&name))? {
            return Ok(());
        }
        self.write(self.repositories.insert(&name, &[])).map(drop)
    }

    /// Lists repositories as `upstream/repository`, in order of bytes.
    pub(super) fn repositories(&self) -> Vec<String> {
        self.repositories
            .iter()
            .keys()
            .filter_map(Result::ok)
            .map(|name| String::from_utf8_lossy(&name).into_owned())
            .collect()
    }

    /// Writes everything to disk.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.write(self.db.flush()).map(drop)
    }

    fn write<T>(&self, result: sled::Result<T>) -> Result<T, StoreError> {
        result.map_err(|source| StoreError::Index {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::oci::Algorithm;

    use super::*;

    pub(super) fn digest(content: &str) -> Digest {
        Digest::of(Algorithm::Sha256, content.as_bytes())
    }

    pub(super) fn record(size: u64, accessed: u64) -> BlobRecord {
        BlobRecord { size, accessed }
    }

    #[test]
    fn access_order_follows_the_latest_access() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (index, opened) = Index::open(&folder.path().join("index")).expect("opened");
        assert_eq!(opened, Opened::New);
        let (a, b) = (digest("a"), digest("b"));
        index.put_blob(&a, record(1, 10)).expect("put");
        index.put_blob(&b, record(2, 20)).expect("put");
        assert_eq!(index.least_recent().collect::<Vec<_>>(), [a, b]);
        assert_eq!(
            index.put_blob(&a, record(1, 30)).expect("put"),
            Some(record(1, 10))
        );
        assert_eq!(index.least_recent().collect::<Vec<_>>(), [b, a]);
        assert_eq!(index.remove_blob(&b).expect("removed"), Some(record(2, 20)));
        assert_eq!(index.least_recent().collect::<Vec<_>>(), [a]);
        assert_eq!(index.blob(&b).expect("read"), None);
    }
}
