//! Refusals that are remembered for a short while, each for its own provenance.

use std::time::Duration;

use moka::sync::Cache;

use crate::store::Provenance;

use super::config::Config;
use super::error::PullError;
use super::origin::Origin;

/// Most refusals that are remembered.
const MAX_ENTRIES: u64 = 10_000;

/// Which repositories lately refused what.
#[derive(Clone, Debug)]
pub(super) struct Negative {
    refusals: Cache<(Provenance, String), PullError>,
}

impl Negative {
    pub(super) fn new(ttl: Duration) -> Self {
        let refusals = Cache::builder()
            .max_capacity(MAX_ENTRIES)
            .time_to_live(ttl.min(Config::MAX_NEGATIVE_TTL))
            .build();
        Self { refusals }
    }

    /// Remembers a refusal; any other failure is not remembered.
    pub(super) fn remember(&self, origin: &Origin, subject: &str, error: &PullError) {
        if error.is_denial() {
            let key = (origin.provenance(), subject.to_owned());
            self.refusals.insert(key, error.clone());
        }
    }

    /// Returns the remembered refusal.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn check(&self, origin: &Origin, subject: &str) -> Result<(), PullError> {
        let key = (origin.provenance(), subject.to_owned());
        self.refusals.get(&key).map_or(Ok(()), Err)
    }
}
