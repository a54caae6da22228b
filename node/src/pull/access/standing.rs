//! What upstreams last said about repositories, and for how long that counts.

use std::time::Duration;

use millrace_protocol::oci::Digest;
use moka::sync::Cache;
use tokio::time::Instant;

use crate::store::Provenance;
use crate::upstream::FetchError;

use super::super::config::Config;
use super::super::error::PullError;
use super::Form;

/// Most refusals of content that are kept; the home of one that was dropped is believed again.
const MAX_REFUSALS: u64 = 20_000;

/// Most repositories whose standing is kept.
const MAX_STANDINGS: u64 = 10_000;

/// The standing of each repository with the credentials it is asked with.
#[derive(Debug)]
pub(super) struct Standings {
    ttl: Duration,
    grace: Duration,
    /// Counts as a confirmation of what a run before this one fetched.
    started: Instant,
    repositories: Cache<Provenance, Standing>,
    /// When content was last refused to a repository, in the form in which it was asked for.
    refusals: Cache<(Provenance, (Digest, Form)), Instant>,
}

/// What the upstream last said about a repository to these credentials.
#[derive(Clone, Copy, Debug)]
enum Standing {
    Confirmed(Instant),
    Denied(Instant),
}

impl Standings {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            ttl: config.access_ttl,
            grace: config.access_grace,
            started: Instant::now(),
            repositories: Cache::new(MAX_STANDINGS),
            refusals: Cache::new(MAX_REFUSALS),
        }
    }

    /// Notes what was said at some time, unless something was said since.
    pub(super) fn confirm(&self, own: Provenance, at: Instant) {
        let Some(Standing::Confirmed(known) | Standing::Denied(known)) =
            self.repositories.get(&own)
        else {
            return self.repositories.insert(own, Standing::Confirmed(at));
        };
        if known <= at {
            self.repositories.insert(own, Standing::Confirmed(at));
        }
    }

    /// Notes that content is refused to a repository. A 401 or 403 is about the repository, a 404
    /// perhaps about this content only.
    pub(super) fn refuse(&self, own: &Provenance, what: (Digest, Form), error: &PullError) {
        let now = Instant::now();
        if matches!(error, PullError::Fetch(FetchError::Denied { .. })) {
            self.repositories.insert(own.clone(), Standing::Denied(now));
        }
        self.refusals.insert((own.clone(), what), now);
    }

    pub(super) fn is_confirmed(&self, own: &Provenance) -> bool {
        self.fresh_age(own).is_some()
    }

    /// Time since the repository was confirmed, unless that is too long ago or it was denied since.
    pub(super) fn fresh_age(&self, own: &Provenance) -> Option<Duration> {
        let Some(Standing::Confirmed(at)) = self.repositories.get(own) else {
            return None;
        };
        Some(at.elapsed()).filter(|age| *age < self.ttl)
    }

    /// Greatest age of another node's word: as that of the upstream's own, and younger than what
    /// the upstream has refused here.
    pub(super) fn max_age(&self, own: &Provenance, what: (Digest, Form)) -> Duration {
        let refused = self.refusals.get(&(own.clone(), what));
        let denied = match self.repositories.get(own) {
            Some(Standing::Denied(at)) => Some(at),
            Some(Standing::Confirmed(_)) | None => None,
        };
        let last = refused.into_iter().chain(denied).max();
        last.map_or(self.ttl, |at| at.elapsed().min(self.ttl))
    }

    /// Whether the last word still counts while the upstream cannot be asked.
    pub(super) fn is_in_grace(&self, own: &Provenance) -> bool {
        let since = match self.repositories.get(own) {
            Some(Standing::Confirmed(at)) => at,
            Some(Standing::Denied(_)) => return false,
            None => self.started,
        };
        since.elapsed() < self.grace
    }
}
