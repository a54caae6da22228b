//! Settings of what is kept and for how long: `cache`.

use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

use crate::units;
use crate::upstream::{TagPolicy, TagRule};

/// Largest `negative_ttl`: longer would hide a tag that was just pushed (CLIENT-CONTRACT 9.10).
pub(super) const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(60);

/// Settings of the store's bounds and of how old an answer may be.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Bytes that content may take on disk; absent means half of what is free at the first start.
    /// Too small evicts what the next build needs; a larger blob is passed on without being kept.
    #[serde(with = "units::size")]
    pub max_size: Option<ByteSize>,
    /// Bytes that stay free on the disk; absent means 5 % of it. Too small starves its other users.
    #[serde(with = "units::size")]
    pub min_free: Option<ByteSize>,
    /// How long a client waits for the check of an aged tag before it gets the cached answer,
    /// default 1 s. Too short serves old tags often, too long makes a slow upstream felt.
    #[serde(with = "units::duration")]
    pub revalidate: Duration,
    /// Age after its lifetime up to which a tag is served while the upstream is slow, default 1 h.
    #[serde(with = "units::duration")]
    pub stale_slow: Duration,
    /// The same while the upstream is away or limits the rate, default 30 days.
    #[serde(with = "units::duration")]
    pub stale_away: Duration,
    /// Whether the same holds after the upstream's 401, 403 or 404, default false: what was made
    /// private or deleted would still be served.
    pub stale_denied: bool,
    /// How long an upstream's "not found" is believed, default 30 s, at most 60 s.
    #[serde(with = "units::duration")]
    pub negative_ttl: Duration,
    /// How long an upstream's word is believed that a repository may be read with this node's
    /// credentials, default 10 min. A refusal takes effect within this time; too short costs a
    /// request for each pull.
    #[serde(with = "units::duration")]
    pub access_ttl: Duration,
    /// How long it is believed while the upstream cannot be asked, default 3 days. Too short stops
    /// builds in an outage, too long serves what was made private.
    #[serde(with = "units::duration")]
    pub access_grace: Duration,
    /// How long tags stay fresh, first match wins; after the rules of the upstream.
    pub tags: Vec<TagRule>,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            max_size: None,
            min_free: None,
            revalidate: Duration::from_secs(1),
            stale_slow: Duration::from_secs(60 * 60),
            stale_away: Duration::from_secs(30 * 24 * 60 * 60),
            stale_denied: false,
            negative_ttl: Duration::from_secs(30),
            access_ttl: Duration::from_secs(10 * 60),
            access_grace: Duration::from_secs(3 * 24 * 60 * 60),
            tags: vec![TagRule {
                pattern: "*".to_owned(),
                policy: TagPolicy::Ttl,
                ttl: Some(Duration::from_secs(60)),
            }],
        }
    }
}
