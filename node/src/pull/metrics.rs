//! What the pull room counts.

use millrace_protocol::wire::message::Role;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::peer::PeerError;

/// Counters of the pull room.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    pub(super) pulls: Family<Pull, Counter>,
}

/// Counters of what comes from other nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct HopMetrics {
    pub(super) received_bytes: Counter,
    pub(super) wrong_chunks: Counter,
    passed_over: Family<PassedOver, Counter>,
}

/// A node that was asked and could not help.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PassedOver {
    /// `owner`, `home` or `holder`.
    role: &'static str,
    /// `refused`, `silent`, `unreachable` or `broken`.
    reason: &'static str,
}

impl HopMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "millrace_pull_peer_received_bytes",
            "Bytes of blobs that came from other nodes and were right",
            self.received_bytes.clone(),
        );
        registry.register(
            "millrace_pull_wrong_chunks",
            "Chunks from other nodes that were wrong and dropped",
            self.wrong_chunks.clone(),
        );
        registry.register(
            "millrace_pull_hops_passed_over",
            "Nodes that were asked for content and could not help, by their role and why",
            self.passed_over.clone(),
        );
    }

    pub(super) fn count_passed_over(&self, role: Role, error: &PeerError) {
        let role = match role {
            Role::Holder => "holder",
            Role::Owner => "owner",
            Role::Home => "home",
        };
        let reason = match error {
            PeerError::Refused { .. } => "refused",
            PeerError::Silent { .. } => "silent",
            PeerError::NoMember { .. } | PeerError::Unreachable { .. } => "unreachable",
            _ => "broken",
        };
        self.passed_over
            .get_or_create(&PassedOver { role, reason })
            .inc();
    }
}

/// What was pulled, and how that went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Pull {
    pub(super) kind: Kind,
    /// `local`, `peer`, `upstream` or `none`.
    pub(super) source: &'static str,
}

/// What is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Kind {
    #[expect(non_camel_case_types, reason = "it is the label's value")]
    blob,
    #[expect(non_camel_case_types, reason = "it is the label's value")]
    manifest,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "millrace_pull_requests",
            "Blobs and manifests asked for by clients, by where they came from",
            self.pulls.clone(),
        );
    }

    pub(super) fn count(&self, kind: Kind, source: Option<super::Source>) {
        let source = source.map_or("none", super::Source::as_str);
        self.pulls.get_or_create(&Pull { kind, source }).inc();
    }
}
