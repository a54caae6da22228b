//! Addresses for servers that are started by their number, and again by the same one.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// Below the ports that the kernel hands out by itself (32768 and above), so that no connection and no
/// other test's listener takes one between choosing and binding, or while a server is stopped.
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// Ports that this process has tried.
static TRIED: AtomicU32 = AtomicU32::new(0);

/// Returns a loopback address whose port was free for TCP and for UDP a moment ago.
///
/// A server outside the tests may take it before the caller does.
///
/// # Errors
/// When there is none.
pub fn free_address() -> Result<SocketAddr> {
    // Tests run in processes of their own: each begins elsewhere, and one that was started just before or
    // after it thousands of ports away.
    let start = std::process::id().wrapping_mul(7919);
    let candidates = (0..COUNT).map(|_| {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(tried) % COUNT;
        u16::try_from(port).expect("below 32768")
    });
    let mut addresses = candidates.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    addresses
        .find(|address| TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok())
        .context("no port is free for TCP and UDP")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_differ_and_both_kinds_of_socket_can_be_bound() {
        let addresses = [(); 20].map(|()| free_address().expect("a free port"));
        let distinct = std::collections::BTreeSet::from(addresses);
        assert_eq!(distinct.len(), addresses.len());
        TcpListener::bind(addresses[0]).expect("free for TCP");
        UdpSocket::bind(addresses[0]).expect("free for UDP");
    }
}
