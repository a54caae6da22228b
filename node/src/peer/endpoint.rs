//! The UDP socket and the settings of QUIC on it.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustix::net::sockopt;

use super::config::Config;
use super::error::BindError;
use super::tls::{self, Gate};
use crate::cluster::Identity;

/// What the system is asked to buffer in each direction. A sender's burst is 64 KiB; the rest
/// bridges the time until this process gets a processor.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Less than this loses packets on a fast link.
const SMALL_BUFFER_BYTES: usize = 1024 * 1024;

/// Largest packet that is tried. quinn gives the system ten at once, and more than 65,507 bytes
/// at once are dropped without a word.
const MAX_PACKET_BYTES: u16 = 6500;

/// Streams that one peer may have open: two for each of the 512 blobs that a node may take at a time,
/// all of them from one peer if that is the home of all, and what else is asked meanwhile. Each costs
/// quinn some 60 bytes before it is used, 22 MiB for two connections with each of 149 peers. What
/// comes on them shares the connection's window, and few of their questions are read at a time.
pub(super) const MAX_STREAMS: u32 = 1280;

/// Bytes under way on one stream: 16 MiB in 100 ms are 1.3 Gbit/s.
const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Window of a connection until its share of the budget is known.
const FIRST_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// What may be under way in each direction over all connections together.
const WINDOW_BUDGET_BYTES: u64 = 256 * 1024 * 1024;

/// Bounds of one connection's share of the budget. The lower one is the budget over 256 peers;
/// a cluster has at most 150.
const SHARE_BYTES: (u64, u64) = (1024 * 1024, 32 * 1024 * 1024);

/// A connection without any packet for so long is lost.
const IDLE: Duration = Duration::from_secs(5);

/// What a round trip is taken for before one was measured. A first packet that was lost is sent again after
/// three times as long; with quinn's 333 ms that is when a dial is given up.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(100);

/// Keeps the connection, and the way through a firewall, while nothing is asked.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Handshakes that wait to be looked at; more are refused.
const MAX_INCOMING: usize = 256;

/// Bytes that are kept of each of them before it is looked at.
const INCOMING_BUFFER_BYTES: u64 = 16 * 1024;

/// Opens the socket and the endpoint on it; both directions use it.
///
/// # Errors
/// [`BindError`].
pub(super) fn bind(
    config: &Config,
    identity: &Identity,
    gate: &Arc<Gate>,
) -> Result<Endpoint, BindError> {
    let address = config.listen;
    let error = |source| BindError::Socket { address, source };
    let socket = UdpSocket::bind(address).map_err(error)?;
    enlarge_buffers(&socket);
    let runtime = quinn::default_runtime().ok_or_else(|| error(no_runtime()))?;
    let mut endpoint = EndpointConfig::new(Arc::new(tls::reset_key(identity)));
    endpoint
        .max_udp_payload_size(MAX_PACKET_BYTES)
        .expect("at least 1200");
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(gate.server()?));
    server
        .transport_config(transport())
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFER_BYTES * MAX_INCOMING as u64);
    Endpoint::new(endpoint, Some(server), socket, runtime).map_err(error)
}

fn no_runtime() -> std::io::Error {
    std::io::Error::other("no async runtime")
}

/// Returns the settings of each connection, whoever dialled.
pub(super) fn transport() -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_PACKET_BYTES);
    let idle = IdleTimeout::from(VarInt::from_u32(
        u32::try_from(IDLE.as_millis()).expect("a few seconds"),
    ));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(MAX_STREAMS.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(FIRST_WINDOW_BYTES.into())
        .send_window(FIRST_WINDOW_BYTES.into())
        .mtu_discovery_config(Some(discovery))
        .initial_rtt(FIRST_ROUND_TRIP)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .allow_spin(false);
    Arc::new(transport)
}

/// Returns the share of each of so many connections in the budget, the same in each direction.
pub(super) fn share_bytes(connections: usize) -> u64 {
    let (least, most) = SHARE_BYTES;
    (WINDOW_BUDGET_BYTES / connections.max(1) as u64).clamp(least, most)
}

/// Asks for large buffers; without the right to exceed the system's limit, takes what it gives.
fn enlarge_buffers(socket: &UdpSocket) {
    if sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_BYTES).is_err() {
        // What was granted is looked at below.
        let _ = sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER_BYTES);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER_BYTES);
    }
    let granted = sockopt::socket_recv_buffer_size(socket).unwrap_or_default();
    if granted < SMALL_BUFFER_BYTES {
        tracing::warn!(
            size_bytes = granted,
            "the system allows small UDP buffers only, transfers between peers will be slower: \
             raise net.core.rmem_max and net.core.wmem_max to {SOCKET_BUFFER_BYTES}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cluster_stays_within_the_budget() {
        assert_eq!(share_bytes(0), SHARE_BYTES.1);
        for connections in 1..=256 {
            let together = share_bytes(connections) * connections as u64;
            assert!(together <= WINDOW_BUDGET_BYTES, "{connections}");
        }
    }
}
