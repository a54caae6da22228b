//! What a failed fetch means to another node, and what another node's refusal means here.
//!
//! A refusal belongs to the provenance that it was given to: where this node would ask with the
//! same credential it is final, elsewhere it is only one hop that could not help.

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::wire::message::{OriginName, RateLimit, Refusal};
use tokio::time::Instant;

use crate::store::Provenance;
use crate::upstream::{FetchError, Limit, Subject};

use super::error::PullError;
use super::origin::Origin;

/// Names an origin to other nodes.
pub(super) fn origin_name(origin: &Origin) -> OriginName {
    name_of(&origin.provenance())
}

/// Names a provenance to other nodes.
pub(super) fn name_of(provenance: &Provenance) -> OriginName {
    OriginName {
        upstream: provenance.upstream.clone(),
        repository: provenance.repository.clone(),
        credential: provenance.credential.clone(),
    }
}

/// Returns the provenance that another node names.
pub(super) fn provenance_of(name: &OriginName) -> Provenance {
    Provenance {
        upstream: name.upstream.clone(),
        repository: name.repository.clone(),
        credential: name.credential.clone(),
    }
}

/// Tells another node why `origin` did not give something.
pub(super) fn refusal(origin: Option<&Origin>, error: &PullError) -> Refusal {
    let Some(origin) = origin else {
        return Refusal::Unconfigured;
    };
    let name = origin_name(origin);
    match error {
        PullError::Fetch(FetchError::NotFound { .. }) => Refusal::NotFound(name),
        PullError::Fetch(FetchError::Denied { status, .. }) => Refusal::Denied(name, *status),
        PullError::Fetch(FetchError::RateLimited { retry_at, .. }) => {
            let wait = retry_at.map(|at| at.saturating_duration_since(Instant::now()));
            let wait_ms = wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
            let source = origin.upstream.source();
            Refusal::RateLimited(name, RateLimit { wait_ms, source })
        }
        PullError::Fetch(error) => Refusal::unavailable(name, error.to_string()),
        PullError::Incomplete { .. } | PullError::Late { .. } | PullError::Crowded { .. } => {
            Refusal::unavailable(name, error.to_string())
        }
        PullError::Corrupt { .. } | PullError::Contradicted { .. } => Refusal::Corrupt,
        PullError::Unconfigured => Refusal::Unconfigured,
        PullError::FellBehind | PullError::Stopped | PullError::Store(_) | PullError::Read(_) => {
            Refusal::Unable
        }
    }
}

/// Returns this node's error if another node's refusal is final for `origin`.
///
/// A rate limit is final for an account, which is the same wherever it is used from; without one
/// only if the upstream counts both nodes as the same.
pub(super) fn final_for(origin: &Origin, refusal: &Refusal, subject: Subject) -> Option<PullError> {
    let (Refusal::NotFound(name) | Refusal::Denied(name, _) | Refusal::RateLimited(name, _)) =
        refusal
    else {
        return None;
    };
    if provenance_of(name) != origin.provenance() {
        return None;
    }
    let upstream: Arc<str> = origin.upstream.name().into();
    let subject = Arc::new(subject);
    let error = match refusal {
        Refusal::RateLimited(_, RateLimit { wait_ms, source }) => {
            if !origin.upstream.shares_limits(source.as_deref()) {
                return None;
            }
            FetchError::RateLimited {
                upstream,
                limit: Limit::Pulls,
                retry_at: wait_ms.map(|millis| Instant::now() + Duration::from_millis(millis)),
            }
        }
        Refusal::Denied(_, status) => FetchError::Denied {
            upstream,
            subject,
            status: *status,
        },
        _ => FetchError::NotFound { upstream, subject },
    };
    Some(error.into())
}
