//! Somebody whom a node has heard of, member or not, and how to get into touch.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Announcement, FORGET_AFTER, Presence, TELL_AGAIN};
use crate::node_id::NodeId;

/// How long the node with the greater id lets the other one dial first: two connections at once
/// would be one too many.
const POLITENESS: Duration = Duration::from_millis(300);

/// Pause after the first failed dial of a member, or of somebody who is expected; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest pause between dials of a member.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Pause between dials of somebody who is no member: bounds how long a split outlives its cause.
const STRANGER_PAUSE: Duration = Duration::from_secs(10);

/// What is remembered of a node.
#[derive(Clone, Debug)]
pub(super) struct Acquaintance {
    /// As last announced, or as told by others; may be empty.
    pub(super) addresses: Vec<SocketAddr>,
    /// Generation and sequence of what it last said.
    pub(super) last: Option<(u64, u64)>,
    /// The instance that said it.
    pub(super) instance: u64,
    /// When it was last found to be heard as another run than the newest, to be told of that.
    told: Option<Instant>,
    /// Whether it was known when this node last ran.
    pub(super) remembered: bool,
    /// Whether it said that it leaves.
    pub(super) left: bool,
    /// Whom it keeps out.
    pub(super) denies: Vec<NodeId>,
    /// When it was last heard or connected, or first heard of.
    pub(super) seen: Instant,
    /// Whether it was a member until it was silent for too long.
    dead: bool,
    /// When its last connection broke, until it is back.
    pub(super) lost: Option<Instant>,
    pub(super) link: Link,
    /// Dials that have failed since there was a connection.
    failures: u32,
}

/// The connection to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Connected,
    Dialling,
    /// There is none, and it is dialled again then.
    Idle {
        next: Instant,
    },
}

impl Acquaintance {
    /// Knows nothing but that there is such a node; `first` says who dials first.
    pub(super) fn new(first: bool, now: Instant) -> Self {
        Self {
            addresses: Vec::new(),
            last: None,
            instance: 0,
            told: None,
            remembered: false,
            left: false,
            denies: Vec::new(),
            seen: now,
            dead: false,
            lost: None,
            link: Link::soon(first, now),
            failures: 0,
        }
    }

    /// Notes what it said; returns whether it now keeps out others than before.
    pub(super) fn hear(&mut self, announcement: &Announcement, now: Instant) -> bool {
        self.last = Some((announcement.generation, announcement.sequence));
        self.instance = announcement.instance;
        self.left = announcement.presence == Presence::Leaving;
        self.dead = false;
        self.addresses.clone_from(&announcement.addresses);
        self.seen = now;
        let changed = self.denies != announcement.denied;
        self.denies.clone_from(&announcement.denied);
        changed
    }

    /// Whether these words, which are not news, come from another run than the newest that was
    /// heard, and it is time to tell them of that.
    pub(super) fn is_to_be_told(&mut self, announcement: &Announcement, now: Instant) -> bool {
        let lately = |told: Instant| now.saturating_duration_since(told) < TELL_AGAIN;
        let due = announcement.instance != self.instance && !self.told.is_some_and(lately);
        if due {
            self.told = Some(now);
        }
        due
    }

    pub(super) fn connect(&mut self) {
        self.link = Link::Connected;
        self.failures = 0;
        self.lost = None;
    }

    pub(super) fn disconnect(&mut self, first: bool, now: Instant) {
        // One that was buried has been given its time to be dialled already.
        if self.link == Link::Connected {
            self.link = Link::soon(first, now);
            self.lost = Some(now);
            self.seen = now;
        }
    }

    pub(super) fn dial_failed(&mut self, awaited: bool, now: Instant) {
        // Where the other one got through in the meantime, nothing has failed.
        if self.link == Link::Connected {
            return;
        }
        let pause = match awaited {
            true => (FIRST_PAUSE * (1 << self.failures.min(8))).min(LONGEST_PAUSE),
            false => STRANGER_PAUSE,
        };
        self.failures = self.failures.saturating_add(1);
        self.link = Link::Idle { next: now + pause };
    }

    /// It is no member any more; it will be tried now and then.
    pub(super) fn bury(&mut self, now: Instant) {
        self.lost = None;
        self.dead = true;
        let next = now + STRANGER_PAUSE;
        self.link = Link::Idle { next };
    }

    /// Whether what it says now shows that it went on while it was taken for dead.
    pub(super) fn is_cut_off(&self, announcement: &Announcement) -> bool {
        let same_run = |(generation, _)| generation == announcement.generation;
        self.dead && self.last.is_some_and(same_run)
    }

    /// Whether it is to be dialled.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let due = matches!(self.link, Link::Idle { next } if next <= now);
        due && !self.left
    }

    /// Whether it was heard, or tried in vain, or cannot be tried.
    pub(super) fn is_tried(&self) -> bool {
        self.last.is_some() || self.failures > 0 || self.addresses.is_empty()
    }

    /// Whether it has been away for so long that nobody expects it back.
    pub(super) fn is_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.seen) >= FORGET_AFTER
    }
}

impl Link {
    fn soon(first: bool, now: Instant) -> Self {
        let next = if first { now } else { now + POLITENESS };
        Self::Idle { next }
    }
}
