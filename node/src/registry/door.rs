//! Listeners, and what each asks of those who come.
//!
//! A node has up to two: the public one, with TLS and authentication as configured, and a local one
//! without either, because dockerd cannot send credentials to a mirror (CLIENT-CONTRACT A1). What
//! may be read by whom is `access`'s to say; here is only how a connection begins.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::tls::Tls;

use super::auth::Admission;

/// Connections that may wait to be accepted: a fleet that starts one pipeline arrives at once.
const BACKLOG: u32 = 4096;

/// A listener with its terms.
#[derive(Debug)]
pub struct Door {
    pub(super) listener: Listener,
    pub(super) terms: Terms,
}

/// What a listener asks of those who come.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Whether only this host can come in; access rules call such clients `local`.
    pub is_local: bool,
    /// The certificate; without one connections are in the clear.
    pub tls: Option<Tls>,
    /// Whether clients may speak plain HTTP all the same.
    pub allow_plain: bool,
    /// Who comes in; nobody is asked at a local listener.
    pub admission: Admission,
}

impl Door {
    /// Opens a listener on these terms.
    pub fn new(listener: impl Into<Listener>, terms: Terms) -> Self {
        Self {
            listener: listener.into(),
            terms,
        }
    }
}

impl From<TcpListener> for Door {
    /// Takes anyone who comes, in the clear.
    fn from(listener: TcpListener) -> Self {
        Self::new(listener, Terms::default())
    }
}

/// A bound address.
#[derive(Debug)]
pub enum Listener {
    /// A port.
    Tcp(TcpListener),
    /// A socket in the file system.
    Unix(UnixDoor),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixDoor> for Listener {
    fn from(door: UnixDoor) -> Self {
        Self::Unix(door)
    }
}

/// A socket in the file system; its file is removed with it.
#[derive(Debug)]
pub struct UnixDoor {
    listener: UnixListener,
    path: PathBuf,
}

impl UnixDoor {
    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        // Left behind, it is taken over by the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// A connection that was accepted and has not begun.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

impl Listener {
    /// Accepts one connection.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Heads and the last piece of a body must not wait for the client's
                // acknowledgement of the piece before.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                Ok(Accepted::Tcp(stream, address.ip()))
            }
            Self::Unix(door) => {
                let (stream, _) = door.listener.accept().await?;
                Ok(Accepted::Unix(stream))
            }
        }
    }
}

/// Binds an address.
///
/// # Errors
/// The address is in use, or not this machine's.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for connections of the previous run to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Binds a socket in the file system, in place of one that nobody listens on any more.
///
/// # Errors
/// Somebody listens there, something else has the name, or the folder cannot be written.
pub fn listen_unix(path: &Path) -> io::Result<UnixDoor> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket {
        match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?
            }
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    Ok(UnixDoor {
        listener: UnixListener::bind(path)?,
        path: path.to_owned(),
    })
}
