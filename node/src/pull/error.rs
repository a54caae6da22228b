//! Why a pull failed.

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::oci::Digest;

use crate::store::StoreError;
use crate::upstream::{Fault, FetchError, Retry, Upstream};

/// Why content cannot be given; cheap to clone, so that every waiter can have it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PullError {
    /// The upstream did not give it.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The upstream gives no blobs now and not everything under this manifest is here, so handing it out
    /// would promise what cannot be kept.
    #[error(
        "the upstream is away or limits requests, and {missing} of the blobs under {digest} are not here"
    )]
    Incomplete {
        /// The manifest.
        digest: Digest,
        /// How many of its blobs are missing, or of the best image's in an index.
        missing: usize,
    },
    /// No first byte in time; the fetch goes on for whoever asks next.
    #[error("no answer within {waited:?}")]
    Late {
        /// How long was waited.
        waited: Duration,
    },
    /// As Late, because as many downloads as may run at the upstream do; this one keeps its place.
    #[error(
        "{upstream} did not get to it within {waited:?}: {}, as many as its max_downloads allows; the \
         place in the queue is kept", running(*limit)
    )]
    Crowded {
        /// Name of the upstream.
        upstream: String,
        /// `max_downloads` of the upstream; `None` if it is another node's.
        limit: Option<usize>,
        /// How long was waited.
        waited: Duration,
    },
    /// What arrived is not what the digest promises.
    #[error("the bytes received for {expected} have the digest {actual}")]
    Corrupt {
        /// What was asked for.
        expected: Digest,
        /// What arrived.
        actual: Digest,
    },
    /// What a peer gave ahead of the chain does not fit the chain, so some of it is wrong.
    #[error("what came ahead of the chain of {digest} does not fit it")]
    Contradicted {
        /// What was asked for.
        digest: Digest,
    },
    /// This reader is slower than the bounded window of content that cannot be stored.
    #[error("read too slowly for content that is relayed without being stored")]
    FellBehind,
    /// No origin that was named is configured here; told to peers, never to clients.
    #[error("none of the upstreams that were named is configured here")]
    Unconfigured,
    /// The fetch was stopped: the node is draining, or nobody waited for it.
    #[error("the fetch was stopped")]
    Stopped,
    /// The disk failed.
    #[error("the store failed")]
    Store(#[source] Arc<StoreError>),
    /// A stored file cannot be read.
    #[error("cannot read stored content")]
    Read(#[source] Arc<std::io::Error>),
}

impl PullError {
    /// Says that what comes late waits in the queue of this upstream, if that is as long as may be, or
    /// it `is_queued` at another node.
    pub(super) fn in_crowd_of(self, upstream: &Upstream, is_queued: bool) -> Self {
        let limit = upstream.crowd();
        match self {
            Self::Late { waited } if is_queued || limit.is_some() => Self::Crowded {
                upstream: upstream.name().to_owned(),
                limit,
                waited,
            },
            error => error,
        }
    }

    /// Returns who is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Fetch(error) => error.fault(),
            Self::Incomplete { .. } | Self::Late { .. } | Self::Corrupt { .. } => Fault::Upstream,
            Self::FellBehind => Fault::Client,
            Self::Crowded { .. }
            | Self::Unconfigured
            | Self::Stopped
            | Self::Contradicted { .. }
            | Self::Store(_)
            | Self::Read(_) => Fault::Local,
        }
    }

    /// Returns what can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Fetch(error) => error.retry(),
            Self::Corrupt { .. } | Self::Contradicted { .. } => Retry::OtherSourceNow,
            _ => Retry::SameSourceLater,
        }
    }

    /// Whether bytes that were shown already may be wrong, so that nobody gets another.
    pub(super) fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Contradicted { .. })
    }

    /// Whether the upstream itself said no to this provenance.
    pub fn is_denial(&self) -> bool {
        matches!(self, Self::Fetch(error) if error.is_denial())
    }
}

/// Says how many downloads run, if that is known.
fn running(limit: Option<usize>) -> String {
    limit.map_or_else(
        || "another node asks it for as many downloads".to_owned(),
        |limit| format!("{limit} downloads are running"),
    )
}

impl From<StoreError> for PullError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}
