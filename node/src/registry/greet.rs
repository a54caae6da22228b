//! How a connection begins: in the clear or by a TLS handshake, and who is at the other end.
//!
//! The first byte tells TLS from HTTP. Each mistakes the other for noise, so whoever speaks the
//! wrong one gets words that its library understands: HTTP in the clear to a client that should
//! use TLS; what the HTTP library says to a TLS hello begins with `HTTP/` (CLIENT-CONTRACT T2).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::tls::{self, Tls};

use super::connection;
use super::door::{Accepted, Terms};
use super::stream::Stream;

/// Longest time from accepting to the end of the handshake: clients give up after 10 s themselves
/// (CLIENT-CONTRACT T4).
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

/// First byte of every TLS connection: the record type of a handshake. Source: RFC 8446, 5.1.
const TLS_HANDSHAKE: u8 = 0x16;

/// Sent to a client that speaks HTTP where TLS is spoken.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\
    Connection: close\r\nContent-Length: 35\r\n\r\nhttps is spoken here, and not http\n";

/// The client of one connection, and on what terms it came in.
#[derive(Clone, Debug, Default)]
pub(super) struct Guest {
    pub(super) terms: Arc<Terms>,
    pub(super) peer: Peer,
}

/// Who is at the other end of a connection, as far as that shows without a password.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// Where it comes from, unless from this host by a socket in the file system.
    pub(super) address: Option<IpAddr>,
    /// The names in its verified certificate.
    pub(super) certificate: Option<Arc<[String]>>,
}

/// Brings a connection to where requests begin; `None` when it does not get there.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub(super) async fn greet(accepted: Accepted, terms: &Terms) -> Option<(Stream, Peer)> {
    let (stream, address) = match accepted {
        Accepted::Unix(stream) => return Some((Stream::Unix(stream), Peer::default())),
        Accepted::Tcp(stream, address) => (stream, Some(address)),
    };
    let Some(tls) = &terms.tls else {
        let certificate = None;
        return Some((
            Stream::Tcp(stream),
            Peer {
                address,
                certificate,
            },
        ));
    };
    let greeting = shake_hands(stream, tls, terms.allow_plain);
    match tokio::time::timeout(HANDSHAKE_PATIENCE, greeting).await {
        Ok(Some((stream, certificate))) => Some((
            stream,
            Peer {
                address,
                certificate,
            },
        )),
        Ok(None) => None,
        Err(_) => {
            tracing::debug!("no handshake in time");
            None
        }
    }
}

async fn shake_hands(
    stream: TcpStream,
    tls: &Tls,
    allow_plain: bool,
) -> Option<(Stream, Option<Arc<[String]>>)> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1) if first[0] == TLS_HANDSHAKE => {}
        Ok(1) if allow_plain => return Some((Stream::Tcp(stream), None)),
        Ok(1) => {
            refuse(stream).await;
            return None;
        }
        // Gone again: a probe that only connects.
        Ok(_) | Err(_) => return None,
    }
    let acceptor = TlsAcceptor::from(tls.server_config());
    match acceptor.accept(stream).await {
        Ok(stream) => {
            let certificate = names(&stream);
            Some((Stream::Tls(Box::new(stream)), certificate))
        }
        Err(error) => {
            tracing::debug!(%error, "a handshake failed");
            None
        }
    }
}

fn names(stream: &TlsStream<TcpStream>) -> Option<Arc<[String]>> {
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates()?;
    let own = chain.first()?;
    Some(tls::client_names(own).into())
}

async fn refuse(mut stream: TcpStream) {
    if stream.write_all(NOT_TLS).await.is_ok() {
        connection::linger(Stream::Tcp(stream)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let text = std::str::from_utf8(NOT_TLS).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
    }
}
