//! Whose turn it is at an upstream: how many requests and downloads run at a time.
//!
//! A registry counts requests; the bytes of a blob are mostly sent by its content network. So a
//! request takes a slot, and a download that lasts gives its slot to whoever waits for one, as
//! long as there are not too many such downloads. A few slots are kept from blobs, so that a crowd
//! of them does not hold up the manifests by which pulls begin. Whether a request is sent at all
//! is not decided here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long a download keeps its slot while others wait for one. Eight rounds of so many requests
/// as run at a time, 500 by default, are then on their way within the 20 s that clients wait.
const HOLD: Duration = Duration::from_secs(2);

/// Downloads for each request that may run, unless configured.
const DOWNLOADS_PER_REQUEST: usize = 8;

/// Of so many slots one is kept from blobs.
const BLOBS_LEAVE_ONE_OF: usize = 8;

/// The slots of one upstream.
#[derive(Debug)]
pub(super) struct Turns {
    slots: Arc<Semaphore>,
    /// The part of the slots that blobs may have.
    blob_slots: Arc<Semaphore>,
    /// Room for downloads without a slot.
    lasting: Arc<Semaphore>,
    max_requests: usize,
    max_lasting: usize,
}

/// The right to run one request, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _slot: OwnedSemaphorePermit,
    /// Beside the slot, where the request is for a blob.
    _blob_slot: Option<OwnedSemaphorePermit>,
}

/// The right to receive one body, until it is dropped.
#[derive(Debug)]
pub(super) struct DownloadTurn {
    state: Held,
    since: Instant,
}

#[derive(Debug)]
enum Held {
    Slot { _turn: Turn },
    Lasting { _room: OwnedSemaphorePermit },
}

impl Turns {
    /// Allows `max_requests` at a time and, with those that last, `max_downloads`.
    pub(super) fn new(max_requests: usize, max_downloads: Option<usize>) -> Self {
        let max_requests = max_requests.min(Semaphore::MAX_PERMITS);
        let max_downloads =
            max_downloads.unwrap_or_else(|| max_requests.saturating_mul(DOWNLOADS_PER_REQUEST));
        let max_lasting = max_downloads
            .saturating_sub(max_requests)
            .min(Semaphore::MAX_PERMITS);
        let for_blobs = max_requests - max_requests / BLOBS_LEAVE_ONE_OF;
        Self {
            slots: Arc::new(Semaphore::new(max_requests)),
            blob_slots: Arc::new(Semaphore::new(for_blobs)),
            lasting: Arc::new(Semaphore::new(max_lasting)),
            max_requests,
            max_lasting,
        }
    }

    /// Waits for a slot, behind all who asked before.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue.
    pub(super) async fn take(&self, is_blob: bool) -> Turn {
        let blob_slot = if is_blob {
            Some(acquire(&self.blob_slots).await)
        } else {
            None
        };
        Turn {
            _slot: acquire(&self.slots).await,
            _blob_slot: blob_slot,
        }
    }

    /// Whether whoever asks now has to wait.
    pub(super) fn are_taken(&self) -> bool {
        self.slots.available_permits() == 0
    }

    pub(super) fn max_requests(&self) -> usize {
        self.max_requests
    }

    /// Returns how many slots are taken.
    pub(super) fn requests(&self) -> usize {
        self.max_requests
            .saturating_sub(self.slots.available_permits())
    }

    /// Returns how many downloads run without a slot.
    pub(super) fn lasting(&self) -> usize {
        self.max_lasting
            .saturating_sub(self.lasting.available_permits())
    }

    /// Returns how many downloads run at most, if they all do, so that a blob has to wait until one
    /// of them ends.
    pub(super) fn crowd(&self) -> Option<usize> {
        let is_full = self.blobs_wait() && self.lasting.available_permits() == 0;
        is_full.then_some(self.max_requests + self.max_lasting)
    }

    /// Whether a blob would have to wait.
    fn blobs_wait(&self) -> bool {
        self.are_taken() || self.blob_slots.available_permits() == 0
    }
}

impl DownloadTurn {
    /// Goes on with the slot of a request whose headers have come.
    pub(super) fn new(turn: Turn) -> Self {
        Self {
            state: Held::Slot { _turn: turn },
            since: Instant::now(),
        }
    }

    /// Returns when the slot is to be given up for others: in the past once that is due.
    ///
    /// `None` when it is given up already.
    pub(super) fn due(&self) -> Option<Instant> {
        matches!(self.state, Held::Slot { .. }).then(|| self.since + HOLD)
    }

    /// Gives up the slot if that is due, somebody may want it, and there is room beside it.
    pub(super) fn make_room(&mut self, turns: &Turns) {
        let is_due = self.due().is_some_and(|due| due <= Instant::now());
        if is_due
            && turns.blobs_wait()
            && let Ok(room) = Arc::clone(&turns.lasting).try_acquire_owned()
        {
            self.state = Held::Lasting { _room: room };
        }
    }

    /// Whether it runs beside the slots, so that there may be many such.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self.state, Held::Lasting { .. })
    }
}

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let permit = Arc::clone(semaphore).acquire_owned().await;
    permit.expect("these semaphores are never closed")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn now(turns: &Turns, is_blob: bool) -> Option<Turn> {
        turns.take(is_blob).now_or_never()
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_that_lasts_makes_room_for_who_waits() {
        let turns = Turns::new(1, Some(2));
        let mut first = DownloadTurn::new(turns.take(true).await);
        first.make_room(&turns);
        assert!(now(&turns, true).is_none(), "it has just begun");
        tokio::time::advance(HOLD).await;
        first.make_room(&turns);
        let mut second = DownloadTurn::new(now(&turns, true).expect("room"));
        assert_eq!((turns.requests(), turns.lasting()), (1, 1));
        tokio::time::advance(HOLD).await;
        second.make_room(&turns);
        assert!(now(&turns, true).is_none(), "two downloads are the most");
        assert_eq!(turns.crowd(), Some(2));
        drop(first);
        second.make_room(&turns);
        assert_eq!(turns.crowd(), None);
        now(&turns, true).expect("room again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_keeps_its_slot_while_nobody_needs_one() {
        let turns = Turns::new(2, None);
        let mut only = DownloadTurn::new(turns.take(true).await);
        tokio::time::advance(HOLD * 10).await;
        only.make_room(&turns);
        assert!(!only.is_lasting());
    }

    #[tokio::test]
    async fn as_many_downloads_as_requests_is_a_hard_bound() {
        let turns = Turns::new(3, Some(3));
        let mut held: Vec<_> = (0..3).map(|_| now(&turns, true).expect("room")).collect();
        assert!(now(&turns, false).is_none());
        held.pop();
        now(&turns, false).expect("room again");
    }

    #[tokio::test]
    async fn blobs_leave_slots_for_manifests() {
        let turns = Turns::new(64, None);
        let blobs: Vec<_> = std::iter::from_fn(|| now(&turns, true)).collect();
        assert_eq!(blobs.len(), 56);
        let others: Vec<_> = std::iter::from_fn(|| now(&turns, false)).collect();
        assert_eq!(others.len(), 8);
        assert!(turns.are_taken());
    }
}
