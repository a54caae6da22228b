//! What this room counts.
//!
//! Labels are closed: upstreams by their configured name, kinds and outcomes from enums.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// `HEAD` of a manifest.
    ManifestHead,
    /// `GET` of a manifest; the only kind that counts as a pull.
    Manifest,
    /// `GET` of a blob.
    Blob,
    /// `GET` of a blob's first byte.
    BlobProbe,
    /// A page of tags.
    Tags,
    /// A page of referrers.
    Referrers,
    /// A token.
    Token,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    /// With what was asked for, as far as the headers tell.
    Success,
    /// With 404.
    NotFound,
    /// With 401 or 403 in the end.
    Denied,
    /// With 429.
    RateLimited,
    /// Without an answer, or with 5xx.
    Unavailable,
    /// Not begun: this node lacked what a connection takes.
    Shortage,
    /// With an answer that cannot be used.
    BadAnswer,
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let name = match self {
            Self::ManifestHead => "manifest_head",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::BlobProbe => "blob_probe",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Token => "token",
        };
        name.encode(encoder)
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let name = match self {
            Self::Success => "success",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Shortage => "shortage",
            Self::BadAnswer => "bad_answer",
        };
        name.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    upstream: String,
    kind: Kind,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    upstream: String,
}

/// The metrics of all upstreams; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    received_bytes: Family<UpstreamLabels, Counter>,
    rate_limit_remaining: Family<UpstreamLabels, Gauge>,
    breaker_open: Family<UpstreamLabels, Gauge>,
}

impl Metrics {
    /// Adds the metrics to `registry`.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "millrace_upstream_requests",
            "Requests sent to upstreams, by what they asked for and how they ended",
            self.requests.clone(),
        );
        registry.register(
            "millrace_upstream_received_bytes",
            "Bytes of manifests, blobs and lists received from upstreams",
            self.received_bytes.clone(),
        );
        registry.register(
            "millrace_upstream_rate_limit_remaining",
            "Pulls that the upstream last said are left",
            self.rate_limit_remaining.clone(),
        );
        registry.register(
            "millrace_upstream_breaker_open",
            "1 while the upstream's primary URL is left alone after failures, else 0",
            self.breaker_open.clone(),
        );
    }

    /// Returns the metrics of one upstream.
    pub(super) fn of(&self, upstream: &str) -> UpstreamMetrics {
        let labels = UpstreamLabels {
            upstream: upstream.to_owned(),
        };
        UpstreamMetrics {
            upstream: upstream.to_owned(),
            requests: self.requests.clone(),
            received_bytes: self.received_bytes.get_or_create_owned(&labels),
            rate_limit_remaining: self.rate_limit_remaining.clone(),
            breaker_open: self.breaker_open.get_or_create_owned(&labels),
        }
    }
}

/// The metrics of one upstream; clones share them.
#[derive(Clone, Debug)]
pub(super) struct UpstreamMetrics {
    upstream: String,
    requests: Family<RequestLabels, Counter>,
    received_bytes: Counter,
    rate_limit_remaining: Family<UpstreamLabels, Gauge>,
    breaker_open: Gauge,
}

impl UpstreamMetrics {
    pub(super) fn count_request(&self, kind: Kind, outcome: Outcome) {
        let labels = RequestLabels {
            upstream: self.upstream.clone(),
            kind,
            outcome,
        };
        self.requests.get_or_create(&labels).inc();
    }

    pub(super) fn count_received(&self, bytes: usize) {
        self.received_bytes.inc_by(bytes as u64);
    }

    /// Only upstreams that state a limit have this metric.
    pub(super) fn set_remaining(&self, pulls: u64) {
        let labels = UpstreamLabels {
            upstream: self.upstream.clone(),
        };
        let pulls = i64::try_from(pulls).unwrap_or(i64::MAX);
        self.rate_limit_remaining.get_or_create(&labels).set(pulls);
    }

    pub(super) fn set_breaker_open(&self, open: bool) {
        self.breaker_open.set(i64::from(open));
    }
}
