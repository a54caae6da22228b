//! Accepting connections until the node stops.
//!
//! When it does, the listener is closed at once, so that new connections are refused and clients
//! go elsewhere (CLIENT-CONTRACT F7); running answers may finish.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use crate::task::Tasks;

use super::Registry;
use super::connection::{Connection, LINGER};

/// Connections that may wait to be accepted: a fleet that starts one pipeline arrives at once.
const BACKLOG: u32 = 4096;

/// Pause after accepting has failed. The usual reason is that the process has no descriptor left,
/// which another try at once does not change.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds an address for [`Registry::serve`].
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

impl Registry {
    /// Starts to answer on these listeners, and returns.
    pub fn serve(&self, listeners: Vec<TcpListener>) -> Running {
        let tasks = Tasks::default();
        let free = Arc::new(Semaphore::new(self.inner.config.max_connections));
        for listener in listeners {
            let accepting = accept(self.clone(), listener, free.clone(), tasks.clone());
            tasks.spawn(tracing::info_span!("registry"), accepting);
        }
        Running {
            tasks,
            drain_timeout: self.inner.config.drain_timeout,
        }
    }
}

/// The open door. It has tasks of its own, because it stops before the rooms behind it do.
#[derive(Debug)]
pub struct Running {
    tasks: Tasks,
    drain_timeout: Duration,
}

impl Running {
    /// Refuses new connections, ends idle ones, and gives running answers `drain_timeout` to
    /// finish before they are cut.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting; the connections end by themselves.
    pub async fn drain(self) {
        let cut = self.tasks.stop(self.drain_timeout + LINGER * 2).await;
        if cut > 0 {
            tracing::warn!(connections = cut, "left open after drain");
        }
    }
}

async fn accept(registry: Registry, listener: TcpListener, free: Arc<Semaphore>, tasks: Tasks) {
    let mut stopping = std::pin::pin!(tasks.stopping());
    loop {
        let next = async {
            let permit = free.clone().acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            (permit, accept_one(&listener).await)
        };
        let (permit, stream) = tokio::select! {
            biased;
            () = &mut stopping => return,
            accepted = next => accepted,
        };
        let connection = Connection::new(registry.clone(), stream, permit);
        let stopping = tasks.stopping();
        tasks.spawn(tracing::Span::none(), connection.run(stopping));
    }
}

/// Accepts a connection, however often that fails.
async fn accept_one(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Heads and the last piece of a body must not wait for the client's
                // acknowledgement of the piece before.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
