//! Lists everything that is held, once for all who have to be told at the time.
//!
//! When members come or go, everybody has to be told anew, and reading all names once for each of
//! 150 members would keep a processor busy for minutes. Who comes while a listing runs takes part
//! in the next. Nothing is kept but a batch for each listener; the slowest sets the pace, and is cut
//! off by the peer room when it stands still.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::placement::{Key, Placement};
use millrace_protocol::wire::message::MAX_TOLD_KEYS;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::store::{Shelf, Store, StoreError};
use crate::task::Tasks;

/// Batches that wait for a listener: one that is sent and one that is made.
const MAX_WAITING: usize = 2;

/// What a listener is given; its end without [`Batch::End`] means that not all could be listed.
#[derive(Debug)]
pub(super) enum Batch {
    /// Some of what is held and the listener is told of.
    Held(Vec<Key>),
    /// That was all.
    End,
}

/// The listings of a node; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Listings {
    store: Store,
    tasks: Tasks,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Who takes part in the next listing.
    waiting: Vec<Listener>,
    /// Whether a task lists.
    running: bool,
}

#[derive(Debug)]
struct Listener {
    to: NodeId,
    placement: Arc<Placement>,
    batches: mpsc::Sender<Batch>,
    keys: Vec<Key>,
}

impl Listings {
    pub(super) fn new(store: Store, tasks: Tasks) -> Self {
        Self {
            store,
            tasks,
            queue: Arc::default(),
        }
    }

    /// Takes part in the next listing, as `placement` wants it for `to`.
    pub(super) fn join(&self, to: NodeId, placement: &Arc<Placement>) -> mpsc::Receiver<Batch> {
        let (batches, listed) = mpsc::channel(MAX_WAITING);
        let mut queue = self.queue.lock();
        queue.waiting.push(Listener {
            to,
            placement: Arc::clone(placement),
            batches,
            keys: Vec::new(),
        });
        if !queue.running {
            queue.running = true;
            self.start();
        }
        listed
    }

    fn start(&self) {
        let listings = self.clone();
        let stopping = self.tasks.stopping();
        self.tasks
            .spawn(tracing::info_span!("holdings.list"), async move {
                tokio::select! {
                    () = listings.run() => {}
                    () = stopping => {}
                }
            });
    }

    /// Lists until nobody waits.
    async fn run(self) {
        loop {
            let listeners = {
                let mut queue = self.queue.lock();
                queue.running = !queue.waiting.is_empty();
                std::mem::take(&mut queue.waiting)
            };
            if listeners.is_empty() {
                return;
            }
            if let Err(error) = self.list(Groups::of(listeners)).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "what is held cannot be listed; others have to ask for it"
                );
            }
        }
    }

    async fn list(&self, mut groups: Groups) -> Result<(), StoreError> {
        for shelf in Shelf::all() {
            for digest in self.store.held(shelf).await? {
                groups.give(Key::of_digest(&digest)).await;
            }
            if groups.is_deserted() {
                return Ok(());
            }
        }
        groups.end().await;
        Ok(())
    }
}

/// The listeners of one listing, by the placement that they want; rarely more than one.
struct Groups(HashMap<u64, Group>);

struct Group {
    placement: Arc<Placement>,
    listeners: HashMap<NodeId, Vec<Listener>>,
}

impl Groups {
    fn of(listeners: Vec<Listener>) -> Self {
        let mut groups: HashMap<u64, Group> = HashMap::new();
        for listener in listeners {
            let fingerprint = listener.placement.fingerprint();
            let group = groups.entry(fingerprint).or_insert_with(|| Group {
                placement: Arc::clone(&listener.placement),
                listeners: HashMap::new(),
            });
            group
                .listeners
                .entry(listener.to)
                .or_default()
                .push(listener);
        }
        Self(groups)
    }

    /// Gives a key to whoever is told of it.
    async fn give(&mut self, key: Key) {
        for group in self.0.values_mut() {
            for to in group.placement.told(key) {
                for listener in group.listeners.get_mut(&to).into_iter().flatten() {
                    listener.give(key).await;
                }
            }
        }
    }

    fn is_deserted(&self) -> bool {
        self.listeners()
            .all(|listener| listener.batches.is_closed())
    }

    async fn end(self) {
        let groups = self.0.into_values();
        for mut listener in groups.flat_map(|group| group.listeners.into_values().flatten()) {
            listener.flush().await;
            // It has gone: nobody has to be told.
            let _ = listener.batches.send(Batch::End).await;
        }
    }

    fn listeners(&self) -> impl Iterator<Item = &Listener> {
        let groups = self.0.values();
        groups.flat_map(|group| group.listeners.values().flatten())
    }
}

impl Listener {
    async fn give(&mut self, key: Key) {
        self.keys.push(key);
        if self.keys.len() >= MAX_TOLD_KEYS {
            self.flush().await;
        }
    }

    async fn flush(&mut self) {
        let keys = std::mem::take(&mut self.keys);
        if !keys.is_empty() {
            // Likewise.
            let _ = self.batches.send(Batch::Held(keys)).await;
        }
    }
}
