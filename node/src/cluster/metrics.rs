//! What the cluster counts.

use millrace_protocol::membership::Heard;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of this room; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    members: Family<StandingLabel, Gauge>,
    pub(super) connections: Gauge,
    pub(super) views: Counter,
    announcements: Family<OutcomeLabel, Counter>,
    nonsense: Family<MessageLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
}

/// Why somebody was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Refused {
    Secret,
    Denied,
    Identity,
    /// Its admission was not over in time.
    Timeout,
    /// It has gone before it was let in.
    Broken,
    /// What it said is not how an admission begins.
    Nonsense,
    /// There are too many connections.
    Crowded,
}

impl EncodeLabelValue for Refused {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        let name = match self {
            Self::Secret => "secret",
            Self::Denied => "denied",
            Self::Identity => "identity",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Nonsense => "nonsense",
            Self::Crowded => "crowded",
        };
        name.encode(encoder)
    }
}

/// What a member said that nobody can have meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Message {
    Announcement,
    Greeting,
    Budgets,
}

impl EncodeLabelValue for Message {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        let name = match self {
            Self::Announcement => "announcement",
            Self::Greeting => "greeting",
            Self::Budgets => "budgets",
        };
        name.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MessageLabel {
    message: Message,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StandingLabel {
    standing: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

impl Metrics {
    /// Notes how many members are alive, this node among them, and how many are suspect.
    pub(super) fn members(&self, alive: usize, suspect: usize) {
        for (standing, count) in [("alive", alive), ("suspect", suspect)] {
            let label = StandingLabel { standing };
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.members.get_or_create(&label).set(count);
        }
    }

    /// Counts what became of an announcement.
    pub(super) fn heard(&self, heard: Heard) {
        let outcome = match heard {
            Heard::Fresh => "fresh",
            Heard::Stale | Heard::Former => "stale",
            Heard::Denied => "denied",
            Heard::Invalid(_) => "invalid",
            Heard::Full => "full",
        };
        self.announcements
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
    }

    /// Counts something that a member said and nobody can have meant.
    pub(super) fn nonsense(&self, message: Message) {
        self.nonsense.get_or_create(&MessageLabel { message }).inc();
    }

    /// Counts somebody who was not let in.
    pub(super) fn refused(&self, reason: Refused) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "millrace_cluster_members",
            "Members of the cluster as this node sees it, itself among them",
            self.members.clone(),
        );
        registry.register(
            "millrace_cluster_connections",
            "Nodes that this node is connected to",
            self.connections.clone(),
        );
        registry.register(
            "millrace_cluster_views",
            "Times that the members, or what matters of them, have changed",
            self.views.clone(),
        );
        registry.register(
            "millrace_cluster_announcements",
            "Announcements of other nodes that arrived",
            self.announcements.clone(),
        );
        registry.register(
            "millrace_cluster_nonsense",
            "Messages of members that were too large, unreadable or not to be believed",
            self.nonsense.clone(),
        );
        registry.register(
            "millrace_cluster_refused",
            "Connections of others that were not let in",
            self.refused.clone(),
        );
    }
}
