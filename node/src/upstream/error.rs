//! Why an upstream did not give what it was asked for.
//!
//! The error says whose fault it is and whether another try can help; what a client is told is
//! decided by `registry/respond.rs`. No variant holds a token, a password or the query of a URL.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::oci::{Digest, Reference, RepositoryName};
use tokio::time::Instant;

use super::shortage::Shortage;

/// What an upstream was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A manifest by tag or digest.
    Manifest(RepositoryName, Reference),
    /// A blob.
    Blob(RepositoryName, Digest),
    /// The list of a repository's tags.
    Tags(RepositoryName),
    /// The manifests that refer to a digest.
    Referrers(RepositoryName, Digest),
}

impl Subject {
    /// Returns the repository.
    pub fn repository(&self) -> &RepositoryName {
        match self {
            Self::Manifest(repository, _)
            | Self::Blob(repository, _)
            | Self::Tags(repository)
            | Self::Referrers(repository, _) => repository,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(repository, Reference::Tag(tag)) => {
                write!(f, "manifest {repository}:{tag}")
            }
            Self::Manifest(repository, reference) => write!(f, "manifest {repository}@{reference}"),
            Self::Blob(repository, digest) => write!(f, "blob {repository}@{digest}"),
            Self::Tags(repository) => write!(f, "tags of {repository}"),
            Self::Referrers(repository, digest) => write!(f, "referrers of {repository}@{digest}"),
        }
    }
}

/// Why a fetch failed; cheap to clone, so that every waiter can have it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The upstream has answered 404: it does not exist there.
    #[error("{upstream} has no {subject}")]
    NotFound {
        /// Canonical name of the upstream.
        upstream: Arc<str>,
        /// What was asked for.
        subject: Arc<Subject>,
    },
    /// The upstream or its token service has refused with 401 or 403, after the token dance. Some
    /// upstreams answer so for what does not exist.
    #[error("{upstream} refuses {subject} with status {status}")]
    Denied {
        /// Canonical name of the upstream.
        upstream: Arc<str>,
        /// What was asked for.
        subject: Arc<Subject>,
        /// 401 or 403.
        status: u16,
    },
    /// The upstream has answered 429, now or a short while ago.
    #[error("{upstream} limits the rate of {limit}")]
    RateLimited {
        /// Canonical name of the upstream.
        upstream: Arc<str>,
        /// Which requests it limits.
        limit: Limit,
        /// When the next request may be sent.
        retry_at: Option<Instant>,
    },
    /// The upstream could not be reached or failed.
    #[error("{upstream} is unavailable: {reason}")]
    Unavailable {
        /// Canonical name of the upstream.
        upstream: Arc<str>,
        /// What happened.
        reason: Outage,
    },
    /// This node already runs as many requests at the upstream as it may.
    #[error("{limit} requests are running at {upstream}, as many as its max_requests allows")]
    Busy {
        /// Canonical name of the upstream.
        upstream: Arc<str>,
        /// `max_requests` of the upstream.
        limit: usize,
    },
    /// This node lacks what a connection takes; nothing is known about the upstream.
    #[error("cannot ask {upstream}: {shortage}")]
    Shortage {
        /// Canonical name of the upstream.
        upstream: Arc<str>,
        /// What is missing.
        shortage: Shortage,
    },
    /// The answer is larger than what is accepted.
    #[error("{subject} from {upstream} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// Canonical name of the upstream.
        upstream: Arc<str>,
        /// What was asked for.
        subject: Arc<Subject>,
        /// The bound.
        limit_bytes: usize,
    },
    /// The upstream has answered with something that cannot be used.
    #[error("{upstream} gave a bad answer for {subject}: {defect}")]
    BadAnswer {
        /// Canonical name of the upstream.
        upstream: Arc<str>,
        /// What was asked for.
        subject: Arc<Subject>,
        /// What is wrong with the answer.
        defect: Defect,
    },
}

impl FetchError {
    /// Returns who is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotFound { .. } | Self::Denied { .. } => Fault::Client,
            Self::Busy { .. } | Self::Shortage { .. } => Fault::Local,
            Self::Unavailable {
                reason: Outage::Credentials(_),
                ..
            } => Fault::Local,
            Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::TooLarge { .. }
            | Self::BadAnswer { .. } => Fault::Upstream,
        }
    }

    /// Returns whether the same request can help later, or another source now.
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotFound { .. } | Self::Denied { .. } | Self::TooLarge { .. } => Retry::Never,
            Self::Busy { .. } | Self::Shortage { .. } | Self::RateLimited { .. } => {
                Retry::SameSourceLater
            }
            Self::Unavailable {
                reason: Outage::Interrupted | Outage::Stalled,
                ..
            } => Retry::SameSourceLater,
            Self::Unavailable { .. } | Self::BadAnswer { .. } => Retry::OtherSourceNow,
        }
    }

    /// Whether the upstream itself has said no: such an answer is never replaced by a stale one.
    pub fn is_denial(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Denied { .. })
    }
}

/// Who is at fault when something fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request asks for what does not exist or may not be had.
    Client,
    /// The upstream.
    Upstream,
    /// This node.
    Local,
}

/// What can help after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Nothing.
    Never,
    /// The same request, a little later.
    SameSourceLater,
    /// The same request at another source, at once.
    OtherSourceNow,
}

/// Which requests an upstream limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Pulls: only the `GET` of a manifest counts.
    Pulls,
    /// All requests: the upstream sees abuse.
    Requests,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pulls => "pulls",
            Self::Requests => "requests",
        })
    }
}

/// Why an upstream is unavailable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Outage {
    /// No connection: name resolution, TCP or TLS failed.
    #[error("cannot connect: {0}")]
    Connect(Arc<str>),
    /// No connection by way of a proxy: it is not there, it refuses, or TLS behind it failed.
    #[error("cannot connect through the proxy {proxy}: {cause}")]
    Proxy {
        /// The proxy as `http://host:port`.
        proxy: Arc<str>,
        /// What happened.
        cause: Arc<str>,
    },
    /// No headers within `timeouts.response`.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The caller's deadline passed first.
    #[error("no answer before the deadline")]
    Deadline,
    /// The connection broke before the headers.
    #[error("connection broke: {0}")]
    Broken(Arc<str>),
    /// The body ended before its stated length, or its connection broke.
    #[error("body ended early")]
    Interrupted,
    /// No piece of the body for `timeouts.idle`.
    #[error("body stalled")]
    Stalled,
    /// A status that says that the server cannot answer.
    #[error("status {0}")]
    Status(u16),
    /// Several failures in a row: it is not asked for a while.
    #[error("not asked again so soon after failures")]
    BreakerOpen,
    /// The token service failed.
    #[error("token service: {0}")]
    TokenService(Arc<str>),
    /// This node's credentials cannot be read.
    #[error("credentials: {0}")]
    Credentials(#[from] CredentialError),
}

/// Why configured credentials cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The password file cannot be read.
    #[error("cannot read {}: {kind}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        kind: std::io::ErrorKind,
    },
    /// The helper could not be started.
    #[error("cannot start {command}: {kind}")]
    Start {
        /// The program.
        command: Arc<str>,
        /// Why.
        kind: std::io::ErrorKind,
    },
    /// The helper said no; its output is not repeated, for it may hold a secret.
    #[error("{command} failed")]
    Failed {
        /// The program.
        command: Arc<str>,
    },
    /// The helper did not end in time and was killed.
    #[error("{command} did not answer within {patience:?}")]
    Slow {
        /// The program.
        command: Arc<str>,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The helper's output is not `{"Username": …, "Secret": …}`.
    #[error("{command} printed no credentials")]
    Malformed {
        /// The program.
        command: Arc<str>,
    },
}

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// The bytes are compressed although that was not asked for.
    #[error("content encoding {0}")]
    Encoded(Arc<str>),
    /// A status that has no meaning here.
    #[error("status {0}")]
    Status(u16),
    /// More redirects than are followed.
    #[error("too many redirects")]
    TooManyRedirects,
    /// A redirect without a usable target.
    #[error("redirect without a target")]
    NoTarget,
    /// A redirect that gives up encryption.
    #[error("redirect from https to http at {0}")]
    Downgrade(Arc<str>),
    /// A redirect to an address that only this node's network reaches.
    #[error("redirect to the private address of {0}")]
    PrivateAddress(Arc<str>),
    /// The part of the blob is not the one that was asked for.
    #[error("wrong content range")]
    WrongRange,
    /// More bytes than stated.
    #[error("body is longer than stated")]
    TooLong,
    /// A list that is not the JSON it should be.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

/// Why the upstreams cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] super::config::ConfigError),
    /// A file with certificates cannot be read.
    #[error("upstreams.{upstream}.ca: cannot read {}", path.display())]
    ReadCa {
        /// Name of the upstream.
        upstream: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// A file has no usable certificate.
    #[error("upstreams.{upstream}.ca: no certificate in {}", path.display())]
    ParseCa {
        /// Name of the upstream.
        upstream: String,
        /// The file.
        path: PathBuf,
    },
    /// The HTTP client cannot be built.
    #[error("upstreams.{upstream}: cannot set up the HTTP client")]
    Client {
        /// Name of the upstream.
        upstream: String,
        /// Why.
        #[source]
        error: reqwest::Error,
    },
}
