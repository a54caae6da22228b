//! A raw HTTP/1.1 client for requests that must leave exactly as written.
//!
//! It shows what ordinary clients hide: header lines as they came, and whether a body ended whole,
//! short by FIN, or by reset. One connection per request; no redirect, no retry, no decompression.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

mod exchange;

pub use exchange::Exchange;

/// A request as it will be written.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Request {
    /// A request with any method; `target` is path and query, sent as it stands.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.into(),
            target: target.into(),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// A GET request.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// A HEAD request.
    pub fn head(target: &str) -> Self {
        Self::new("HEAD", target)
    }

    /// Adds a header line; the same name may come several times.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body and with it `Content-Length`.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends the request to `address` and reads the whole answer.
    ///
    /// # Errors
    /// When no complete response head arrives. A body that ends early is no error: see [`End`].
    pub async fn send(self, address: SocketAddr) -> Result<Answer> {
        self.open(address).await?.finish().await
    }

    /// Sends the request to `address` and reads the response head only.
    ///
    /// # Errors
    /// When no complete response head arrives.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn open(self, address: SocketAddr) -> Result<Exchange> {
        let is_head = self.method == "HEAD";
        let line = format!("{} {}", self.method, self.target);
        let mut stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("connecting to {address} for {line}"))?;
        stream
            .write_all(&self.encode(address))
            .await
            .with_context(|| format!("sending {line}"))?;
        Exchange::start(stream, is_head)
            .await
            .with_context(|| format!("reading the answer to {line}"))
    }

    fn encode(&self, address: SocketAddr) -> Vec<u8> {
        let has = |name: &str| {
            self.headers
                .iter()
                .any(|(n, _)| n.eq_ignore_ascii_case(name))
        };
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !has("host") {
            text.push_str(&format!("Host: {address}\r\n"));
        }
        if !has("connection") {
            text.push_str("Connection: close\r\n");
        }
        if !self.body.is_empty() && !has("content-length") {
            text.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        [text.as_bytes(), self.body.as_ref()].concat()
    }
}

/// Status and header lines of a response.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Name and value of each line, in the order in which they came.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// Returns the value of the first line called `name`, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Returns the values of all lines called `name`, in any case.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers
            .iter()
            .filter(move |(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).context("the response head is not UTF-8")?;
        let mut lines = text.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("not a status line: {status_line:?}"))?;
        let mut headers = Vec::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line
                .split_once(':')
                .with_context(|| format!("not a header: {line:?}"))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Self { status, headers })
    }
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As its length or its last chunk said.
    Complete,
    /// By FIN before that.
    Short,
    /// By a reset of the connection (RST).
    Reset,
}

/// A response that was read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status and headers.
    pub head: Head,
    /// The bytes of the body that arrived, without transfer coding.
    pub body: Bytes,
    /// How the body ended.
    pub end: End,
}

impl Answer {
    /// Returns the status code.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// Returns the value of the first header line called `name`, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Returns the body as JSON.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {:?}", String::from_utf8_lossy(&self.body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    /// Answers one request with `response` and closes by FIN, or by RST.
    async fn answering(response: &'static [u8], reset: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        #[expect(clippy::disallowed_methods, reason = "a test server of a few lines")]
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await.expect("a request");
            stream
                .write_all(response)
                .await
                .expect("a client that reads");
            if reset {
                stream.set_zero_linger().expect("a socket that can reset");
            }
        });
        address
    }

    #[tokio::test]
    async fn a_body_of_stated_length_is_complete() {
        let address = answering(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\nhello",
            false,
        )
        .await;
        let answer = Request::get("/").send(address).await.expect("an answer");
        assert_eq!(
            (answer.status(), &answer.body[..], answer.end),
            (200, &b"hello"[..], End::Complete)
        );
        assert_eq!(answer.head.all("X-A").collect::<Vec<_>>(), ["1", "2"]);
    }

    #[tokio::test]
    async fn a_body_that_ends_early_by_fin_is_short() {
        let address = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", false).await;
        let answer = Request::get("/").send(address).await.expect("an answer");
        assert_eq!((&answer.body[..], answer.end), (&b"hello"[..], End::Short));
    }

    #[tokio::test]
    async fn a_body_that_ends_by_reset_says_so() {
        let address = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", true).await;
        let exchange = Request::get("/").open(address).await;
        // The reset may overtake the head: then there is no answer at all, which is no FIN either.
        let Ok(exchange) = exchange else { return };
        let (_, end) = exchange.discard().await.expect("a readable body");
        assert_eq!(end, End::Reset);
    }

    #[tokio::test]
    async fn a_chunked_body_is_decoded() {
        let address =
            answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", false).await;
        let answer = Request::get("/").send(address).await.expect("an answer");
        assert_eq!(
            (&answer.body[..], answer.end),
            (&b"hello!"[..], End::Complete)
        );
    }

    #[tokio::test]
    async fn a_chunked_body_without_its_last_chunk_is_short() {
        let address = answering(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            false,
        )
        .await;
        let answer = Request::get("/").send(address).await.expect("an answer");
        assert_eq!((&answer.body[..], answer.end), (&b"hello"[..], End::Short));
    }

    #[tokio::test]
    async fn a_head_answer_has_a_length_and_no_body() {
        let address = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 304\r\n\r\n", false).await;
        let answer = Request::head("/").send(address).await.expect("an answer");
        assert_eq!(
            (answer.header("content-length"), answer.body.len()),
            (Some("304"), 0)
        );
        assert_eq!(answer.end, End::Complete);
    }
}
