//! Which manifest a tag pointed to when the upstream was last asked.
//!
//! A record lives in the index and, as a claim, in the sidecar of its manifest, so that it
//! survives the loss of the index. How old a record may be before it is checked again is the
//! pull room's decision.

use std::sync::Arc;

use millrace_protocol::oci::{Digest, RepositoryName, Tag};
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::eviction::Pin;
use super::sidecar::{Provenance, Sidecar, TagClaim};
use super::{Inner, Store, blocking};

/// A tag of a repository of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TagName {
    /// Name of the configured upstream.
    pub upstream: String,
    /// Repository within the upstream.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: Tag,
}

impl TagName {
    /// Returns `upstream/repository:tag`, which names the tag uniquely.
    pub fn key(&self) -> String {
        format!("{}/{}:{}", self.upstream, self.repository, self.tag)
    }

    fn claim(&self, resolved_at: u64) -> TagClaim {
        TagClaim {
            upstream: self.upstream.clone(),
            repository: self.repository.clone(),
            tag: self.tag.clone(),
            resolved_at,
        }
    }
}

/// What is known of a tag. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The manifest that it points to.
    pub digest: Digest,
    /// When the upstream first said so.
    pub resolved_at: u64,
    /// When the upstream last said so.
    pub checked_at: u64,
}

impl Store {
    /// Returns what is known of a tag.
    ///
    /// # Errors
    /// The index could not be read.
    pub async fn tag(&self, name: &TagName) -> Result<Option<TagRecord>, StoreError> {
        let inner = self.inner.clone();
        let key = name.key();
        blocking(move || inner.index.tag(&key)).await
    }

    /// Records what the upstream said of a tag to whoever asked with this credential.
    ///
    /// That it did is provenance of the manifest, also when the manifest was here already.
    ///
    /// # Errors
    /// The index or a sidecar could not be written.
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn put_tag(
        &self,
        name: TagName,
        credential: String,
        record: TagRecord,
    ) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        blocking(move || inner.put_tag(&name, credential, &record)).await
    }

    /// Forgets a tag, because its upstream no longer has it.
    ///
    /// # Errors
    /// The index or a sidecar could not be written.
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn remove_tag(&self, name: TagName) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        blocking(move || {
            if let Some(old) = inner.index.tag::<TagRecord>(&name.key())? {
                inner.unclaim(&name, &old.digest)?;
            }
            inner.index.remove_tag(&name.key())
        })
        .await
    }
}

impl Inner {
    fn put_tag(
        self: &Arc<Self>,
        name: &TagName,
        credential: String,
        record: &TagRecord,
    ) -> Result<(), StoreError> {
        let old: Option<TagRecord> = self.index.tag(&name.key())?;
        let moved = old.as_ref().is_none_or(|old| old.digest != record.digest);
        // The manifest may have come after the tag was first recorded.
        if moved || !self.is_claimed(name, &record.digest) {
            // First the new claim, then the end of the old one: between the two the younger wins.
            self.update_sidecar(&record.digest, |sidecar| {
                sidecar.claim(name.claim(record.resolved_at));
                sidecar.add_provenance(Provenance {
                    upstream: name.upstream.clone(),
                    repository: name.repository.clone(),
                    credential,
                });
            })?;
            if let Some(old) = old.filter(|_| moved) {
                self.unclaim(name, &old.digest)?;
            }
        }
        self.index
            .put_repository(&name.upstream, &name.repository)?;
        self.index.put_tag(&name.key(), record)
    }

    /// Whether the manifest's sidecar says that the tag points to it.
    fn is_claimed(&self, name: &TagName, digest: &Digest) -> bool {
        let claim = name.claim(0);
        let sidecar = Sidecar::read(&self.layout.sidecar(digest));
        sidecar.is_some_and(|sidecar| sidecar.tags.iter().any(|known| known.same_name(&claim)))
    }

    fn unclaim(self: &Arc<Self>, name: &TagName, digest: &Digest) -> Result<(), StoreError> {
        let claim = name.claim(0);
        self.update_sidecar(digest, |sidecar| {
            sidecar.tags.retain(|known| !known.same_name(&claim));
        })
    }

    /// Changes a sidecar if it exists; content that was evicted has none.
    pub(super) fn update_sidecar(
        self: &Arc<Self>,
        digest: &Digest,
        change: impl FnOnce(&mut Sidecar),
    ) -> Result<(), StoreError> {
        // Evicted meanwhile, its content would leave a sidecar that nobody removes.
        let _pin = Pin::new(self, digest);
        let path = self.layout.sidecar(digest);
        let _one_at_a_time = self.sidecars.lock();
        let Some(mut sidecar) = Sidecar::read(&path) else {
            return Ok(());
        };
        change(&mut sidecar);
        sidecar.write(&path)
    }
}
