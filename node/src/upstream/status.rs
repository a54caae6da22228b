//! What an operator sees of an upstream.
//!
//! A copy at one moment. URLs come without credentials, which the configuration refuses in them,
//! and errors without queries.

use std::time::SystemTime;

use millrace_protocol::node_id::NodeId;
use serde::Serialize;
use tokio::time::Instant;
use url::Url;

use super::Inner;
use super::breaker::BreakerState;
use super::budget::Allowance;
use super::credential::CredentialId;
use super::endpoint::Endpoint;
use super::error::Limit;

/// One upstream at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Canonical name.
    pub name: String,
    /// Which credentials are used, without telling them.
    pub credential: CredentialId,
    /// Whether it counts as away: all breakers are open or the last attempt failed.
    pub away: bool,
    /// Requests under way, bodies included, without downloads that have made room for others.
    pub in_flight: usize,
    /// Most requests that may be under way.
    pub max_requests: usize,
    /// Downloads that last and have made room for others.
    pub lasting_downloads: usize,
    /// The primary URL and the fallbacks, in order.
    pub endpoints: Vec<EndpointStatus>,
    /// The last failure, also when it is over.
    pub last_error: Option<LastError>,
}

/// One endpoint at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointStatus {
    /// Base URL.
    pub url: Url,
    /// Whether it is asked.
    pub breaker: BreakerState,
    /// What it last said about its rate limit.
    pub allowance: Option<Allowance>,
    /// The other node that it said so to, where the two share a budget.
    #[serde(serialize_with = "node_id")]
    pub allowance_told: Option<NodeId>,
    /// The limit in force after a 429.
    pub limited: Option<LimitStatus>,
}

/// A limit in force.
#[derive(Clone, Debug, Serialize)]
pub struct LimitStatus {
    /// Which requests are not sent.
    pub limit: Limit,
    /// When they are sent again.
    pub seconds_left: u64,
    /// The other node that was refused, where the two share a budget.
    #[serde(serialize_with = "node_id")]
    pub told: Option<NodeId>,
}

/// A failure and its time.
#[derive(Clone, Debug, Serialize)]
pub struct LastError {
    /// When it happened, as RFC 3339.
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    /// What happened.
    pub message: String,
}

#[expect(clippy::ref_option, reason = "serde passes fields by reference")]
fn node_id<S: serde::Serializer>(id: &Option<NodeId>, serializer: S) -> Result<S::Ok, S::Error> {
    id.map(|id| id.to_string()).serialize(serializer)
}

fn rfc3339<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*at))
}

impl Inner {
    pub(super) fn status(&self) -> Status {
        Status {
            name: self.name.as_ref().to_owned(),
            credential: self.credential.clone(),
            away: self.is_away(),
            in_flight: self.turns.requests(),
            max_requests: self.turns.max_requests(),
            lasting_downloads: self.turns.lasting(),
            endpoints: self.endpoints.iter().map(endpoint_status).collect(),
            last_error: self.last_error.lock().clone(),
        }
    }
}

fn endpoint_status(endpoint: &Endpoint) -> EndpointStatus {
    let (allowance, pause) = endpoint.budget();
    let (allowance, allowance_told) = allowance.unzip();
    let limited = pause.map(|(pause, told)| LimitStatus {
        told,
        limit: pause.limit,
        seconds_left: pause
            .until
            .saturating_duration_since(Instant::now())
            .as_secs(),
    });
    EndpointStatus {
        url: endpoint.url().clone(),
        breaker: endpoint.breaker_state(),
        allowance,
        allowance_told: allowance_told.flatten(),
        limited,
    }
}
