//! A relay through which the words of a server come late: who hears the members of a cluster through
//! it believes now what the others believed seconds ago.
//!
//! What the client says goes on at once, and no byte is lost or changes its place. It carries TCP
//! alone; that nobody goes another way is the test's to see to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{PIECE_BYTES, forward};

/// Pieces of one connection that are under way; the server waits when there are more. Members say
/// some ten short things a second.
const QUEUE_PIECES: usize = 1024;

/// A relay to one server; it ends with the value.
#[derive(Debug)]
pub struct Late {
    address: SocketAddr,
    /// In microseconds.
    delay: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Late {
    /// Listens on a free port of `at` and relays to `server`, without delay.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(server: SocketAddr, at: IpAddr) -> Result<Self> {
        let listener = TcpListener::bind((at, 0))
            .await
            .context("a port for a link")?;
        let address = listener.local_addr()?;
        let delay = Arc::<AtomicU64>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, Arc::clone(&delay)));
        Ok(Self {
            address,
            delay,
            _tasks: tasks,
        })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets what the server says from now on arrive so much later, and nothing before what it said
    /// earlier.
    pub fn delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.delay.store(micros, Ordering::Relaxed);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, delay: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(relay(client, server, Arc::clone(&delay)));
    }
}

/// Relays one connection; what fails on one side ends the other, which is all a link can do.
async fn relay(client: TcpStream, server: SocketAddr, delay: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (queue, queued) = mpsc::channel(QUEUE_PIECES);
    tokio::join!(
        forward(from_client, to_server, None),
        take(from_server, queue, &delay),
        deliver(queued, to_client)
    );
}

async fn take(mut from: OwnedReadHalf, queue: mpsc::Sender<(Instant, Bytes)>, delay: &AtomicU64) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(size @ 1..) = from.read(&mut piece).await {
        let due = Instant::now() + Duration::from_micros(delay.load(Ordering::Relaxed));
        let piece = Bytes::copy_from_slice(&piece[..size]);
        if queue.send((due, piece)).await.is_err() {
            break;
        }
    }
}

async fn deliver(mut queued: mpsc::Receiver<(Instant, Bytes)>, mut to: OwnedWriteHalf) {
    while let Some((due, piece)) = queued.recv().await {
        tokio::time::sleep_until(due).await;
        if to.write_all(&piece).await.is_err() {
            break;
        }
    }
    // Passes the FIN on; an error means that the other side has gone already.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn answers_are_late_and_in_order_and_questions_are_not() {
        const DELAY: Duration = Duration::from_millis(300);
        const LONG: Duration = Duration::from_secs(60);
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let address = server.local_addr().expect("an address");
        let late = Late::to(address, Ipv4Addr::LOCALHOST.into())
            .await
            .expect("a link");
        let mut client = TcpStream::connect(late.address()).await.expect("a relay");
        let (mut asked, _) = server.accept().await.expect("a connection");
        late.delay(LONG);
        client.write_all(b"?").await.expect("a question");
        let question = tokio::time::timeout(LONG / 2, asked.read_u8()).await;
        let question = question.expect("it is not late");
        assert_eq!(question.expect("the question"), b'?');
        late.delay(DELAY);
        let started = Instant::now();
        asked.write_all(b"first").await.expect("an answer");
        let mut answer = vec![0; 5];
        client.read_exact(&mut answer).await.expect("the answer");
        assert!(started.elapsed() >= DELAY, "{:?}", started.elapsed());
        asked.write_all(b"+").await.expect("an answer");
        late.delay(Duration::ZERO);
        asked.write_all(b"second").await.expect("an answer");
        drop(asked);
        client.read_to_end(&mut answer).await.expect("the rest");
        assert_eq!(answer, b"first+second");
    }
}
