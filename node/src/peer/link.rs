//! The connections with one peer, and what is known of its reachability.
//!
//! Each node dials when it has a question and no connection. Two nodes that dial each other at
//! the same time keep both connections: either serves both directions, closing one would cut what
//! is under way on it, and a pair never has more than one in each direction. A newer one in the
//! same direction means that its dialler has lost the older, which is closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace_protocol::node_id::NodeId;
use parking_lot::Mutex;
use quinn::{Connection, Endpoint, VarInt};
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::Instant;

use super::error::DialError;
use crate::cluster::Member;

/// Who has dialled a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialler {
    /// This node.
    Here,
    /// The peer.
    There,
}

/// Why a connection is closed, as SPEC.md "Codes" has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    /// The node stops.
    Stopping = 0,
    /// A newer connection takes its place.
    Replaced = 1,
    /// The peer is no longer a member.
    Removed = 2,
    /// The peer is suspect and does not answer.
    Silent = 3,
}

impl Close {
    /// Closes one connection.
    pub(super) fn apply(self, connection: &Connection) {
        connection.close(self.code(), self.reason());
    }

    /// Closes all connections.
    pub(super) fn apply_to(self, endpoint: &Endpoint) {
        endpoint.close(self.code(), self.reason());
    }

    fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// For people who look at the peer's log.
    fn reason(self) -> &'static [u8] {
        match self {
            Self::Stopping => b"stopping",
            Self::Replaced => b"replaced",
            Self::Removed => b"removed",
            Self::Silent => b"silent",
        }
    }
}

/// A peer that this node has talked to, or has tried to.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: NodeId,
    state: Mutex<State>,
    /// Held by the one attempt to connect that is under way.
    pub(super) dialling: Arc<AsyncMutex<()>>,
    /// Told when the outage may be over: the member has changed, or has connected by itself.
    pub(super) news: Notify,
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// At most one for each dialler, the newest last.
    connections: Vec<(Dialler, Connection)>,
    outage: Option<Outage>,
}

/// Why and since when a peer cannot be reached.
#[derive(Clone, Debug)]
pub(super) struct Outage {
    pub(super) since: Instant,
    pub(super) why: DialError,
    /// The member's entry when it was dialled; another may be reachable.
    entry: (u64, Vec<SocketAddr>),
}

impl Link {
    pub(super) fn new(peer: NodeId) -> Self {
        Self {
            peer,
            state: Mutex::default(),
            dialling: Arc::default(),
            news: Notify::new(),
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
        }
    }

    /// Returns the connection to ask on: the newest that lives.
    pub(super) fn connection(&self) -> Option<Connection> {
        let state = self.state.lock();
        let mut living = state.connections.iter().rev().map(|(_, c)| c);
        living.find(|c| c.close_reason().is_none()).cloned()
    }

    /// Takes a new connection, which ends any outage, and closes the one that it replaces.
    pub(super) fn add(&self, dialler: Dialler, connection: Connection) {
        let mut state = self.state.lock();
        state.outage = None;
        let older = state.connections.iter().position(|(d, _)| *d == dialler);
        if let Some(older) = older {
            Close::Replaced.apply(&state.connections.remove(older).1);
        }
        state.connections.push((dialler, connection));
        drop(state);
        self.news.notify_waiters();
    }

    /// Forgets a connection that has ended.
    pub(super) fn remove(&self, connection: &Connection) {
        let mut state = self.state.lock();
        let ended = connection.stable_id();
        state.connections.retain(|(_, c)| c.stable_id() != ended);
    }

    /// Closes all connections.
    pub(super) fn close(&self, why: Close) {
        let connections = std::mem::take(&mut self.state.lock().connections);
        for (_, connection) in connections {
            why.apply(&connection);
        }
        self.news.notify_waiters();
    }

    /// Gives each connection its share of the windows.
    pub(super) fn set_windows(&self, bytes: u64) {
        let receive = VarInt::try_from(bytes).unwrap_or(VarInt::MAX);
        for (_, connection) in &self.state.lock().connections {
            connection.set_receive_window(receive);
            connection.set_send_window(bytes);
        }
    }

    /// Returns how many connections there are.
    pub(super) fn count(&self) -> usize {
        self.state.lock().connections.len()
    }

    /// Returns the outage, if the peer is not to be asked.
    pub(super) fn outage(&self) -> Option<Outage> {
        self.state.lock().outage.clone()
    }

    /// Notes that the peer cannot be reached; keeps the beginning of an outage that goes on.
    ///
    /// Returns whether it begins now.
    pub(super) fn fail(&self, why: DialError, member: &Member) -> bool {
        let mut state = self.state.lock();
        let since = state.outage.as_ref().map(|outage| outage.since);
        state.outage = Some(Outage {
            since: since.unwrap_or_else(Instant::now),
            why,
            entry: entry(member),
        });
        since.is_none()
    }

    /// Whether the member's entry is another than the one that could not be reached.
    pub(super) fn outage_is_stale(&self, member: &Member) -> bool {
        let state = self.state.lock();
        let outage = state.outage.as_ref();
        outage.is_some_and(|outage| outage.entry != entry(member))
    }

    pub(super) fn count_sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.connection().map(|connection| connection.rtt())
    }
}

fn entry(member: &Member) -> (u64, Vec<SocketAddr>) {
    (member.generation, member.addresses.clone())
}
