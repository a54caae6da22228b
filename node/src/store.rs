//! Content on this node's disk: verified blobs by digest, parts that grow, tags, and a byte bound.
//!
//! # Rules
//! - A blob exists if and only if its file does; it is renamed into place after its digest was
//!   verified and its bytes were flushed, so a crash leaves it whole or absent.
//! - What cannot be derived from content stands in its sidecar, written before the blob appears.
//! - The sled index makes things quick to find and can be deleted at any time.
//! - What is being read is pinned and never evicted.
//!
//! This room does not know registries, clients or upstreams, and it does not verify digests of
//! parts: the pull room hashes what it writes. Blocking work runs on the blocking pool.

mod account;
mod buffers;
mod changes;
mod config;
mod content;
mod custody;
mod error;
mod eviction;
mod index;
mod layout;
mod links;
mod metrics;
mod opening;
mod part;
mod read;
mod recovery;
mod reservation;
mod sidecar;
mod space;
mod status;
mod suspended;
mod tags;
mod unreadable;
mod unremovable;
mod uses;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use millrace_protocol::oci::Digest;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, watch};

pub use buffers::{Buffer, Buffers, LARGE_BYTES, SMALL_BYTES};
pub use changes::{Change, Changes, Missed, Shelf};
pub use config::Config;
pub use content::{BlobFile, StoredManifest};
pub use custody::Custody;
pub use error::StoreError;
pub use eviction::Pin;
pub use links::Record;
pub use part::{Part, PartWriter};
pub use read::{FileRange, FileReader};
pub use sidecar::{Provenance, Sidecar, TagClaim};
pub use space::Limits;
pub use status::Status;
pub use tags::{TagName, TagRecord};

use crate::task::Tasks;
use crate::telemetry::Seldom;
use account::Counted;
use changes::Announcer;
use custody::Spared;
use index::Index;
use layout::Layout;
use metrics::Metrics;
use space::Space;
use status::Gauges;
use suspended::Suspended;
use unremovable::Unremovable;
use uses::Uses;

/// The store of one node; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    index: Index,
    space: Space,
    buffers: Buffers,
    metrics: Metrics,
    /// Tells what comes and goes.
    announcer: Announcer,
    /// How many readers each blob has; also the lock under which files appear to eviction.
    pins: Mutex<HashMap<Digest, usize>>,
    uses: Uses,
    touched: Mutex<HashMap<Digest, u64>>,
    counted: Mutex<Counted>,
    suspended: Mutex<HashMap<Digest, Suspended>>,
    /// Held while one caller evicts, so that two do not evict for the same need.
    eviction: Mutex<()>,
    /// Tells that a fill has taken room.
    scarce: Notify,
    /// What is about to go if others have it, so that they may not count on this copy.
    withdrawn: Mutex<HashSet<Digest>>,
    /// What no other node is known to have.
    spared: Mutex<Spared>,
    /// Numbers files that have no name of their own.
    scratches: AtomicU64,
    /// Held while a sidecar is read, changed and written.
    sidecars: Mutex<()>,
    /// Logs that files are refused.
    refusals: Seldom,
    /// Logs that files cannot be removed to make room.
    removals: Seldom,
    /// What they are.
    unremovable: Unremovable,
    /// Logs that folders of blobs cannot be listed.
    unlisted: Seldom,
    index_ready: watch::Sender<bool>,
    /// Keeps other processes out for as long as it is open.
    _lock: File,
}

impl Store {
    /// Opens the data folder, making it if needed, and starts its background work.
    ///
    /// # Errors
    /// The folder cannot be made, read or locked.
    /// # Cancel safety
    /// Dropping the future may leave the folder locked until the opening ends.
    pub async fn open(config: &Config, tasks: &Tasks) -> Result<Self, StoreError> {
        let config = config.clone();
        let (inner, opened) = blocking(move || Inner::open(&config)).await?;
        let store = Self {
            inner: Arc::new(inner),
        };
        tasks.spawn(
            tracing::info_span!("store"),
            store.clone().run(opened, tasks.clone()),
        );
        Ok(store)
    }

    /// Opens a blob for reading and keeps it from eviction until the result is dropped.
    ///
    /// `None` when it is not here, or when the system refuses to open it. A file that is damaged is
    /// dropped, also when that shows only later.
    ///
    /// # Errors
    /// This node lacks what it takes to open a file.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<BlobFile>, StoreError> {
        let inner = Arc::clone(&self.inner);
        let digest = *digest;
        blocking(move || inner.open_blob(&digest)).await
    }

    /// Returns those of `digests` that are not here, in their order.
    ///
    /// # Errors
    /// This node lacks what it takes to look.
    pub async fn missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, StoreError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let mut missing = Vec::new();
            for digest in digests {
                let path = inner.layout.blob(&digest);
                if !unreadable::exists(&path)? {
                    missing.push(digest);
                }
            }
            Ok(missing)
        })
        .await
    }

    /// Reads a manifest with its media type.
    ///
    /// `None` when it is not here, was never fetched as a manifest, or when the system refuses to read
    /// it. A file that is damaged is dropped.
    ///
    /// # Errors
    /// This node lacks what it takes to read a file.
    pub async fn manifest(&self, digest: &Digest) -> Result<Option<StoredManifest>, StoreError> {
        let inner = Arc::clone(&self.inner);
        let digest = *digest;
        blocking(move || inner.read_manifest(&digest)).await
    }

    /// Stores a verified manifest.
    ///
    /// # Errors
    /// It does not fit, or a file operation failed.
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn put_manifest(
        &self,
        digest: &Digest,
        bytes: Bytes,
        sidecar: Sidecar,
    ) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        let digest = *digest;
        let mut part = blocking(move || Part::scratch(&inner, &digest)).await?;
        let size = bytes.len() as u64;
        part.reserve(size).await?;
        let writer = part.writer();
        blocking(move || writer.write(0, &[bytes])).await?;
        part.commit(size, sidecar).await.map(drop)
    }

    /// Returns what some content was fetched as; empty when that is not known.
    pub async fn provenance(&self, digest: &Digest) -> Vec<Provenance> {
        let inner = Arc::clone(&self.inner);
        let digest = *digest;
        let read = blocking(move || {
            let sidecar = Sidecar::read(&inner.layout.sidecar(&digest));
            Ok::<_, StoreError>(sidecar.map_or_else(Vec::new, |sidecar| sidecar.provenance))
        });
        read.await.unwrap_or_default()
    }

    /// Removes content that turned out to be damaged; who reads it still has its file.
    ///
    /// # Errors
    /// A file cannot be removed.
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        let digest = *digest;
        blocking(move || inner.remove_blob(&digest)).await
    }

    /// Opens the part of a digest, continuing one that was suspended.
    ///
    /// At most one part of a digest may be open at a time.
    ///
    /// # Errors
    /// The file cannot be made.
    pub async fn part(&self, digest: &Digest) -> Result<Part, StoreError> {
        let inner = Arc::clone(&self.inner);
        let digest = *digest;
        blocking(move || Part::open(&inner, &digest)).await
    }

    /// Remembers that content was used, so that it is evicted later.
    pub fn touch(&self, digest: &Digest) {
        self.inner.touch(digest);
    }

    /// Lists the repositories that content was fetched from, as `upstream/repository`, sorted.
    pub async fn repositories(&self) -> Vec<String> {
        let inner = Arc::clone(&self.inner);
        blocking(move || Ok::<_, StoreError>(inner.index.repositories()))
            .await
            .unwrap_or_default()
    }

    /// Whether the index has been read or rebuilt, so that tags and the catalog are complete.
    pub fn is_index_ready(&self) -> bool {
        *self.inner.index_ready.borrow()
    }

    /// Waits until the index has been read or rebuilt.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn wait_for_index(&self) {
        let mut ready = self.inner.index_ready.subscribe();
        // The sender lives in the store that is borrowed here.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// Returns the account of the store.
    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// Registers the store's counters.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
        registry.register_collector(Box::new(Gauges(self.clone())));
    }
}

/// Runs blocking work of the store on the blocking pool.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is gone, and with it whoever waits here.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}

/// Logs what has failed in the background, where nobody waits for it.
fn log_failure<E: std::error::Error + 'static>(result: Result<(), E>, action: &str) {
    if let Err(error) = result {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot {action}");
    }
}
