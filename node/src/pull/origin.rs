//! Where content may come from, and where it came from in the end.

use std::fmt;

use millrace_protocol::oci::RepositoryName;

use crate::store::Provenance;
use crate::upstream::Upstream;

/// A repository of an upstream: what a client named, and what is asked when nothing is here.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The configured upstream.
    pub upstream: Upstream,
    /// The canonical name within it.
    pub repository: RepositoryName,
}

impl Origin {
    /// Returns what content fetched from here is recorded as.
    pub fn provenance(&self) -> Provenance {
        Provenance {
            upstream: self.upstream.name().to_owned(),
            repository: self.repository.clone(),
            credential: self.upstream.credential().to_string(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream.name(), self.repository)
    }
}

/// Where the bytes of an answer come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// This node's store.
    Local,
    /// Another node.
    Peer,
    /// The origin registry.
    Upstream,
}

impl Source {
    /// Returns the word used in headers, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Peer => "peer",
            Self::Upstream => "upstream",
        }
    }
}
