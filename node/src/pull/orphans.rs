//! Fills that go on although nobody waits for them: few, and the first to make way.
//!
//! Who lacks disk room or memory for what somebody waits for presses them. They become resumable
//! parts then, whose room may be had. How a fill is suspended is `fill`'s.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Most fills that go on without anybody waiting for them.
const MAX_ORPHANS: u32 = 8;

/// How long they are waited for to make way: they finish a write, and flush nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// The orphans of a node; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Orphans {
    places: Arc<Semaphore>,
    pressure: Arc<Notify>,
}

/// The place of one of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Default for Orphans {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_ORPHANS as usize)),
            pressure: Arc::default(),
        }
    }
}

impl Orphans {
    /// Takes a place; `None` when there are enough of them.
    pub(super) fn enter(&self) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place { _permit: permit })
    }

    /// Resolves when all who have a place are to make way; for what is said after this call.
    pub(super) fn pressed(&self) -> impl Future<Output = ()> + '_ {
        self.pressure.notified()
    }

    /// Has them make way, without waiting for it.
    pub(super) fn press(&self) {
        self.pressure.notify_waiters();
    }

    /// Has them make way and waits until they have. Returns whether there was one.
    ///
    /// # Cancel safety
    /// They make way all the same.
    pub(super) async fn make_way(&self) -> bool {
        if self.places.available_permits() == MAX_ORPHANS as usize {
            return false;
        }
        self.press();
        // Whatever has become of them, it is looked once more whether there is room.
        let _ = timeout(PATIENCE, self.places.acquire_many(MAX_ORPHANS)).await;
        true
    }
}
