//! A link of limited rate: a TCP relay that counts what it carries.
//!
//! All connections through it share one rate towards the client, as hosts share a line. It runs on
//! threads of its own and is even at 1 Gbit/s, while the clients of a benchmark block the runtime;
//! a test that only needs a slow upstream uses [`crate::link`]. It knows nothing of HTTP.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::Mutex;

/// The most that leaves at once. At 15 MB/s it is 4 ms of the line, at 125 MB/s half of one.
const PIECE_BYTES: usize = 64 * 1024;

/// A sleep ends late by some scheduling; the line makes up for this much of it, and no more.
const CATCH_UP: Duration = Duration::from_millis(5);

/// A relay that runs until it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    target: SocketAddr,
    bytes_per_second: f64,
    /// When the line is free again.
    free_at: Mutex<Instant>,
    carried: AtomicU64,
    closing: AtomicBool,
}

impl Relay {
    /// Relays connections to `target`, with `bytes_per_second` for all of them together towards
    /// the client; the other direction is not limited.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(target: SocketAddr, bytes_per_second: u64) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("starting a relay")?;
        let address = listener.local_addr()?;
        let link = Arc::new(Link {
            target,
            bytes_per_second: bytes_per_second as f64,
            free_at: Mutex::new(Instant::now()),
            carried: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&link);
        std::thread::spawn(move || accepting.accept(&listener));
        Ok(Self { address, link })
    }

    /// Returns the address to connect to instead of the target's.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns how many bytes went towards clients so far, heads of answers included.
    pub fn carried_bytes(&self) -> u64 {
        self.link.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.link.closing.store(true, Ordering::Relaxed);
        // Wakes the accepting thread; connections that are open end with their peers.
        let _ = TcpStream::connect(self.address);
    }
}

impl Link {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.closing.load(Ordering::Relaxed) {
                return;
            }
            // A client that is gone already, or a target that is down: the client sees a close.
            let Ok((client, target)) = client.and_then(|client| self.connect(client)) else {
                continue;
            };
            let link = Arc::clone(self);
            std::thread::spawn(move || link.relay(&client, &target));
        }
    }

    fn connect(&self, client: TcpStream) -> io::Result<(TcpStream, TcpStream)> {
        let target = TcpStream::connect(self.target)?;
        client.set_nodelay(true)?;
        target.set_nodelay(true)?;
        Ok((client, target))
    }

    /// Carries both directions until both have ended. An error of either side ends the connection,
    /// which is all that the two ends need to know.
    fn relay(&self, client: &TcpStream, target: &TcpStream) {
        std::thread::scope(|scope| {
            scope.spawn(|| copy(client, target, |_| {}));
            copy(target, client, |count| self.pass(count));
        });
    }

    /// Waits until `count` bytes have passed the line.
    fn pass(&self, count: usize) {
        let passed = {
            let mut free_at = self.free_at.lock();
            let duration = Duration::from_secs_f64(count as f64 / self.bytes_per_second);
            *free_at = (*free_at).max(Instant::now() - CATCH_UP) + duration;
            *free_at
        };
        let wait = passed.saturating_duration_since(Instant::now());
        #[expect(
            clippy::disallowed_methods,
            reason = "a thread of its own, whose work is to be late"
        )]
        std::thread::sleep(wait);
        self.carried.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Copies until the end of `from`, then ends `to` as well.
fn copy(mut from: &TcpStream, mut to: &TcpStream, before_writing: impl Fn(usize)) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(count) = from.read(&mut buffer)
        && count > 0
    {
        before_writing(count);
        if to.write_all(&buffer[..count]).is_err() {
            let _ = from.shutdown(Shutdown::Read);
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::discard::{Plan, discard};
    use crate::load::nginx::Nginx;

    #[tokio::test]
    async fn two_clients_share_the_rate_and_every_byte_is_counted() {
        let files = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(files.path().join("blob"), vec![7; 1_000_000]).expect("a file");
        let nginx = Nginx::of_files(files.path()).await.expect("nginx starts");
        let relay = Relay::start(nginx.address(), 5_000_000).expect("a free port");
        let plan = Plan {
            connections: 2,
            ..Plan::once(relay.address(), "/blob")
        };
        let discarded = discard(&plan).expect("a body through the relay");
        // 2 MB at 5 MB/s are 0.4 s; the machine may be slow, but never faster than the line.
        assert!(discarded.elapsed() >= Duration::from_millis(390));
        let carried = relay.carried_bytes();
        assert!((2_000_000..2_010_000).contains(&carried), "{carried}");
    }
}
