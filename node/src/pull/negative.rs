//! Refusals that are remembered for a short while, each for its own provenance.

use std::time::Duration;

use millrace_protocol::oci::{Digest, Reference};
use moka::sync::Cache;

use crate::store::Provenance;

use super::config::Config;
use super::error::PullError;
use super::origin::Origin;

/// Most refusals that are remembered.
const MAX_ENTRIES: u64 = 10_000;

/// What is wanted of a repository. A digest is one thing as a blob and another as a manifest: clients that do
/// not know which it is try both (contract 11.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    Blob(Digest),
    Manifest(Reference),
    /// A page of a listing, as its cache names it.
    Page(String),
}

/// Which repositories lately refused what.
#[derive(Clone, Debug)]
pub(super) struct Negative {
    refusals: Cache<(Provenance, Wanted), PullError>,
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
    pub(super) fn remember(&self, origin: &Origin, wanted: Wanted, error: &PullError) {
        if error.is_denial() {
            self.refusals
                .insert((origin.provenance(), wanted), error.clone());
        }
    }

    /// Returns the remembered refusal.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn check(&self, origin: &Origin, wanted: Wanted) -> Result<(), PullError> {
        let key = (origin.provenance(), wanted);
        self.refusals.get(&key).map_or(Ok(()), Err)
    }
}
