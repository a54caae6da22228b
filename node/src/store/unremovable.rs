//! What could not be removed to make room: not tried again for a while.
//!
//! Each try costs a failed system call and tells all listeners that the content went and came back;
//! where there is much of it, each search for room would try all. Bookkeeping only.

use std::collections::HashMap;
use std::time::Duration;

use millrace_protocol::oci::Digest;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long what could not be removed is left alone: as long as its line in the log counts.
const PAUSE: Duration = Duration::from_secs(60);

/// Content that could not be removed, and when that was tried last.
#[derive(Debug, Default)]
pub(super) struct Unremovable(Mutex<HashMap<Digest, Instant>>);

impl Unremovable {
    /// Leaves content alone from `now` on.
    pub(super) fn add(&self, digest: &Digest, now: Instant) {
        self.0.lock().insert(*digest, now);
    }

    /// Forgets content that is gone.
    pub(super) fn forget(&self, digest: &Digest) {
        self.0.lock().remove(digest);
    }

    /// Whether content is left alone.
    pub(super) fn contains(&self, digest: &Digest, now: Instant) -> bool {
        let tried = self.0.lock().get(digest).copied();
        tried.is_some_and(|tried| now.duration_since(tried) < PAUSE)
    }
}
