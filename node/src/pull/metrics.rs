//! What the pull room counts.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counters of the pull room.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    pub(super) pulls: Family<Pull, Counter>,
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
