//! What comes into the store and goes out of it, for whoever keeps others informed.
//!
//! Nothing is kept for those who are slow: they are told that they missed something, and list
//! everything again with [`Store::held`]. *Went* is said before the file goes and *came* after it
//! is there, so who believes the last word takes a file for present that is just going, and never
//! the reverse.

use std::{fs, io};

use millrace_protocol::oci::{Algorithm, Digest};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::error::{FileContext, StoreError};
use super::{Inner, Store, blocking, unreadable};

/// Changes that wait for the slowest listener, of some 80 bytes each: more than a fleet pulls while
/// a listener works on one.
const MAX_WAITING: usize = 4096;

/// One change of what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The content is there; it may have been there before.
    Came(Digest),
    /// The content goes now, or has gone.
    Went(Digest),
}

/// The changes since [`Store::changes`] was called.
#[derive(Debug)]
pub struct Changes(broadcast::Receiver<Change>);

/// Some changes were not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes of the store were missed")]
pub struct Missed;

impl Changes {
    /// Returns the next change; waits for ever when the store is gone.
    ///
    /// # Errors
    /// [`Missed`] when more changed than is kept; what comes then follows what was lost.
    /// # Cancel safety
    /// No change is lost when dropped.
    pub async fn next(&mut self) -> Result<Change, Missed> {
        match self.0.recv().await {
            Ok(change) => Ok(change),
            Err(RecvError::Lagged(_)) => Err(Missed),
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// A part of the store that can be listed at once: a 512th of all names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shelf {
    algorithm: Algorithm,
    fan: u8,
}

impl Shelf {
    /// Yields all shelves.
    pub fn all() -> impl Iterator<Item = Self> {
        let algorithms = Algorithm::ALL.into_iter();
        algorithms.flat_map(|algorithm| (0..=u8::MAX).map(move |fan| Self { algorithm, fan }))
    }
}

/// Tells the listeners.
#[derive(Debug)]
pub(super) struct Announcer(broadcast::Sender<Change>);

impl Default for Announcer {
    fn default() -> Self {
        Self(broadcast::Sender::new(MAX_WAITING))
    }
}

impl Announcer {
    pub(super) fn announce(&self, change: Change) {
        // Nobody listens.
        let _ = self.0.send(change);
    }
}

impl Store {
    /// Listens to what changes from now on.
    pub fn changes(&self) -> Changes {
        Changes(self.inner.announcer.0.subscribe())
    }

    /// Lists the blobs and manifests of a shelf, in no order.
    ///
    /// The files are looked at, not the index, so it is right while the index is made. Where the folder
    /// cannot be read, nothing in it can be given either: it counts as empty, which is logged.
    ///
    /// # Errors
    /// This node lacks what it takes to read the folder.
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn held(&self, shelf: Shelf) -> Result<Vec<Digest>, StoreError> {
        let inner = self.inner.clone();
        blocking(move || inner.held(shelf)).await
    }
}

impl Inner {
    fn held(&self, Shelf { algorithm, fan }: Shelf) -> Result<Vec<Digest>, StoreError> {
        let folder = self.layout.fan(algorithm, fan);
        let listed: io::Result<Vec<_>> = fs::read_dir(&folder).and_then(Iterator::collect);
        let entries = match listed {
            Ok(entries) => entries,
            Err(error) if unreadable::is_shortage(&error) => {
                return Err(error).doing("list", &folder);
            }
            Err(error) => {
                let is_none = error.kind() == io::ErrorKind::NotFound;
                if !is_none && self.unlisted.is_due() {
                    let path = folder.display();
                    tracing::error!(%path, %error, "blobs cannot be listed; others are not told of them");
                }
                return Ok(Vec::new());
            }
        };
        let mut held = Vec::new();
        for entry in entries {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            // Sidecars and what else lies there have names that are no digest.
            let name = entry.file_name();
            let text = format!("{}:{}", algorithm.name(), name.to_string_lossy());
            held.extend(text.parse::<Digest>());
        }
        Ok(held)
    }
}
