//! Settings of the clients' door.

use std::time::Duration;

use serde::Deserialize;

/// What the room needs to know; the addresses are bound by whoever calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long running answers may take to finish once the node stops, default 30 s. Too short
    /// cuts pulls off, too long delays a restart.
    pub drain_timeout: Duration,
    /// What a blob that cannot be had right now is answered with.
    pub unavailable_blob: UnavailableBlob,
    /// Most connections at a time, default 10,000; those beyond wait to be accepted. A connection
    /// costs about 20 KiB while it is idle and two read buffers while it streams.
    pub max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(30),
            unavailable_blob: UnavailableBlob::default(),
            max_connections: 10_000,
        }
    }
}

/// Status for a blob that no source can give right now (CLIENT-CONTRACT F4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum UnavailableBlob {
    /// 404 to dockerd, which then asks the upstream at once; 503 to everyone else.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// Always 404: clients with another source go there, clients without one fail.
    #[serde(rename = "404")]
    NotFound,
    /// Always 503: clients try again, dockerd for more than a minute.
    #[serde(rename = "503")]
    Unavailable,
}

impl UnavailableBlob {
    /// Returns the word of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::NotFound => "404",
            Self::Unavailable => "503",
        }
    }
}
