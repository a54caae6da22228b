//! Opening the data folder, and the work that goes on behind an open store.

use std::fs::{self, File};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::account::Counted;
use super::buffers::Buffers;
use super::changes::Announcer;
use super::config::Config;
use super::error::{FileContext, StoreError};
use super::index::{Index, Opened};
use super::layout::Layout;
use super::metrics::Metrics;
use super::space::{Limits, Space};
use super::unremovable::Unremovable;
use super::uses::Uses;
use super::{Inner, Store, blocking, log_failure};
use crate::task::Tasks;
use crate::telemetry::Seldom;

/// How often access times are written to the index.
const TOUCH_INTERVAL: Duration = Duration::from_secs(15);

impl Store {
    /// Writes access times until the daemon stops, after the index was read or rebuilt.
    pub(super) async fn run(self, opened: Opened, tasks: Tasks) {
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

impl Inner {
    pub(super) fn open(config: &Config) -> Result<(Self, Opened), StoreError> {
        let layout = Layout::create(&config.root)?;
        let lock = lock(&layout)?;
        if layout.is_open_to_all() {
            tracing::warn!(
                path = %layout.root().display(),
                "every user of this host can read what is cached, private images too: \
                 chmod 700 on this folder keeps them out"
            );
        }
        let limits = Limits::resolve(config, &layout)?;
        let (index, opened) = Index::open(&layout.index())?;
        let counted = match opened {
            Opened::Existing => Counted::UpTo(None),
            Opened::New => Counted::All,
        };
        let inner = Self {
            uses: Uses::behind(index.last_use()),
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
            refusals: Seldom::default(),
            removals: Seldom::default(),
            unremovable: Unremovable::default(),
            unlisted: Seldom::default(),
            index_ready: watch::Sender::new(false),
            _lock: lock,
        };
        inner.adopt_parts()?;
        Ok((inner, opened))
    }

    /// Counts the index, adds to it what it lacks, and brings the store within its bounds; blocks.
    fn prepare_index(self: &Arc<Self>, opened: Opened, stop: impl Fn() -> bool) {
        if opened == Opened::Existing {
            self.count(&stop);
        }
        let result = self.rebuild(opened, &stop);
        if stop() {
            return;
        }
        let result = result.and_then(|()| self.index.complete());
        log_failure(result, "read or rebuild the index");
        log_failure(self.trim(), "keep the bounds of the store");
        self.index_ready.send_replace(true);
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
