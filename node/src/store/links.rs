//! What content was fetched as, and so which repositories it belongs to.
//!
//! The sidecar is the only record, because access rests on it: it is read from disk, and a change
//! is on disk before the caller goes on.

use std::sync::Arc;

use millrace_protocol::oci::Digest;

use super::error::StoreError;
use super::eviction::Pin;
use super::sidecar::{Provenance, Sidecar};
use super::{Inner, Store, blocking, unreadable};

/// What is recorded of where content came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// It was fetched as these, oldest first; none are left when all were withdrawn.
    Known(Vec<Provenance>),
    /// Its sidecar is lost, so nothing says whose it is.
    Lost,
}

impl Store {
    /// Returns what content was fetched as; `None` when it is not here.
    ///
    /// # Errors
    /// This node lacks what it takes to look.
    pub async fn links(&self, digest: &Digest) -> Result<Option<Record>, StoreError> {
        let inner = Arc::clone(&self.inner);
        let digest = *digest;
        blocking(move || {
            let path = inner.layout.blob(&digest);
            if !unreadable::exists(&path)? {
                return Ok(None);
            }
            Ok(Some(match Sidecar::read(&inner.layout.sidecar(&digest)) {
                Some(sidecar) => Record::Known(sidecar.provenance),
                None => Record::Lost,
            }))
        })
        .await
    }

    /// Records that content, if it is here, belongs to a repository as well.
    ///
    /// # Errors
    /// The sidecar cannot be written.
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn link(&self, digest: &Digest, provenance: Provenance) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        let digest = *digest;
        blocking(move || inner.link(&digest, provenance)).await
    }

    /// Records that content does not belong to a repository any more.
    ///
    /// # Errors
    /// The sidecar cannot be written.
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn unlink(&self, digest: &Digest, provenance: Provenance) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        let digest = *digest;
        blocking(move || {
            inner.update_sidecar(&digest, |sidecar| {
                sidecar.provenance.retain(|known| *known != provenance);
            })
        })
        .await
    }
}

impl Inner {
    fn link(self: &Arc<Self>, digest: &Digest, provenance: Provenance) -> Result<(), StoreError> {
        // Evicted meanwhile, its content would leave a sidecar that nobody removes.
        let _pin = Pin::new(self, digest);
        let content = self.layout.blob(digest);
        if !unreadable::exists(&content)? {
            return Ok(());
        }
        let path = self.layout.sidecar(digest);
        let _one_at_a_time = self.sidecars.lock();
        let sidecar = match Sidecar::read(&path) {
            Some(mut sidecar) => {
                sidecar.add_provenance(provenance);
                sidecar
            }
            None => Sidecar::new(None, provenance),
        };
        sidecar.write(&path)
    }
}
