//! Many clients at once that compare every byte they get with what it should be.
//!
//! They run beside each other on the runtime of the test, neither retry nor continue: a body that
//! is wrong, short, or refused is an error of that client, and the others go on.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::net::TcpStream;

use crate::condition::eventually;
use crate::http::{End, Exchange, Request};

/// What a client saw that got everything.
#[derive(Clone, Copy, Debug)]
pub struct Pulled {
    /// Time to the first byte of the body.
    pub first_byte: Duration,
    /// Time to the last byte of the body.
    pub last_byte: Duration,
}

/// A byte that is not what it should be. Whatever happens to nodes, this must not.
#[derive(Debug)]
pub struct WrongBytes {
    name: String,
    behind: usize,
}

impl fmt::Display for WrongBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: other bytes behind {}",
            self.name, self.behind
        )
    }
}

impl std::error::Error for WrongBytes {}

/// A client in the middle of a pull.
#[derive(Debug)]
pub struct Client {
    exchange: Exchange,
    name: String,
    content: Bytes,
    received: usize,
    start: Instant,
    first_byte: Option<Duration>,
}

impl Client {
    /// Asks `address` for `path`, whose bytes are `content`, and reads the head of the answer.
    ///
    /// # Errors
    /// When the status is not 200.
    pub async fn open(address: SocketAddr, path: &str, content: &Bytes) -> Result<Self> {
        let name = format!("{path} at {address}");
        let start = Instant::now();
        let exchange = Request::get(path).open(address).await?;
        if exchange.head().status != 200 {
            let answer = exchange.finish().await?;
            let text = String::from_utf8_lossy(&answer.body);
            bail!("{name}: {} {text}", answer.status());
        }
        Ok(Self {
            exchange,
            name,
            content: content.clone(),
            received: 0,
            start,
            first_byte: None,
        })
    }

    /// Reads until at least `count` bytes have come.
    ///
    /// # Errors
    /// When a byte differs or the body ends before.
    pub async fn until(&mut self, count: usize) -> Result<()> {
        while self.received < count {
            let bytes = self.exchange.next().await?;
            let bytes = bytes.with_context(|| self.ending())?;
            self.compare(&bytes)?;
        }
        Ok(())
    }

    /// Reads the rest.
    ///
    /// # Errors
    /// When a byte differs or the body does not end complete.
    pub async fn finish(mut self) -> Result<Pulled> {
        while let Some(bytes) = self.exchange.next().await? {
            self.compare(&bytes)?;
        }
        let is_whole = self.received == self.content.len();
        ensure!(
            is_whole && self.exchange.end() == Some(End::Complete),
            self.ending()
        );
        let last_byte = self.start.elapsed();
        Ok(Pulled {
            first_byte: self.first_byte.unwrap_or(last_byte),
            last_byte,
        })
    }

    fn compare(&mut self, bytes: &[u8]) -> Result<()> {
        self.first_byte.get_or_insert_with(|| self.start.elapsed());
        let expected = self.content.get(self.received..self.received + bytes.len());
        ensure!(
            expected == Some(bytes),
            WrongBytes {
                name: self.name.clone(),
                behind: self.received,
            }
        );
        self.received += bytes.len();
        Ok(())
    }

    fn ending(&self) -> String {
        format!(
            "{} ended {:?} after {} of {} bytes and {:?}",
            self.name,
            self.exchange.end(),
            self.received,
            self.content.len(),
            self.start.elapsed()
        )
    }
}

/// Waits until somebody takes connections at `address`; answers may still be long in coming.
///
/// # Panics
/// When nobody does within the patience.
pub async fn opened(address: SocketAddr) {
    eventually("connections are taken", async || {
        TcpStream::connect(address).await.is_ok()
    })
    .await;
}

/// Pulls `path` from `address` and compares the body with `content`.
///
/// # Errors
/// When the status is not 200, a byte differs, or the body does not end complete.
pub async fn pull(address: SocketAddr, path: &str, content: &Bytes) -> Result<Pulled> {
    Client::open(address, path, content).await?.finish().await
}

/// Lets `clients` pull `path` at the same time, one from each address; an address may come several
/// times. Returns what became of each, in that order.
pub async fn stampede(
    clients: impl IntoIterator<Item = SocketAddr>,
    path: &str,
    content: &Bytes,
) -> Vec<Result<Pulled>> {
    join_all(
        clients
            .into_iter()
            .map(|address| pull(address, path, content)),
    )
    .await
}

/// Returns the time of the last client, when all got everything.
///
/// # Errors
/// The first client's that did not, with how many there were.
pub fn all(clients: Vec<Result<Pulled>>) -> Result<Duration> {
    let count = clients.len();
    let failed = clients.iter().filter(|client| client.is_err()).count();
    let pulled: Result<Vec<Pulled>> = clients.into_iter().collect();
    let pulled = pulled.with_context(|| format!("{failed} of {count} clients failed"))?;
    let last = pulled.iter().map(|client| client.last_byte).max();
    Ok(last.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, Then, When, noise};

    #[tokio::test]
    async fn a_wrong_byte_a_short_body_and_a_refusal_are_seen() {
        let fake = Fake::start().await.expect("a fake");
        let content = noise(1, 300_000);
        let digest = fake.add_blob("app", content.clone());
        let path = format!("/v2/app/blobs/{digest}");
        let clients = vec![fake.address(); 3];
        let right = stampede(clients.clone(), &path, &content).await;
        all(right).expect("three clients that get everything");
        let other = noise(2, 300_000);
        let error = pull(fake.address(), &path, &other).await;
        error
            .expect_err("it is not the content")
            .downcast::<WrongBytes>()
            .expect("wrong bytes are told from other failures");
        for spoilt in [
            Then::healthy().flip(299_999),
            Then::healthy().cut(7),
            Then::status(503),
        ] {
            fake.heal();
            fake.on(When::get("/blobs/").first(1), spoilt);
            let seen = stampede(clients.clone(), &path, &content).await;
            assert_eq!(seen.iter().filter(|client| client.is_err()).count(), 1);
            all(seen).expect_err("one client was served badly");
        }
    }
}
