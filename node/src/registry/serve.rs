//! Accepting connections until the node stops.
//!
//! When it does, the listener is closed at once, so that new connections are refused and clients
//! go elsewhere (CLIENT-CONTRACT F7); running answers may finish.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::task::Tasks;

use super::Registry;
use super::connection::{Connection, LINGER};
use super::door::{Accepted, Door, Listener};

/// Pause after accepting has failed. The usual reason is that the process has no descriptor left,
/// which another try at once does not change.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long no try may fail before accepting counts as possible again. Where descriptors are short,
/// each connection that ends makes room for one: that is no end of the shortage.
const RECOVERED_AFTER: Duration = Duration::from_secs(5);

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
    let mut entrance = Entrance {
        listener,
        failures: None,
    };
    let terms = Arc::new(terms);
    let mut stopping = std::pin::pin!(tasks.stopping());
    loop {
        let next = async {
            let permit = free.clone().acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            (permit, entrance.accept().await)
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

/// A listener, and how it has failed of late.
struct Entrance {
    listener: Listener,
    failures: Option<Failures>,
}

/// Tries that failed since accepting last went well.
struct Failures {
    count: u64,
    last: Instant,
}

impl Entrance {
    /// Accepts a connection, however often that fails. The log says when that begins and when it is
    /// over, not each time.
    async fn accept(&mut self) -> Accepted {
        loop {
            match self.next().await {
                Some(Ok(accepted)) => return accepted,
                Some(Err(error)) => {
                    self.note_failure(&error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                None => self.note_recovery(),
            }
        }
    }

    /// Waits for a connection, or `None` once the failures are over.
    async fn next(&self) -> Option<io::Result<Accepted>> {
        let next = self.listener.accept();
        match &self.failures {
            None => Some(next.await),
            Some(Failures { last, .. }) => {
                let recovered = *last + RECOVERED_AFTER;
                tokio::time::timeout_at(recovered, next).await.ok()
            }
        }
    }

    fn note_failure(&mut self, error: &io::Error) {
        let last = Instant::now();
        let before = self.failures.as_ref().map_or(0, |failures| failures.count);
        if before == 0 {
            tracing::warn!(
                %error,
                "cannot accept connections; clients wait, and it is tried again and again"
            );
        }
        let count = before + 1;
        self.failures = Some(Failures { count, last });
    }

    fn note_recovery(&mut self) {
        if let Some(Failures { count, .. }) = self.failures.take() {
            tracing::info!(failures = count, "connections are accepted again");
        }
    }
}
