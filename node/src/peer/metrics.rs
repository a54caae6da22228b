//! What this room counts.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What is asked between peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Open,
    Read,
    Manifest,
    Resolve,
    Recall,
    Holds,
    Follow,
    Vouch,
}

/// Why something that came in was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reject {
    /// A node that is no member.
    Stranger,
    /// Bytes that are no question.
    Malformed,
    /// Another version of the protocol.
    Version,
    /// A question that did not come in time.
    Late,
    /// A peer that takes in nothing.
    Stalled,
    /// A chunk request without a free upload slot.
    Busy,
    /// A connection while too many others were being made.
    Crowded,
    /// A question on which this node's own work does not get on.
    Stuck,
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let name = match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Manifest => "manifest",
            Self::Resolve => "resolve",
            Self::Recall => "recall",
            Self::Holds => "holds",
            Self::Follow => "follow",
            Self::Vouch => "vouch",
        };
        name.encode(encoder)
    }
}

impl EncodeLabelValue for Reject {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let name = match self {
            Self::Stranger => "stranger",
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::Late => "late",
            Self::Stalled => "stalled",
            Self::Busy => "busy",
            Self::Crowded => "crowded",
            Self::Stuck => "stuck",
        };
        name.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectLabels {
    reason: Reject,
}

/// The metrics of this room; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    asked: Family<KindLabels, Counter>,
    answered: Family<KindLabels, Counter>,
    rejects: Family<RejectLabels, Counter>,
    pub(super) sent_bytes: Counter,
    pub(super) received_bytes: Counter,
    pub(super) failed_dials: Counter,
    pub(super) connections: Gauge,
}

impl Metrics {
    pub(super) fn asked(&self, kind: Kind) {
        self.asked.get_or_create_owned(&KindLabels { kind }).inc();
    }

    pub(super) fn answering(&self, kind: Kind) {
        self.answered
            .get_or_create_owned(&KindLabels { kind })
            .inc();
    }

    pub(super) fn rejected(&self, reason: Reject) {
        self.rejects
            .get_or_create_owned(&RejectLabels { reason })
            .inc();
    }

    /// Adds the metrics to `registry`.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "millrace_peer_questions_sent",
            "Questions asked of peers, by kind",
            self.asked.clone(),
        );
        registry.register(
            "millrace_peer_questions_received",
            "Questions that peers asked, by kind",
            self.answered.clone(),
        );
        registry.register(
            "millrace_peer_rejects",
            "Connections, questions and streams of others that were turned away, by reason",
            self.rejects.clone(),
        );
        registry.register(
            "millrace_peer_sent_bytes",
            "Bytes of chunks and manifests sent to peers",
            self.sent_bytes.clone(),
        );
        registry.register(
            "millrace_peer_received_bytes",
            "Bytes of chunks and manifests received from peers",
            self.received_bytes.clone(),
        );
        registry.register(
            "millrace_peer_failed_dials",
            "Attempts to connect to a peer that failed",
            self.failed_dials.clone(),
        );
        registry.register(
            "millrace_peer_connections",
            "Connections with peers",
            self.connections.clone(),
        );
    }
}
