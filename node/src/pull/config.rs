//! How long answers may be used, and how long a client waits.

use std::collections::HashMap;
use std::time::Duration;

use crate::upstream::{AccessRule, TagRule};

use super::deadline::HEADER_BUDGET;

/// Settings of the pull room.
#[derive(Clone, Debug)]
pub struct Config {
    /// Tag rules of each upstream by its name, first match wins.
    pub upstream_tags: HashMap<String, Vec<TagRule>>,
    /// Tag rules behind the upstream's own.
    pub tags: Vec<TagRule>,
    /// Lifetime of a `ttl` rule that states none.
    pub default_ttl: Duration,
    /// How long a client's request waits for other nodes and upstreams, all its steps together; its
    /// answer comes at most a fifth later. Longer, clients have given up by then. Default 20 s.
    pub header_budget: Duration,
    /// How long a request waits for the check of a stale `ttl` tag before the known answer goes
    /// out and the check goes on behind it.
    pub revalidate: Duration,
    /// Age up to which a known answer may go out because the check is slow.
    pub stale_slow: Duration,
    /// Age up to which a known answer may go out because the upstream is away or limits the rate.
    pub stale_away: Duration,
    /// Whether a known answer may go out although the upstream now answers 401, 403 or 404.
    pub stale_denied: bool,
    /// Access rules of each upstream by its name, first match wins.
    pub access: HashMap<String, Vec<AccessRule>>,
    /// Whether some upstream is asked with credentials.
    pub has_credentials: bool,
    /// How long the upstream's word is believed that a repository may be read with this node's
    /// credentials; its refusal takes effect within this time.
    pub access_ttl: Duration,
    /// How long it is believed beyond while the upstream cannot be asked.
    pub access_grace: Duration,
    /// How long a refusal is remembered; at most [`Config::MAX_NEGATIVE_TTL`].
    pub negative_ttl: Duration,
    /// How long a member of the same zone has to say what it holds, and any other at least; four times
    /// as long before that where a connection has to be made.
    /// Shorter, a busy member's copy is overlooked and fetched again; longer, a member that hangs
    /// and is not suspect yet delays each miss.
    pub holds_patience: Duration,
    /// How long a node that was asked for content may bring nothing although it lives, for each that
    /// it may wait for in turn: once for a holder, twice for a home, three times for an owner.
    /// Longer than an upstream may take to open a blob (20 s), or a home that waits for it is left;
    /// and not much longer, because clients have been refused by then. Default 30 s.
    pub hop_patience: Duration,
    /// How long a source of chunks that is alive may bring none and not say either that it has none yet:
    /// longer than it waits itself before it says so (8 s). Default 10 s.
    pub source_patience: Duration,
    /// Owners of a zone that keep a copy of what one of them pulls. Default 1: the first alone.
    pub replicas: usize,
}

impl Config {
    /// Lifetime of tags without any rule.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(60);

    /// Longest time that a refusal may be remembered: what was just pushed must be found soon.
    pub const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(60);
}

impl Default for Config {
    fn default() -> Self {
        Self {
            upstream_tags: HashMap::new(),
            tags: Vec::new(),
            default_ttl: Self::DEFAULT_TTL,
            header_budget: HEADER_BUDGET,
            revalidate: Duration::from_secs(1),
            stale_slow: Duration::from_secs(3_600),
            stale_away: Duration::from_secs(30 * 24 * 3_600),
            stale_denied: false,
            access: HashMap::new(),
            has_credentials: false,
            access_ttl: Duration::from_secs(600),
            access_grace: Duration::from_secs(3 * 24 * 3_600),
            negative_ttl: Duration::from_secs(30),
            holds_patience: Duration::from_millis(250),
            hop_patience: Duration::from_secs(30),
            source_patience: Duration::from_secs(10),
            replicas: 1,
        }
    }
}
