//! What the pull room counts.

use millrace_protocol::wire::message::Role;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::peer::{ChunkEvent, PeerError};

use super::neighbours::Neighbours;

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
    left_alone: Family<LeftAlone, Counter>,
    retries: Family<Retried, Counter>,
    searches: Family<Searched, Counter>,
}

/// How it became known who holds something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Answered {
    /// A member had told that it holds it.
    Told,
    /// All had told what they hold, and nobody has it.
    Known,
    /// Members had to be asked.
    Asked,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Searched {
    /// `told`, `known` or `asked`.
    answer: &'static str,
}

/// A node that was asked and could not help.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PassedOver {
    /// `owner`, `home` or `holder`.
    role: &'static str,
    /// `refused`, `silent`, `stuck`, `unreachable` or `broken`.
    reason: &'static str,
}

/// A read of chunks that brought less than was asked for, so that it is put again, perhaps to another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Retried {
    /// `not_yet`, `busy`, `absent` or `failed`.
    reason: &'static str,
}

/// A node that was found out, and is not asked for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeftAlone {
    reason: FoundOut,
}

/// What a node was found out by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum FoundOut {
    /// It lives, and keeps others waiting for what it owes them, or breaks off its answers.
    #[expect(non_camel_case_types, reason = "it is the label's value")]
    stalled,
    /// It stated wrong content, or contradicted itself.
    #[expect(non_camel_case_types, reason = "it is the label's value")]
    wrong,
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
        registry.register(
            "millrace_pull_peers_left_alone",
            "How often another node was found to stall or to be wrong, so that it is not asked for a while",
            self.left_alone.clone(),
        );
        registry.register(
            "millrace_pull_peer_retries",
            "Reads of chunks from other nodes that ended early and were put again, by what ended them",
            self.retries.clone(),
        );
        registry.register(
            "millrace_pull_holder_searches",
            "Searches for members that hold some content: told, known that nobody does, or asked",
            self.searches.clone(),
        );
    }

    pub(super) fn count_left_alone(&self, reason: FoundOut) {
        self.left_alone.get_or_create(&LeftAlone { reason }).inc();
    }

    pub(super) fn count_retry(&self, ended: &Result<ChunkEvent, PeerError>) {
        let reason = match ended {
            Ok(ChunkEvent::NotYet) => "not_yet",
            Ok(ChunkEvent::Busy { .. }) => "busy",
            Ok(ChunkEvent::Absent) => "absent",
            Ok(ChunkEvent::Chunk { .. } | ChunkEvent::Done) => return,
            Ok(ChunkEvent::Far { .. }) | Err(_) => "failed",
        };
        self.retries.get_or_create(&Retried { reason }).inc();
    }

    pub(super) fn count_search(&self, answered: Answered) {
        let answer = match answered {
            Answered::Told => "told",
            Answered::Known => "known",
            Answered::Asked => "asked",
        };
        self.searches.get_or_create(&Searched { answer }).inc();
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
            PeerError::Stuck { .. } => "stuck",
            PeerError::Crowded { .. } => "crowded",
            PeerError::NoMember { .. } | PeerError::Unreachable { .. } => "unreachable",
            _ => "broken",
        };
        self.passed_over
            .get_or_create(&PassedOver { role, reason })
            .inc();
    }
}

/// Reads what the others have told, and what is taken from them, when metrics are collected.
#[derive(Debug)]
pub(super) struct HoldingsGauges(pub(super) Neighbours);

impl Collector for HoldingsGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.0.status();
        let gauges = [
            (
                "in_sync_members",
                "Members that have told all they hold, so that they are not asked",
                status.in_sync,
            ),
            (
                "told_contents",
                "Blobs and manifests that other members have told they hold",
                status.contents,
            ),
            (
                "chunks_in_memory",
                "Chunks from other nodes that arrive, wait or are written, and those kept for takes",
                self.0.memory.taken(),
            ),
            (
                "takes_waiting",
                "Blobs whose chunks are not received from other nodes yet for want of memory",
                self.0.memory.waiting(),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let name = format!("millrace_pull_{name}");
            let encoder = encoder.encode_descriptor(&name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
        Ok(())
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
