//! The transfers that are under way, one per digest.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_protocol::oci::Digest;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::error::PullError;
use super::origin::Origin;
use super::rank::Rank;
use super::transfer::{Phase, Transfer, Waiter};

/// The in-flight table; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    transfers: Arc<Mutex<HashMap<Digest, Arc<Transfer>>>>,
}

/// As what a blob is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// The transfer acts at least in this rank from then on.
    pub(super) rank: Rank,
    /// Who wants it has some already, so others may have more than is here.
    pub(super) begun_elsewhere: bool,
    /// Nobody waits for it: it is to be a further copy.
    pub(super) is_copy: bool,
}

impl Want {
    /// As what a client of this node wants a blob.
    pub(super) const CLIENT: Self = Self {
        rank: Rank::Node,
        begun_elsewhere: false,
        is_copy: false,
    };
}

/// A transfer that was joined.
pub(super) struct Joined {
    pub(super) waiter: Waiter,
    /// The new transfer's queue of far ranges, when the caller has to start its filler.
    pub(super) begun: Option<mpsc::Receiver<u64>>,
}

impl Table {
    /// Joins the transfer of a digest, or enters a new one.
    pub(super) fn join(&self, digest: &Digest, origins: &[Origin], want: Want) -> Joined {
        let mut transfers = self.transfers.lock();
        let known = transfers.get(digest).cloned();
        let (transfer, begun) = known.map_or_else(
            || {
                let (transfer, far) = Transfer::new(*digest, want.rank);
                transfers.insert(*digest, Arc::clone(&transfer));
                (transfer, Some(far))
            },
            |transfer| (transfer, None),
        );
        // Before it acts in that rank.
        if want.begun_elsewhere {
            transfer.change(|state| state.begun_elsewhere = true);
        }
        transfer.raise(want.rank);
        Joined {
            waiter: transfer.join(origins, want.is_copy),
            begun,
        }
    }

    /// Returns the transfer of a digest if one is under way.
    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<Transfer>> {
        self.transfers.lock().get(digest).cloned()
    }

    pub(super) fn count(&self) -> usize {
        self.transfers.lock().len()
    }

    pub(super) fn all(&self) -> Vec<Arc<Transfer>> {
        self.transfers.lock().values().cloned().collect()
    }

    /// Returns the next origin to try.
    ///
    /// # Errors
    /// The transfer's error when all origins failed, or none is configured here. It is out of the table then, so that nobody
    /// can join with an origin that would never be tried.
    pub(super) fn next_candidate(&self, transfer: &Arc<Transfer>) -> Result<Origin, PullError> {
        let mut transfers = self.transfers.lock();
        let candidates = transfer.candidates();
        if let Some(origin) = candidates.next() {
            return Ok(origin);
        }
        transfers.remove(&transfer.digest);
        Err(candidates
            .last_error()
            .cloned()
            .unwrap_or(PullError::Unconfigured))
    }

    /// Takes a transfer out that is to make way, unless somebody waits for it by now. Returns whether
    /// it is out.
    pub(super) fn leave(&self, transfer: &Arc<Transfer>) -> bool {
        let mut transfers = self.transfers.lock();
        let is_needed = transfer.is_awaited() && transfer.has_waiters();
        if !is_needed {
            transfers.remove(&transfer.digest);
        }
        !is_needed
    }

    /// Takes a transfer out whose blob is stored, or was relayed to the end.
    pub(super) fn remove(&self, transfer: &Arc<Transfer>) {
        let mut transfers = self.transfers.lock();
        if transfers
            .get(&transfer.digest)
            .is_some_and(|known| Arc::ptr_eq(known, transfer))
        {
            transfers.remove(&transfer.digest);
        }
    }

    /// Takes a transfer out and lets its waiters see why it failed.
    pub(super) fn fail(&self, transfer: &Arc<Transfer>, error: PullError) {
        self.remove(transfer);
        transfer.change(|state| state.phase = Phase::Failed(error));
    }
}
