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
mod custody;
mod error;
mod eviction;
mod index;
mod layout;
mod links;
mod metrics;
mod part;
mod read;
mod recovery;
mod sidecar;
mod space;
mod tags;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use millrace_protocol::oci::{Digest, MediaType};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use rangemap::RangeSet;
use serde::Serialize;
use tokio::sync::{Notify, watch};

pub use buffers::{Buffer, Buffers, LARGE_BYTES, SMALL_BYTES};
pub use changes::{Change, Changes, Missed, Shelf};
pub use config::Config;
pub use custody::Custody;
pub use error::StoreError;
pub use links::Record;
pub use part::{Part, PartWriter};
pub use read::{FileRange, FileReader};
pub use sidecar::{Provenance, Sidecar, TagClaim};
pub use space::Limits;
pub use tags::{TagName, TagRecord};

use crate::task::Tasks;
use account::Counted;
use changes::Announcer;
use custody::Spared;
use error::FileContext;
use eviction::Pin;
use index::{BlobRecord, Index, Opened};
use layout::Layout;
use metrics::Metrics;
use part::Suspended;
use space::{Disk, Space};

/// How often access times are written to the index.
const TOUCH_INTERVAL: Duration = Duration::from_secs(15);

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
    /// `None` when it is not here.
    ///
    /// # Errors
    /// The file is there but cannot be opened.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<BlobFile>, StoreError> {
        let inner = Arc::clone(&self.inner);
        let digest = *digest;
        blocking(move || inner.open_blob(&digest)).await
    }

    /// Returns those of `digests` that are not here, in their order.
    ///
    /// # Errors
    /// A file that may be there cannot be examined.
    pub async fn missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, StoreError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let mut missing = Vec::new();
            for digest in digests {
                let path = inner.layout.blob(&digest);
                if !path.try_exists().doing("examine", &path)? {
                    missing.push(digest);
                }
            }
            Ok(missing)
        })
        .await
    }

    /// Reads a manifest with its media type.
    ///
    /// `None` when it is not here or was never fetched as a manifest.
    ///
    /// # Errors
    /// The file is there but cannot be read.
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
        part.commit(size, sidecar).await
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

    /// Writes access times until the daemon stops, after the index was read or rebuilt.
    async fn run(self, opened: Opened, tasks: Tasks) {
        let stop = Arc::new(AtomicBool::new(false));
        let inner = Arc::clone(&self.inner);
        let stopped = Arc::clone(&stop);
        let mut preparing = tokio::task::spawn_blocking(move || {
            inner.prepare_index(opened, || stopped.load(Ordering::Relaxed));
        });
        let stopping = tasks.stopping();
        tokio::pin!(stopping);
        let mut ticks = tokio::time::interval(TOUCH_INTERVAL);
        let mut prepared = false;
        loop {
            tokio::select! {
                () = &mut stopping => break,
                result = &mut preparing, if !prepared => {
                    prepared = true;
                    log_failure(result.map_err(io::Error::other), "prepare the index");
                }
                _ = ticks.tick() => {
                    let inner = Arc::clone(&self.inner);
                    log_failure(blocking(move || inner.flush_touched()).await, "write access times");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        if !prepared {
            log_failure(
                preparing.await.map_err(io::Error::other),
                "prepare the index",
            );
        }
        let inner = Arc::clone(&self.inner);
        let closed = blocking(move || {
            inner.flush_touched()?;
            inner.index.flush()
        });
        log_failure(closed.await, "close the index");
    }
}

fn log_failure<E: std::error::Error + 'static>(result: Result<(), E>, action: &str) {
    if let Err(error) = result {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot {action}");
    }
}

impl Inner {
    fn open(config: &Config) -> Result<(Self, Opened), StoreError> {
        let layout = Layout::create(&config.root)?;
        let lock = lock(&layout)?;
        let limits = Limits::resolve(config, &layout)?;
        let (index, opened) = Index::open(&layout.index())?;
        let counted = match opened {
            Opened::Existing => Counted::UpTo(None),
            Opened::New => Counted::All,
        };
        let inner = Self {
            layout,
            index,
            space: Space::new(limits),
            buffers: Buffers::default(),
            metrics: Metrics::default(),
            announcer: Announcer::default(),
            pins: Mutex::default(),
            touched: Mutex::default(),
            counted: Mutex::new(counted),
            suspended: Mutex::default(),
            eviction: Mutex::default(),
            scarce: Notify::default(),
            withdrawn: Mutex::default(),
            spared: Mutex::default(),
            scratches: AtomicU64::default(),
            sidecars: Mutex::default(),
            index_ready: watch::Sender::new(false),
            _lock: lock,
        };
        inner.adopt_parts()?;
        Ok((inner, opened))
    }

    /// Counts or rebuilds the index, then brings the store within its bounds; blocks.
    fn prepare_index(self: &Arc<Self>, opened: Opened, stop: impl Fn() -> bool) {
        let result = match opened {
            Opened::Existing => {
                self.count(&stop);
                Ok(())
            }
            Opened::New => self.rebuild(&stop),
        };
        if stop() {
            return;
        }
        let result = result
            .and_then(|()| self.index.complete())
            .and_then(|()| self.trim());
        log_failure(result, "read or rebuild the index");
        self.index_ready.send_replace(true);
    }

    fn open_blob(self: &Arc<Self>, digest: &Digest) -> Result<Option<BlobFile>, StoreError> {
        let pin = Pin::new(self, digest);
        let path = self.layout.blob(digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.doing("open", &path)?,
        };
        let size = file.metadata().doing("examine", &path)?.len();
        self.touch(digest);
        Ok(Some(BlobFile {
            reader: FileReader::new(Arc::new(file), self.buffers.clone()),
            size,
            _pin: pin,
        }))
    }

    fn read_manifest(
        self: &Arc<Self>,
        digest: &Digest,
    ) -> Result<Option<StoredManifest>, StoreError> {
        let _pin = Pin::new(self, digest);
        let sidecar = Sidecar::read(&self.layout.sidecar(digest));
        let Some(media_type) = sidecar.and_then(|sidecar| sidecar.media_type) else {
            return Ok(None);
        };
        let path = self.layout.blob(digest);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.doing("read", &path)?,
        };
        let actual = Digest::of(digest.algorithm(), &bytes);
        if actual != *digest {
            tracing::error!(blob.digest = %digest, %actual, "a manifest on disk is damaged; removed");
            self.remove_blob(digest)?;
            return Ok(None);
        }
        self.touch(digest);
        Ok(Some(StoredManifest {
            bytes: bytes.into(),
            media_type,
        }))
    }

    /// Moves a flushed, verified file to its place; blocks.
    fn publish(
        self: &Arc<Self>,
        digest: &Digest,
        file: &Path,
        size: u64,
        sidecar: &Sidecar,
    ) -> Result<(), StoreError> {
        // Older content under this digest may be evicted, but not between the two files.
        let _pin = Pin::new(self, digest);
        let target = self.layout.blob(digest);
        self.make_fan_folder(layout::parent(&target))?;
        {
            let _one_at_a_time = self.sidecars.lock();
            let path = self.layout.sidecar(digest);
            let mut merged = Sidecar::read(&path).unwrap_or_else(|| sidecar.clone());
            merged.merge(sidecar.clone());
            merged.write(&path)?;
        }
        fs::rename(file, &target).doing("publish", &target)?;
        self.announcer.announce(Change::Came(*digest));
        layout::sync_folder(layout::parent(&target))?;
        layout::remove(&self.layout.part_state(digest))?;
        self.index_repositories(sidecar)?;
        let accessed = unix_now();
        self.record(digest, BlobRecord { size, accessed })?;
        self.metrics.committed_blobs.inc();
        self.metrics.committed_bytes.inc_by(size);
        Ok(())
    }

    fn make_fan_folder(&self, folder: &Path) -> Result<(), StoreError> {
        if folder.exists() {
            return Ok(());
        }
        fs::create_dir_all(folder).doing("create", folder)?;
        layout::sync_folder(layout::parent(folder))?;
        layout::sync_folder(&self.layout.blobs())
    }

    /// Takes a suspended part out of the account and returns which ranges it has.
    fn take_suspended(&self, digest: &Digest) -> RangeSet<u64> {
        let mut suspended = self.suspended.lock();
        let Some(part) = suspended.remove(digest) else {
            return RangeSet::new();
        };
        self.space.resume(part.bytes);
        let state = self.layout.part_state(digest);
        let saved = part::saved_ranges(&state);
        // From now on the part changes, so the state must not be believed after a crash.
        match layout::remove(&state) {
            Ok(()) => saved,
            Err(error) => {
                tracing::warn!(%error, "a suspended part is begun anew");
                RangeSet::new()
            }
        }
    }

    fn put_suspended(&self, digest: Digest, bytes: u64) {
        self.space.suspend(bytes);
        let since = SystemTime::now();
        self.suspended
            .lock()
            .insert(digest, Suspended { bytes, since });
    }

    fn status(&self) -> Status {
        let limits = self.space.limits();
        let taken = self.space.taken();
        Status {
            root: self.layout.root().to_owned(),
            blobs: taken.blob_count,
            blob_bytes: taken.blobs,
            growing_bytes: taken.growing,
            suspended_bytes: taken.suspended,
            spared_bytes: self.spared.lock().bytes(),
            max_bytes: limits.max_size,
            min_free_bytes: limits.min_free,
            free_bytes: Disk::of(self.layout.root()).map(|disk| disk.free).ok(),
            index_ready: *self.index_ready.borrow(),
        }
    }
}

/// Takes the lock of a data folder for this process.
fn lock(layout: &Layout) -> Result<File, StoreError> {
    let path = layout.lock();
    let file = File::create(&path).doing("create", &path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::InUse {
            root: layout.root().to_owned(),
        }),
        Err(fs::TryLockError::Error(error)) => Err(error).doing("lock", &path),
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

/// Returns the time in seconds since 1970.
fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// A blob that is open for reading; it is not evicted while this value lives.
#[derive(Debug)]
pub struct BlobFile {
    reader: FileReader,
    size: u64,
    _pin: Pin,
}

impl BlobFile {
    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the reader of its content.
    pub fn reader(&self) -> &FileReader {
        &self.reader
    }
}

/// A manifest as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    /// Its bytes, verified.
    pub bytes: Bytes,
    /// Its exact `Content-Type`.
    pub media_type: MediaType,
}

/// The account of a store.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The data folder.
    pub root: PathBuf,
    /// Complete blobs and manifests.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Bytes taken by parts that grow, at their full size.
    pub growing_bytes: u64,
    /// Bytes of parts that wait to be continued.
    pub suspended_bytes: u64,
    /// Bytes of blobs that no other node of the cluster was known to have when room was sought.
    pub spared_bytes: u64,
    /// Most bytes that all of these may take.
    pub max_bytes: u64,
    /// Free bytes that the file system keeps.
    pub min_free_bytes: u64,
    /// Free bytes of the file system now; absent when it cannot be asked.
    pub free_bytes: Option<u64>,
    /// Whether the index has been read or rebuilt; content is served either way.
    pub index_ready: bool,
}

/// Reads the account when metrics are collected.
#[derive(Debug)]
struct Gauges(Store);

impl prometheus_client::collector::Collector for Gauges {
    fn encode(
        &self,
        mut encoder: prometheus_client::encoding::DescriptorEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        use prometheus_client::encoding::EncodeMetric;
        use prometheus_client::metrics::gauge::ConstGauge;
        let status = self.0.status();
        let gauges = [
            ("blobs", "Complete blobs and manifests", status.blobs),
            (
                "blob_bytes",
                "Bytes of complete blobs and manifests",
                status.blob_bytes,
            ),
            (
                "growing_bytes",
                "Bytes taken by parts that grow",
                status.growing_bytes,
            ),
            (
                "suspended_bytes",
                "Bytes of parts that wait",
                status.suspended_bytes,
            ),
            (
                "spared_bytes",
                "Bytes of blobs that no other node was known to have",
                status.spared_bytes,
            ),
            (
                "max_bytes",
                "Most bytes that the store may take",
                status.max_bytes,
            ),
            (
                "free_bytes",
                "Free bytes of the file system",
                status.free_bytes.unwrap_or(0),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let name = format!("millrace_store_{name}");
            let encoder = encoder.encode_descriptor(&name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
        Ok(())
    }
}
