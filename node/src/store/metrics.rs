//! What the store counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counters of the store.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    pub(super) committed_blobs: Counter,
    pub(super) committed_bytes: Counter,
    pub(super) evicted_blobs: Counter,
    pub(super) evicted_elsewhere: Counter,
    pub(super) evicted_last_copies: Counter,
    pub(super) evicted_parts: Counter,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let counters = [
            (
                "committed_blobs",
                "Blobs and manifests stored",
                &self.committed_blobs,
            ),
            (
                "committed_bytes",
                "Bytes of blobs and manifests stored",
                &self.committed_bytes,
            ),
            (
                "evicted_blobs",
                "Blobs removed to make room",
                &self.evicted_blobs,
            ),
            (
                "evicted_elsewhere",
                "Of these, those that another node was known to have",
                &self.evicted_elsewhere,
            ),
            (
                "evicted_last_copies",
                "Of these, those that no other node was known to have",
                &self.evicted_last_copies,
            ),
            (
                "evicted_parts",
                "Suspended parts removed to make room",
                &self.evicted_parts,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(format!("millrace_store_{name}"), help, counter.clone());
        }
    }
}
