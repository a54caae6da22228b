//! Accepting connections until the node stops.
//!
//! When it does, the listener is closed at once, so that new connections are refused and clients
//! go elsewhere (CLIENT-CONTRACT F7); running answers may finish.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::task::Tasks;

use super::Registry;
use super::connection::{Connection, LINGER};
use super::door::{Accepted, Door, Listener};

/// Pause after accepting has failed. The usual reason is that the process has no descriptor left,
/// which another try at once does not change.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Registry {
    /// Starts to answer at these doors, and returns.
    pub fn serve<D: Into<Door>>(&self, doors: Vec<D>) -> Running {
        let tasks = Tasks::default();
        for door in doors {
            // Each its own: a crowd at the public door must not keep this host's builds waiting.
            let free = Arc::new(Semaphore::new(self.inner.config.max_connections));
            let accepting = accept(self.clone(), door.into(), free, tasks.clone());
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

async fn accept(registry: Registry, door: Door, free: Arc<Semaphore>, tasks: Tasks) {
    let Door { listener, terms } = door;
    let terms = Arc::new(terms);
    let mut stopping = std::pin::pin!(tasks.stopping());
    loop {
        let next = async {
            let permit = free.clone().acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            (permit, accept_one(&listener).await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = &mut stopping => return,
            accepted = next => accepted,
        };
        let (registry, terms) = (registry.clone(), Arc::clone(&terms));
        let running = Connection::run(registry, terms, (accepted, permit), tasks.stopping());
        tasks.spawn(tracing::Span::none(), running);
    }
}

/// Accepts a connection, however often that fails.
async fn accept_one(listener: &Listener) -> Accepted {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
