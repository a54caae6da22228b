//! A client that shows what is on the wire: raw requests, headers as sent, how a body ended.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer as it arrived, until the connection ended.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Names in lower case, in the order of the wire.
    headers: Vec<(String, String)>,
    /// Whatever came after the head, chunk headings included.
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// Returns a header, or the empty text.
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map_or("", |(_, value)| value)
    }

    /// Returns the status and the sorted headers, without those of the connection.
    pub(crate) fn head(&self) -> String {
        let mut lines: Vec<String> = self
            .headers
            .iter()
            .filter(|(name, _)| name != "date" && name != "connection")
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        lines.sort();
        format!("{}\n{}", self.status, lines.join("\n"))
    }

    /// Returns the body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a text")
    }

    /// Returns the code of the error in the body.
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        let json: serde_json::Value = serde_json::from_slice(&self.body).expect("valid JSON");
        let code = json["errors"][0]["code"].as_str();
        code.expect("an error with a code").to_owned()
    }
}

/// Sends one request on a connection of its own, and reads until the server ends it.
pub(crate) async fn send(door: SocketAddr, method: &str, url: &str, headers: &[&str]) -> Reply {
    let head = head(method, url, headers, "close");
    exchange(door, head.as_bytes()).await
}

/// Sends a `GET`.
pub(crate) async fn get(door: SocketAddr, url: &str, headers: &[&str]) -> Reply {
    send(door, "GET", url, headers).await
}

/// Writes a request's head.
pub(crate) fn head(method: &str, url: &str, headers: &[&str], connection: &str) -> String {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{method} {url} HTTP/1.1\r\nHost: node\r\nConnection: {connection}\r\n{headers}\r\n")
}

/// Sends bytes and reads the answer until the server ends the connection, which it must do by
/// FIN.
pub(crate) async fn exchange(door: SocketAddr, request: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(door).await.expect("the door is open");
    stream.write_all(request).await.expect("sent");
    parse(&read_to_fin(&mut stream).await.expect("FIN, not a reset"))
}

/// Reads until FIN.
///
/// # Errors
/// The connection was reset.
pub(crate) async fn read_to_fin(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await?;
    Ok(received)
}

/// Reads the head of an answer and nothing after it.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Reply {
    let mut received = Vec::new();
    while !received.ends_with(b"\r\n\r\n") {
        received.push(stream.read_u8().await.expect("a whole head"));
    }
    parse(&received)
}

/// Takes an answer apart.
pub(crate) fn parse(received: &[u8]) -> Reply {
    let shown = String::from_utf8_lossy(received);
    let end = received
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .unwrap_or_else(|| panic!("no head in {shown:?}"));
    let text = std::str::from_utf8(&received[..end]).expect("a head is ASCII");
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let headers = lines.filter_map(|line| line.split_once(": "));
    Reply {
        status: status
            .and_then(|status| status.parse().ok())
            .expect("a status"),
        headers: headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
        body: received[end + 4..].to_vec(),
    }
}
