//! One blob on its way to this node, shared by all who wait for it.
//!
//! The state is a snapshot that the filler changes and readers watch; what it says is `state`'s. This
//! file moves no bytes; `fill` writes and `blob` reads.

mod state;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::Refusal;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant};

use crate::store::{BlobFile, Provenance};

use super::TransferStatus;
use super::candidates::Candidates;
use super::error::PullError;
use super::origin::{Origin, Source};
use super::rank::Rank;
use super::refusal;

pub(super) use state::{Phase, State, Step, Supply};
use waiting::Waiting;

/// A range whose bytes are not expected within this time opens a segment of its own.
const FAR: Duration = Duration::from_secs(5);

/// Most requests for far ranges that wait for the filler; more are repeated by their readers.
const MAX_FAR_REQUESTS: usize = 16;

/// A transfer; shared by its filler and its waiters.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) digest: Digest,
    started: Instant,
    state: watch::Sender<State>,
    waiters: watch::Sender<usize>,
    /// Whether it was ever wanted for more than a copy.
    awaited: watch::Sender<bool>,
    rank: watch::Sender<Rank>,
    candidates: Mutex<Candidates>,
    far: mpsc::Sender<u64>,
    /// How many of those who work for it wait for their turn.
    queued: AtomicUsize,
}

/// Someone who waits for a turn, for a transfer; dropping it ends the wait.
#[derive(Debug)]
pub(super) struct Queued<'a>(&'a Transfer);

impl Transfer {
    /// Makes a transfer and the filler's end of its queue of far ranges.
    pub(super) fn new(digest: Digest, rank: Rank) -> (Arc<Self>, mpsc::Receiver<u64>) {
        let (far, far_requests) = mpsc::channel(MAX_FAR_REQUESTS);
        let transfer = Self {
            digest,
            started: Instant::now(),
            state: watch::Sender::default(),
            waiters: watch::Sender::default(),
            awaited: watch::Sender::default(),
            rank: watch::Sender::new(rank),
            candidates: Mutex::default(),
            far,
            queued: AtomicUsize::new(0),
        };
        (Arc::new(transfer), far_requests)
    }

    /// Adds a waiter and the origins that it named, the one it wants an answer of first; one for a copy
    /// waits for nothing.
    pub(super) fn join(self: &Arc<Self>, origins: &[Origin], is_copy: bool) -> Waiter {
        let mut candidates = self.candidates.lock();
        for origin in origins {
            candidates.add(origin);
        }
        drop(candidates);
        if !is_copy {
            self.awaited.send_replace(true);
        }
        self.waiters.send_modify(|waiters| *waiters += 1);
        Waiter {
            provenance: origins.first().map(Origin::provenance),
            transfer: Arc::clone(self),
        }
    }

    /// Returns whom this transfer may wait for.
    pub(super) fn rank(&self) -> Rank {
        *self.rank.borrow()
    }

    /// Whether a follower may wait for the bytes here: not where they come from other nodes, if they
    /// come; and where an upstream was not asked yet, only if its id is the greater one. So nobody
    /// waits in a circle, because who has asked an upstream follows nobody any more.
    pub(super) fn may_be_followed(&self, has_greater_id: bool) -> bool {
        self.state().has_asked || (self.rank() == Rank::Home && has_greater_id)
    }

    /// Lets the transfer act in at least this rank from now on.
    pub(super) fn raise(&self, rank: Rank) {
        self.rank.send_if_modified(|known| {
            let raised = rank > *known;
            *known = rank.max(*known);
            raised
        });
    }

    /// Resolves when the transfer must not wait any more for what it could wait for in `rank`.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(super) async fn raised_above(&self, rank: Rank) {
        // The sender lives in the transfer that is borrowed here.
        let _ = self.rank.subscribe().wait_for(|now| *now > rank).await;
    }

    /// Notes that a turn is waited for, at an upstream or by the node that it is taken from.
    pub(super) fn queue(&self) -> Queued<'_> {
        self.queued.fetch_add(1, Ordering::Relaxed);
        Queued(self)
    }

    /// Whether a turn is waited for.
    pub(super) fn is_queued(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > 0
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(super) fn watch_waiters(&self) -> watch::Receiver<usize> {
        self.waiters.subscribe()
    }

    pub(super) fn state(&self) -> watch::Ref<'_, State> {
        self.state.borrow()
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.state.send_modify(|state| result = Some(change(state)));
        result.expect("send_modify calls its argument")
    }

    pub(super) fn candidates(&self) -> parking_lot::MutexGuard<'_, Candidates> {
        self.candidates.lock()
    }

    /// Whether it was ever wanted for more than a copy. If not it makes way for everything else, and is
    /// no reason to ask an upstream.
    pub(super) fn is_awaited(&self) -> bool {
        *self.awaited.borrow()
    }

    /// Resolves when it is wanted for more than a copy.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(super) async fn awaited(&self) {
        // The sender lives in the transfer that is borrowed here.
        let _ = self.awaited.subscribe().wait_for(|awaited| *awaited).await;
    }

    pub(super) fn has_waiters(&self) -> bool {
        *self.waiters.borrow() > 0
    }

    /// Ends the transfer with the blob that turned out to be in the store, fetched as `provenance`.
    pub(super) fn found(&self, blob: BlobFile, provenance: Vec<Provenance>) {
        self.change(|state| state.find(blob, provenance));
    }

    pub(super) fn status(&self) -> TransferStatus {
        let state = self.state();
        TransferStatus {
            digest: self.digest,
            origins: self.candidates().names(),
            source: match state.supply {
                Supply::Nobody => None,
                Supply::Peers => Some(Source::Peer),
                Supply::Upstream => Some(Source::Upstream),
            },
            size_bytes: state.size,
            received_bytes: state.here_bytes(),
            relayed: state.window.is_some(),
            queued: self.is_queued(),
            waiters: *self.waiters.borrow(),
            age_seconds: self.started.elapsed().as_secs(),
        }
    }

    /// Notes how far a reader has come, where that paces what is relayed.
    pub(super) fn pace(&self, position: u64) {
        if self.state().window.is_some() {
            self.change(|state| state.advance_reader(position));
        }
    }

    /// Asks for a segment of its own for a reader whose bytes are not expected soon.
    pub(super) fn hurry(&self, position: u64, waited: Duration) {
        let late = {
            let state = self.state.borrow();
            let expected = state.segments.expected_in(position, Instant::now());
            match expected {
                Some(time) => time > FAR,
                None => waited > FAR,
            }
        };
        if late {
            // A full queue means that the filler is busy with others; the reader asks again.
            let _ = self.far.try_send(position);
        }
    }
}

/// Someone who waits for a transfer; dropping it is all that leaving means.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) transfer: Arc<Transfer>,
    /// Of the origin whose refusal is this waiter's answer.
    provenance: Option<Provenance>,
}

impl Waiter {
    /// Waits until headers may leave.
    ///
    /// # Errors
    /// The final answer of this waiter's own origin, or that of the transfer.
    pub(super) async fn confirmed(&self) -> Result<(), PullError> {
        let mut watch = self.transfer.watch();
        loop {
            {
                let state = watch.borrow_and_update();
                if state.is_confirmed() {
                    return Ok(());
                }
                let candidates = self.transfer.candidates();
                let own = self.provenance.as_ref();
                if let Some(refusal) = own.and_then(|own| candidates.refusal(own)) {
                    return Err(refusal.clone());
                }
                if let Some(error) = state.failure() {
                    return Err(error.clone());
                }
            }
            if watch.changed().await.is_err() {
                return Err(PullError::Stopped);
            }
        }
    }

    /// Returns the answer for another node when the transfer ended with `error`.
    pub(super) fn refusal(&self, error: &PullError) -> Refusal {
        let candidates = self.transfer.candidates();
        let origin = self
            .provenance
            .as_ref()
            .and_then(|own| candidates.find(own));
        refusal::refusal(origin, error)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.transfer.waiters.send_modify(|waiters| *waiters -= 1);
    }
}
