//! What an operator sees of the exchange with peers: a copy at one moment.

use std::sync::atomic::Ordering;

use millrace_protocol::node_id::NodeId;
use serde::{Serialize, Serializer};

use super::link::Link;

/// The exchange with all peers.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Peers that were talked to, or that could not be, in order of ids.
    pub peers: Vec<PeerStatus>,
}

/// One peer at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    /// Its name.
    #[serde(serialize_with = "as_text")]
    pub id: NodeId,
    /// Whether there is a connection.
    pub connected: bool,
    /// Round-trip time of the connection, in milliseconds.
    pub round_trip_ms: Option<f64>,
    /// Bytes of content sent to it.
    pub sent_bytes: u64,
    /// Bytes of content received from it.
    pub received_bytes: u64,
    /// Set while it is passed over because it cannot be reached.
    pub unreachable: Option<Unreachable>,
}

/// Why and since when a peer is passed over.
#[derive(Clone, Debug, Serialize)]
pub struct Unreachable {
    /// How long already, in seconds.
    pub since_seconds: u64,
    /// What the last attempt to connect came to.
    pub reason: String,
}

fn as_text<S: Serializer>(id: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

impl PeerStatus {
    pub(super) fn of(link: &Link) -> Self {
        let round_trip = link.round_trip();
        Self {
            id: link.peer,
            connected: round_trip.is_some(),
            round_trip_ms: round_trip.map(|time| time.as_secs_f64() * 1e3),
            sent_bytes: link.sent_bytes.load(Ordering::Relaxed),
            received_bytes: link.received_bytes.load(Ordering::Relaxed),
            unreachable: link.outage().map(|outage| Unreachable {
                since_seconds: outage.since.elapsed().as_secs(),
                reason: outage.why.to_string(),
            }),
        }
    }
}
