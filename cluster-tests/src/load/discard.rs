//! Clients that fetch bodies as fast as they come and throw them away in the kernel.
//!
//! One blocking thread per connection; `recv` with `MSG_TRUNC` drops bytes without copying them,
//! so that a client costs the same and next to nothing, whoever serves it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::{RecvFlags, recv};

use super::head;

/// Nothing that is measured is silent for longer; a client that waits longer is an error.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// The most that one call discards. The memory is never touched, only its size counts.
const DISCARD_BYTES: usize = 1 << 20;

/// What the clients fetch.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub address: SocketAddr,
    /// The body's path and query.
    pub path: String,
    /// How many clients fetch at the same time, each over one kept connection.
    pub connections: usize,
    /// How often each client fetches it, one after the other.
    pub requests: usize,
}

impl Plan {
    /// One client that fetches `path` once.
    pub fn once(address: SocketAddr, path: &str) -> Self {
        Self {
            address,
            path: path.to_owned(),
            connections: 1,
            requests: 1,
        }
    }
}

/// What one client saw, in time since all of them started.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// When the first byte of its first body was there.
    pub first_byte: Duration,
    /// When its last body was complete.
    pub last_byte: Duration,
    /// How many bytes of bodies it received.
    pub bytes: u64,
}

/// What all clients saw.
#[derive(Clone, Debug)]
pub struct Discarded {
    /// One entry per connection, at least one.
    pub streams: Vec<Stream>,
}

impl Discarded {
    /// Returns the bytes of all bodies.
    pub fn bytes(&self) -> u64 {
        self.streams.iter().map(|stream| stream.bytes).sum()
    }

    /// Returns when the slowest client was done.
    pub fn elapsed(&self) -> Duration {
        let ends = self.streams.iter().map(|stream| stream.last_byte);
        ends.max().unwrap_or_default()
    }

    /// Returns when the first client had its first byte.
    pub fn first_byte(&self) -> Duration {
        let starts = self.streams.iter().map(|stream| stream.first_byte);
        starts.min().unwrap_or_default()
    }

    /// Returns bytes of bodies per second, over all clients.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes() as f64 / self.elapsed().as_secs_f64()
    }
}

/// Runs the clients to their end. All are connected before the first asks.
///
/// Blocks the calling thread.
/// # Errors
/// When a client cannot connect, an answer is not a 200 with a length, or a body ends early.
pub fn discard(plan: &Plan) -> Result<Discarded> {
    let clients: Vec<Client> = (0..plan.connections)
        .map(|_| Client::connect(plan))
        .collect::<Result<_>>()?;
    let start = Barrier::new(plan.connections);
    let streams = std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .into_iter()
            .map(|client| scope.spawn(|| client.run(plan.requests, &start)))
            .collect();
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().expect("a client does not panic"));
        joined.collect::<Result<Vec<_>>>()
    })?;
    Ok(Discarded { streams })
}

struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    scratch: Vec<u8>,
}

impl Client {
    fn connect(plan: &Plan) -> Result<Self> {
        let stream = TcpStream::connect(plan.address)
            .with_context(|| format!("connecting to {}", plan.address))?;
        stream.set_read_timeout(Some(SILENCE_LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            request: head::request(&plan.address.to_string(), &plan.path),
            scratch: vec![0; DISCARD_BYTES],
        })
    }

    fn run(mut self, requests: usize, start: &Barrier) -> Result<Stream> {
        start.wait();
        let start = Instant::now();
        let mut first_byte = None;
        let mut bytes = 0;
        for _ in 0..requests {
            bytes += self.fetch(start, &mut first_byte)?;
        }
        Ok(Stream {
            first_byte: first_byte.context("nothing was fetched")?,
            last_byte: start.elapsed(),
            bytes,
        })
    }

    /// Fetches one body; notes the time of the very first byte.
    fn fetch(&mut self, start: Instant, first_byte: &mut Option<Duration>) -> Result<u64> {
        self.stream.write_all(&self.request)?;
        let mut filled = 0;
        let head = loop {
            let count = self.stream.read(&mut self.scratch[filled..4096])?;
            ensure!(count > 0, "closed before the head of the answer");
            filled += count;
            if let Some(head) = head::parse(&self.scratch[..filled])? {
                break head;
            }
        };
        let mut received = (filled - head.end) as u64;
        while received < head.body_bytes {
            if received > 0 {
                first_byte.get_or_insert_with(|| start.elapsed());
            }
            let left = usize::try_from(head.body_bytes - received).unwrap_or(usize::MAX);
            let wanted = left.min(DISCARD_BYTES);
            let (_, count) = recv(&self.stream, &mut self.scratch[..wanted], RecvFlags::TRUNC)?;
            ensure!(count > 0, "the body ended after {received} bytes");
            received += count as u64;
        }
        first_byte.get_or_insert_with(|| start.elapsed());
        ensure!(received == head.body_bytes, "more bytes than announced");
        Ok(received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::nginx::Nginx;

    #[tokio::test]
    async fn every_client_receives_every_body() {
        let files = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(files.path().join("blob"), vec![7; 3_000_000]).expect("a file");
        let nginx = Nginx::of_files(files.path()).await.expect("nginx starts");
        let plan = Plan {
            connections: 4,
            requests: 3,
            ..Plan::once(nginx.address(), "/blob")
        };
        let discarded = discard(&plan).expect("a server that serves");
        assert_eq!(discarded.bytes(), 4 * 3 * 3_000_000);
        assert!(discarded.first_byte() <= discarded.elapsed());
        discard(&Plan::once(nginx.address(), "/no-such-file")).expect_err("a 404 is no body");
    }
}
