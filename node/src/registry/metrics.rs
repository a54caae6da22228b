//! What the clients' door counts.
//!
//! Labels come from closed sets: never a repository, a digest or a client.

use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::pull::Source;

/// Bounds of the times to the first byte, in seconds.
///
/// Under 1 ms: from memory or the page cache. 5 to 25 ms: from a disk or a peer. 0.1 to 1 s: from
/// an upstream, up to a token and a redirect. 5 s is the target for a miss, 10 s is where people
/// complain, and at 20 s the pull room gives up (CLIENT-CONTRACT B5).
const FIRST_BYTE_SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 20.0,
];

/// The metrics of this room; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    sent_bytes: Family<SourceLabel, Counter>,
    first_byte: Family<EndpointLabel, Histogram, fn() -> Histogram>,
    pub(super) open_connections: Gauge,
    logins: Family<OutcomeLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    method: &'static str,
    status_class: &'static str,
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabel {
    endpoint: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            sent_bytes: Family::default(),
            first_byte: Family::new_with_constructor(|| Histogram::new(FIRST_BYTE_SECONDS)),
            open_connections: Gauge::default(),
            logins: Family::default(),
        }
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "millrace_registry_requests",
            "Requests of clients, by endpoint, method, class of the status and source",
            self.requests.clone(),
        );
        registry.register(
            "millrace_registry_sent_bytes",
            "Bytes of bodies handed to client connections, by source",
            self.sent_bytes.clone(),
        );
        registry.register(
            "millrace_registry_first_byte_seconds",
            "Time from a request to the head of its answer, by endpoint",
            self.first_byte.clone(),
        );
        registry.register(
            "millrace_registry_open_connections",
            "Connections of clients",
            self.open_connections.clone(),
        );
        registry.register(
            "millrace_registry_logins",
            "Requests where a password is needed, by what became of it",
            self.logins.clone(),
        );
    }

    /// Counts an answer whose head is ready `after` its request.
    pub(super) fn count(&self, answered: &Answered<'_>, after: Duration) {
        let endpoint = answered.endpoint;
        let labels = RequestLabels {
            endpoint,
            method: method_label(answered.method),
            status_class: class_label(answered.status),
            source: source_label(answered.source),
        };
        self.requests.get_or_create(&labels).inc();
        self.first_byte
            .get_or_create(&EndpointLabel { endpoint })
            .observe(after.as_secs_f64());
    }

    /// Counts a request where a password is needed.
    pub(super) fn count_login(&self, outcome: &'static str) {
        self.logins.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Returns the counter of bytes that come from `source`.
    pub(super) fn sent_bytes(&self, source: Option<Source>) -> Counter {
        let source = source_label(source);
        self.sent_bytes
            .get_or_create(&SourceLabel { source })
            .clone()
    }
}

/// What is counted of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered<'a> {
    pub(super) endpoint: &'static str,
    pub(super) method: &'a Method,
    pub(super) status: StatusCode,
    pub(super) source: Option<Source>,
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        _ => "other",
    }
}

fn class_label(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

fn source_label(source: Option<Source>) -> &'static str {
    source.map_or("none", Source::as_str)
}
