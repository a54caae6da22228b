//! Tells another node what is here of that which it is responsible for, and what changes about it.
//!
//! It listens to the store first, then has everything listed, then tells changes as they come. When
//! it cannot keep in step, or members come or go so that the other node is responsible for
//! something else, it begins anew.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::placement::{Key, Placement};
use millrace_protocol::wire::message::{HoldingsChange, MAX_TOLD_KEYS};
use tokio::sync::{mpsc, watch};

use crate::pull::neighbours::Neighbours;
use crate::pull::rank::Rank;
use crate::store::{Change, Changes};

use super::Shared;
use super::listing::Batch;

/// Tells `to` of holdings until it has heard enough.
pub(super) fn tell(shared: Arc<Shared>, to: NodeId) -> BoxStream<'static, HoldingsChange> {
    let Some(neighbours) = shared.puller.inner.neighbours.clone() else {
        return stream::empty().boxed();
    };
    let telling = Telling::new(shared, neighbours, to);
    let changes = stream::unfold(telling, |mut telling| async move {
        let change = telling.next().await?;
        Some((change, telling))
    });
    changes.boxed()
}

struct Telling {
    shared: Arc<Shared>,
    neighbours: Neighbours,
    to: NodeId,
    views: watch::Receiver<u64>,
    /// By which it is told.
    placement: Arc<Placement>,
    changes: Changes,
    phase: Phase,
    /// What comes next.
    queue: VecDeque<HoldingsChange>,
}

enum Phase {
    /// Everything that was told is void.
    Beginning,
    /// What is here is being listed.
    Listing(mpsc::Receiver<Batch>),
    /// What changes is told.
    InSync,
}

/// What there is to do next.
enum Event {
    /// Members came or went.
    Moved,
    Listed(Option<Batch>),
    Changed(Change),
    /// Changes were missed.
    Missed,
    /// There will be no more views.
    Ended,
}

impl Telling {
    fn new(shared: Arc<Shared>, neighbours: Neighbours, to: NodeId) -> Self {
        let changes = shared.puller.inner.store.changes();
        Self {
            views: neighbours.changes(),
            placement: Arc::clone(neighbours.view().placement()),
            changes,
            shared,
            neighbours,
            to,
            phase: Phase::Beginning,
            queue: VecDeque::new(),
        }
    }

    /// Returns what is to be told next; `None` when no more can be told.
    async fn next(&mut self) -> Option<HoldingsChange> {
        loop {
            if let Some(change) = self.queue.pop_front() {
                return Some(change);
            }
            if matches!(self.phase, Phase::Beginning) {
                self.begin();
                continue;
            }
            match self.event().await {
                Event::Moved | Event::Missed => self.phase = Phase::Beginning,
                Event::Listed(Some(Batch::Held(keys))) => return Some(HoldingsChange::Have(keys)),
                Event::Listed(Some(Batch::End)) => {
                    self.phase = Phase::InSync;
                    return Some(HoldingsChange::InSync);
                }
                // Where it could not be listed, the other node asks instead, and comes back.
                Event::Listed(None) | Event::Ended => return None,
                Event::Changed(change) => self.queue.extend(self.told(change)),
            }
        }
    }

    /// Begins, or begins anew.
    fn begin(&mut self) {
        // Listened to from before the listing on, so that nothing falls in between. The view is
        // older than what is found to be on its way: a fetch that is not yet among it will ask by
        // this view or a newer one.
        self.changes = self.shared.puller.inner.store.changes();
        self.placement = Arc::clone(self.neighbours.view().placement());
        let placement = self.placement.fingerprint();
        self.queue.push_back(HoldingsChange::Began { placement });
        let fetching = self.fetching();
        let fetching = fetching.chunks(MAX_TOLD_KEYS).map(<[Key]>::to_vec);
        self.queue.extend(fetching.map(HoldingsChange::Fetching));
        let listing = self.shared.listings.join(self.to, &self.placement);
        self.phase = Phase::Listing(listing);
    }

    async fn event(&mut self) -> Event {
        let fingerprint = self.placement.fingerprint();
        let neighbours = &self.neighbours;
        let moved = self
            .views
            .wait_for(|_| neighbours.view().placement().fingerprint() != fingerprint);
        let news = async {
            match &mut self.phase {
                Phase::Listing(batches) => Event::Listed(batches.recv().await),
                Phase::Beginning | Phase::InSync => match self.changes.next().await {
                    Ok(change) => Event::Changed(change),
                    Err(_) => Event::Missed,
                },
            }
        };
        tokio::select! {
            biased;
            moved = moved => moved.map_or(Event::Ended, |_| Event::Moved),
            event = news => event,
        }
    }

    /// Returns what to tell of a change of the store.
    fn told(&self, change: Change) -> Option<HoldingsChange> {
        let (Change::Came(digest) | Change::Went(digest)) = change;
        let key = Key::of_digest(&digest);
        if !self.placement.is_told(&self.to, key) {
            return None;
        }
        Some(match change {
            Change::Came(_) => HoldingsChange::Have(vec![key]),
            Change::Went(_) => HoldingsChange::Lost(vec![key]),
        })
    }

    /// Returns what is on its way from an upstream, or about to be.
    fn fetching(&self) -> Vec<Key> {
        let inner = &self.shared.puller.inner;
        let transfers = inner.fillers.table.all();
        let fetching = transfers
            .iter()
            .filter(|transfer| transfer.rank() == Rank::Home || transfer.state().has_asked);
        let blobs = fetching.map(|transfer| transfer.digest);
        let keys = blobs
            .chain(inner.manifests.all_fetching())
            .map(|digest| Key::of_digest(&digest));
        keys.filter(|key| self.placement.is_told(&self.to, *key))
            .collect()
    }
}
