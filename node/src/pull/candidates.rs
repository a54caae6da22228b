//! The origins of one fetch: who may supply it, who was tried, who said no.
//!
//! A fetch is keyed by digest, and each waiter adds the origin it named. The fetch fails only
//! when all of them have failed; a refusal is told only to those who named the origin that
//! refused. Decisions only; no I/O.

use millrace_protocol::wire::message::{MAX_ORIGINS, OriginName};

use crate::store::Provenance;

use super::error::PullError;
use super::origin::Origin;
use super::refusal::name_of;

/// Most origins that one fetch considers; further waiters only wait.
const MAX_CANDIDATES: usize = 16;

/// The origins of one fetch, in the order in which they were named.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    entries: Vec<Candidate>,
}

#[derive(Clone, Debug)]
struct Candidate {
    origin: Origin,
    provenance: Provenance,
    failure: Option<PullError>,
}

impl Candidates {
    /// Adds an origin unless it is there.
    pub(super) fn add(&mut self, origin: &Origin) {
        self.push(Candidate {
            origin: origin.clone(),
            provenance: origin.provenance(),
            failure: None,
        });
    }

    /// Adds another fetch's origins, with what came of them, unless they are there.
    pub(super) fn absorb(&mut self, others: Self) {
        for candidate in others.entries {
            self.push(candidate);
        }
    }

    fn push(&mut self, candidate: Candidate) {
        let mut entries = self.entries.iter();
        let known = entries.any(|entry| entry.provenance == candidate.provenance);
        if !known && self.entries.len() < MAX_CANDIDATES {
            self.entries.push(candidate);
        }
    }

    /// Returns the first origin that has not failed.
    pub(super) fn next(&self) -> Option<Origin> {
        let untried = self.entries.iter().find(|entry| entry.failure.is_none());
        untried.map(|entry| entry.origin.clone())
    }

    /// Returns the origin of a provenance that was named.
    pub(super) fn find(&self, provenance: &Provenance) -> Option<&Origin> {
        let entry = self
            .entries
            .iter()
            .find(|entry| entry.provenance == *provenance);
        entry.map(|entry| &entry.origin)
    }

    /// Lists the origins as `upstream/repository`.
    pub(super) fn names(&self) -> Vec<String> {
        self.entries
            .iter()
            .map(|entry| entry.origin.to_string())
            .collect()
    }

    /// Returns the origins as other nodes are told of them.
    pub(super) fn origin_names(&self) -> Vec<OriginName> {
        let names = self.entries.iter().map(|entry| name_of(&entry.provenance));
        names.take(MAX_ORIGINS).collect()
    }

    /// Records the refusal that another node got, for the origins that it is final for. Returns
    /// whether there was one.
    pub(super) fn refuse(&mut self, refusal: impl Fn(&Origin) -> Option<PullError>) -> bool {
        let mut refused = false;
        for entry in &mut self.entries {
            if let Some(error) = refusal(&entry.origin) {
                entry.failure = Some(error);
                refused = true;
            }
        }
        refused
    }

    /// Whether origins were named and all of them have failed.
    pub(super) fn are_exhausted(&self) -> bool {
        !self.entries.is_empty() && self.next().is_none()
    }

    /// Records that an origin failed.
    pub(super) fn fail(&mut self, origin: &Origin, error: PullError) {
        let provenance = origin.provenance();
        let entry = self
            .entries
            .iter_mut()
            .find(|entry| entry.provenance == provenance);
        if let Some(entry) = entry {
            entry.failure = Some(error);
        }
    }

    /// Returns the final answer of the origin that a waiter named: a refusal, or a rate limit.
    pub(super) fn refusal(&self, provenance: &Provenance) -> Option<&PullError> {
        let entry = self
            .entries
            .iter()
            .find(|entry| entry.provenance == *provenance)?;
        entry.failure.as_ref().filter(|error| is_own(error))
    }

    /// Returns the error for waiters whose own origin gave no final answer.
    ///
    /// A failure that may pass is preferred to another provenance's refusal.
    pub(super) fn last_error(&self) -> Option<&PullError> {
        let failures = || {
            self.entries
                .iter()
                .filter_map(|entry| entry.failure.as_ref())
        };
        failures()
            .find(|error| !is_own(error))
            .or_else(|| failures().next())
    }
}

/// Whether an error says something about one provenance only.
fn is_own(error: &PullError) -> bool {
    use crate::upstream::FetchError;
    error.is_denial() || matches!(error, PullError::Fetch(FetchError::RateLimited { .. }))
}
