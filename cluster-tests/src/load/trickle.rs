//! Many clients at once that read a little at a time, as over slow lines.
//!
//! One thread serves all of them. Their receive buffers are small, so that what they do not read
//! stays with the server, which is what its memory is measured by.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};

use super::head;

/// The receive buffer of a client, before the kernel doubles it.
const RECEIVE_BUFFER_BYTES: usize = 16 * 1024;

/// What a client reads at a time.
const SIP_BYTES: usize = 4 * 1024;

/// How often a client reads: with [`SIP_BYTES`] 80 kB/s each, 80 MB/s for a thousand.
const SIP_EVERY: Duration = Duration::from_millis(50);

/// Clients whose requests are sent.
#[derive(Debug)]
pub struct Trickle {
    clients: Vec<Client>,
}

/// How far the clients are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Clients that have received bytes of their body and wait for more.
    pub streaming: usize,
    /// Clients that still wait for their first byte.
    pub waiting: usize,
    /// Clients that have the whole body.
    pub complete: usize,
}

impl Trickle {
    /// Connects one client per path and sends its request.
    ///
    /// # Errors
    /// When a connection is refused.
    pub fn open<'a>(address: SocketAddr, paths: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let clients = paths.into_iter().map(|path| Client::open(address, path));
        let clients = clients.collect::<Result<_>>()?;
        Ok(Self { clients })
    }

    /// Reads until every client has received bytes of its body.
    ///
    /// Blocks the calling thread.
    /// # Errors
    /// When that takes longer than `limit`, an answer is not a 200, or a body ends early.
    pub fn until_all_stream(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let progress = self.sip()?;
            if progress.waiting == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("after {limit:?} not every client has bytes: {progress:?}");
            }
        }
    }

    /// Reads for `duration` and returns how far the clients are then.
    ///
    /// Blocks the calling thread.
    /// # Errors
    /// When an answer is not a 200 or a body ends early.
    pub fn read_for(&mut self, duration: Duration) -> Result<Progress> {
        let end = Instant::now() + duration;
        loop {
            let progress = self.sip()?;
            if Instant::now() >= end {
                return Ok(progress);
            }
        }
    }

    /// Lets every client read once and waits for the next turn.
    fn sip(&mut self) -> Result<Progress> {
        let turn = Instant::now();
        let mut progress = Progress {
            streaming: 0,
            waiting: 0,
            complete: 0,
        };
        for client in &mut self.clients {
            client.sip()?;
            match client.left {
                None => progress.waiting += 1,
                Some(0) => progress.complete += 1,
                Some(_) => progress.streaming += 1,
            }
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "reading slowly is the work of this thread"
        )]
        std::thread::sleep(SIP_EVERY.saturating_sub(turn.elapsed()));
        Ok(progress)
    }
}

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    path: String,
    /// The start of the answer, until its head and a byte of the body are there.
    head: Vec<u8>,
    /// Bytes of the body that are to come, once its first byte is there.
    left: Option<u64>,
}

impl Client {
    fn open(address: SocketAddr, path: &str) -> Result<Self> {
        let mut stream = connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.write_all(&head::request(&address.to_string(), path))?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            path: path.to_owned(),
            head: Vec::new(),
            left: None,
        })
    }

    fn sip(&mut self) -> Result<()> {
        let mut buffer = [0; SIP_BYTES];
        let count = match self.stream.read(&mut buffer) {
            _ if self.left == Some(0) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            read => read.with_context(|| format!("reading {}", self.path))?,
        };
        ensure!(count > 0, "{} ended early, {:?} left", self.path, self.left);
        match &mut self.left {
            Some(left) => *left = left.saturating_sub(count as u64),
            None => self.start(&buffer[..count])?,
        }
        Ok(())
    }

    /// Takes bytes of the head, and perhaps of the body.
    fn start(&mut self, bytes: &[u8]) -> Result<()> {
        self.head.extend_from_slice(bytes);
        let head = head::parse(&self.head).with_context(|| format!("asking for {}", self.path))?;
        let Some(head) = head else { return Ok(()) };
        let received = (self.head.len() - head.end) as u64;
        if received > 0 {
            self.left = Some(head.body_bytes.saturating_sub(received));
            self.head = Vec::new();
        }
        Ok(())
    }
}

/// Connects with a small receive buffer, which must be set before: it bounds the window.
fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = rustix::net::socket(family, SocketType::STREAM, Some(ipproto::TCP))?;
    sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES)?;
    rustix::net::connect(&socket, &address)?;
    Ok(TcpStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::nginx::Nginx;

    #[tokio::test]
    async fn slow_clients_stream_and_do_not_finish() {
        let files = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(files.path().join("large"), vec![7; 8_000_000]).expect("a file");
        std::fs::write(files.path().join("small"), vec![7; 1_000]).expect("a file");
        let nginx = Nginx::of_files(files.path()).await.expect("nginx starts");
        let paths = ["/large", "/large", "/small"];
        let mut trickle = Trickle::open(nginx.address(), paths).expect("nginx accepts");
        trickle
            .until_all_stream(Duration::from_secs(30))
            .expect("nginx answers");
        let progress = trickle.read_for(Duration::from_millis(200));
        let expected = Progress {
            streaming: 2,
            waiting: 0,
            complete: 1,
        };
        assert_eq!(progress.expect("nginx answers"), expected);
    }
}
