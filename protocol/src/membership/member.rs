//! A member as others see it, and what becomes of words in its name.

use std::time::{Duration, Instant};

use super::{Announcement, InvalidAnnouncement};

/// Somebody who belongs to the cluster.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it last said of itself.
    pub announcement: Announcement,
    /// Whether it may be asked.
    pub standing: Standing,
    /// When it was last heard.
    pub(super) heard: Instant,
}

impl Member {
    /// Returns how long ago it was heard.
    pub fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }
}

/// Whether a member may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Alive,
    /// It may not, for this reason and since then.
    Suspect(Suspicion, Instant),
}

/// Why a member is suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing was heard of it.
    Silent,
    /// Its connection broke and did not come back.
    Unreachable,
}

/// What became of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is news.
    Fresh,
    /// Something newer is known, or it is an echo of this node's own words.
    Stale,
    /// So it is, but of another run of that node than this: if there is a connection, that node is
    /// to be greeted again, so that it hears of the newer run.
    Former,
    /// It comes from somebody who is kept out.
    Denied,
    /// No healthy node says such a thing.
    Invalid(InvalidAnnouncement),
    /// Too many nodes are known already.
    Full,
}

/// What a node learns from how others know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// They know this process, an older one, or none.
    Fine,
    /// They know a later process: this one has taken a generation above it, which is to be kept.
    /// It may be a former life whose count was lost, or another node with the same identity: only
    /// meeting that one is a proof.
    Raised(u64),
    /// They claim a start that cannot have been.
    Implausible,
}
