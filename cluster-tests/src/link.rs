//! A network link whose rate a test sets: a TCP relay in front of a server.
//!
//! Loopback is too quick to catch a node in the middle of a pull. The relay forwards bytes as they
//! are and counts them; it does not know what they mean. [`Late`] is another one, whose bytes take
//! their time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

mod late;

pub use late::Late;

/// Bytes that travel at once; small, so that a slow link is even and not in bursts.
const PIECE_BYTES: usize = 16 * 1024;

/// A relay to one server; ends with the value.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    pace: Arc<Pace>,
    _tasks: JoinSet<()>,
}

/// What all connections of a link share.
#[derive(Debug)]
struct Pace {
    /// Bytes per second from the server, over all connections; zero means no limit.
    rate: AtomicU64,
    forwarded: AtomicU64,
    /// When the line is free for the next piece.
    free_at: Mutex<Instant>,
}

impl Link {
    /// Listens on a free port and relays to `server`, without a limit.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("a port for a link")?;
        let address = listener.local_addr()?;
        let pace = Arc::new(Pace {
            rate: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            free_at: Mutex::new(Instant::now()),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, Arc::clone(&pace)));
        Ok(Self {
            address,
            pace,
            _tasks: tasks,
        })
    }

    /// Returns `http://<address of the relay>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Limits what comes from the server, over all connections; from the next piece on.
    pub fn limit(&self, bytes_per_second: u64) {
        self.pace.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Takes the limit away.
    pub fn unlimited(&self) {
        self.limit(0);
    }

    /// Returns how many bytes came from the server, heads of answers included.
    pub fn forwarded(&self) -> u64 {
        self.pace.forwarded.load(Ordering::Relaxed)
    }
}

impl Pace {
    /// Waits for the turn of a piece of `size` bytes.
    async fn turn(&self, size: usize) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let turn = {
            let mut free_at = self.free_at.lock();
            let turn = (*free_at).max(Instant::now());
            *free_at = turn + Duration::from_secs_f64(size as f64 / rate as f64);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, pace: Arc<Pace>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(relay(client, server, Arc::clone(&pace)));
    }
}

/// Relays one connection; what fails on one side ends the other, which is all a link can do.
async fn relay(client: TcpStream, server: SocketAddr, pace: Arc<Pace>) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        forward(from_client, to_server, None),
        forward(from_server, to_client, Some(&pace))
    );
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, pace: Option<&Pace>) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(size @ 1..) = from.read(&mut piece).await {
        if let Some(pace) = pace {
            pace.turn(size).await;
            pace.forwarded.fetch_add(size as u64, Ordering::Relaxed);
        }
        if to.write_all(&piece[..size]).await.is_err() {
            break;
        }
    }
    // Passes the FIN on; an error means that the other side has gone already.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Request;
    use crate::upstream::Upstream;

    #[tokio::test]
    async fn a_limited_link_delivers_everything_at_its_rate() {
        let upstream = Upstream::start().await.expect("a registry");
        let link = Link::to(upstream.address()).await.expect("a link");
        let address = link.address;
        let direct = Request::get("/v2/")
            .send(upstream.address())
            .await
            .expect("an answer");
        // An answer of some 200 bytes takes a fifth of a second at 1000 bytes per second; its
        // single piece goes at once, the next one waits for it.
        link.limit(1000);
        let started = Instant::now();
        for _ in 0..2 {
            let relayed = Request::get("/v2/").send(address).await.expect("an answer");
            assert_eq!(relayed.body, direct.body);
        }
        assert!(
            started.elapsed() > Duration::from_millis(100),
            "{:?}",
            started.elapsed()
        );
        assert!(link.forwarded() > 200, "{}", link.forwarded());
    }
}
