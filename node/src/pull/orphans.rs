//! Fills that go on although nobody waits for them: few, and the first to make way. Those are orphans,
//! whose clients have left, and copies, which another node asks for as such.
//!
//! Who lacks disk room or memory for what somebody waits for presses them. They become resumable
//! parts then, whose room may be had. A node that stops keeps none. How a fill is suspended is `fill`'s.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Most orphans.
const MAX_ORPHANS: u32 = 8;

/// Most copies that are made at a time; further ones wait.
const MAX_COPIES: u32 = 8;

/// How long they are waited for to make way: they finish a write, and flush nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// The orphans and copies of a node; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Orphans {
    places: Arc<Semaphore>,
    copies: Arc<Semaphore>,
    pressure: Arc<Notify>,
}

/// The place of an orphan or a copy, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Default for Orphans {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_ORPHANS as usize)),
            copies: Arc::new(Semaphore::new(MAX_COPIES as usize)),
            pressure: Arc::default(),
        }
    }
}

impl Orphans {
    /// Takes a place for an orphan; `None` when there are enough of them, or to be none.
    pub(super) fn enter(&self) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place { _permit: permit })
    }

    /// Waits for a place for a copy, behind all who asked before.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue.
    pub(super) async fn enter_copy(&self) -> Place {
        let permit = Arc::clone(&self.copies).acquire_owned().await;
        Place {
            _permit: permit.expect("the semaphore is never closed"),
        }
    }

    /// Lets there be no orphans from now on; those who are here make way.
    pub(super) fn close(&self) {
        self.places.close();
        self.press();
    }

    /// Whether there are to be none.
    pub(super) fn are_closed(&self) -> bool {
        self.places.is_closed()
    }

    /// Resolves when all who have a place, or wait for one, are to make way; for what is said after this call.
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
        let no_orphans = self.places.available_permits() == MAX_ORPHANS as usize;
        let no_copies = self.copies.available_permits() == MAX_COPIES as usize;
        if no_orphans && no_copies {
            return false;
        }
        self.press();
        let gone = async {
            let orphans = self.places.acquire_many(MAX_ORPHANS);
            let copies = self.copies.acquire_many(MAX_COPIES);
            tokio::join!(orphans, copies)
        };
        // Whatever has become of them, it is looked once more whether there is room.
        let _ = timeout(PATIENCE, gone).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_stops_keeps_no_orphans() {
        let orphans = Orphans::default();
        let place = orphans.enter().expect("a place");
        let pressed = orphans.pressed();
        orphans.close();
        pressed.await;
        drop(place);
        assert!(orphans.enter().is_none());
        assert!(orphans.are_closed());
    }
}
