//! The filler: one task per transfer that gets the bytes, verifies the whole and commits it.
//!
//! It outlives the clients that caused it and is never slowed by one. It tries the origins that
//! its waiters named, resumes by Range after a break, and opens further segments for readers far
//! ahead. In a cluster it asks other nodes before an upstream. Whether it may begin and go on is said
//! by its `permit`. It does not decide what a client is told.

mod permit;

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::placement::Key;
use tokio::sync::mpsc;

use crate::store::{Sidecar, Store};
use crate::task::Tasks;

use super::Surroundings;
use super::borrow::Borrow;
use super::chains::Chains;
use super::claimed::Claimed;
use super::error::PullError;
use super::feed::Feed;
use super::negative::{Negative, Wanted};
use super::neighbours::Neighbours;
use super::origin::Origin;
use super::orphans::Orphans;
use super::replicate::{Kind, Replicas};
use super::sink::Sink;
use super::table::Table;
use super::transfer::{Phase, State, Supply, Transfer};
use super::waits::Waits;
use permit::Permit;

/// What all fillers of a node share.
#[derive(Clone, Debug)]
pub(super) struct Fillers {
    pub(super) store: Store,
    pub(super) tasks: Tasks,
    pub(super) negative: Negative,
    pub(super) table: Table,
    pub(super) chains: Chains,
    neighbours: Option<Neighbours>,
    replicas: Option<Replicas>,
    waits: Waits,
    orphans: Orphans,
}

/// Why fetching from one origin ended early.
#[derive(Debug)]
pub(super) enum Halt {
    /// This origin cannot supply the blob; another may.
    Origin(PullError),
    /// Nobody can, or nobody needs it now.
    Transfer(PullError),
}

impl Fillers {
    pub(super) fn new(surroundings: Surroundings) -> Self {
        let Surroundings {
            store,
            tasks,
            negative,
            neighbours,
            replicas,
            waits,
            orphans,
        } = surroundings;
        Self {
            chains: Chains::new(store.clone(), tasks.clone()),
            store,
            tasks,
            negative,
            table: Table::default(),
            neighbours,
            replicas,
            waits,
            orphans,
        }
    }

    /// Starts the filler of a transfer that was just entered into the table.
    pub(super) fn start(&self, transfer: &Arc<Transfer>, far: mpsc::Receiver<u64>) {
        let span = tracing::info_span!("pull", blob.digest = %transfer.digest);
        let filler = Filler {
            shared: self.clone(),
            transfer: Arc::clone(transfer),
            permit: Permit::new(self, transfer),
        };
        self.tasks.spawn(span, filler.run(far));
    }

    /// Ends the fills that nobody waits for, and those that everybody leaves from now on.
    pub(super) fn end_orphans(&self) {
        self.orphans.close();
    }
}

struct Filler {
    shared: Fillers,
    transfer: Arc<Transfer>,
    permit: Permit,
}

impl Filler {
    async fn run(self, mut far: mpsc::Receiver<u64>) {
        let digest = self.transfer.digest;
        let result = match self.shared.store.blob(&digest).await {
            // It was committed between the miss and this start.
            Ok(Some(blob)) => {
                let provenance = self.shared.store.provenance(&digest).await;
                self.transfer.found(blob, provenance);
                Ok(())
            }
            Ok(None) => self.fill(&mut far).await,
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(()) => {
                self.shared.table.remove(&self.transfer);
                // What is only passed on cannot be had of this node.
                let is_kept = self.transfer.state().pin.is_some();
                if let Some(replicas) = &self.shared.replicas
                    && is_kept
                {
                    let origins = self.transfer.candidates().origin_names();
                    replicas.copy(Kind::Blob, &digest, origins);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the transfer failed");
                self.shared.table.fail(&self.transfer, error);
            }
        }
    }

    /// Asks other nodes, then origins, until what is missing is here.
    async fn fill(&self, far: &mut mpsc::Receiver<u64>) -> Result<(), PullError> {
        loop {
            self.permit.granted().await?;
            let sink = self.open_sink().await?;
            let supplied = match self.supply(&sink, far).await {
                Ok(true) => return self.finish(&sink).await,
                Err(error) if error.is_corrupt() => {
                    sink.stop_storing().await;
                    return Err(error);
                }
                supplied => supplied,
            };
            // What is here is kept before the transfer leaves the table, so that the next one
            // finds it; whoever joined meanwhile is served from it, too.
            self.suspend(&sink).await;
            match supplied {
                Err(PullError::Stopped) => self.permit.leave()?,
                Err(error) => return Err(error),
                Ok(_) => drop(self.shared.table.next_candidate(&self.transfer)?),
            }
            if sink.is_relaying() {
                // What was relayed is gone and cannot be hashed again: whoever asks next begins.
                return Err(PullError::Stopped);
            }
        }
    }

    /// Gets what is missing from whoever has it. Returns whether all is here.
    ///
    /// # Errors
    /// The transfer has to end, although there may be others to ask.
    async fn supply(&self, sink: &Sink, far: &mut mpsc::Receiver<u64>) -> Result<bool, PullError> {
        let key = Key::of_digest(&self.transfer.digest);
        let _waiting = self.shared.waits.begin(key);
        if let Some(neighbours) = self.neighbours()
            && self.borrow(neighbours, sink, far).await?
        {
            return Ok(true);
        }
        if !self.transfer.is_awaited() {
            return Err(PullError::Stopped);
        }
        loop {
            let candidate = self.transfer.candidates().next();
            let Some(origin) = candidate else {
                return Ok(false);
            };
            self.transfer.change(|state| {
                state.supply = Supply::Upstream;
                state.has_asked = true;
            });
            match self.fetch(&origin, sink, far).await {
                Ok(()) => return Ok(true),
                Err(Halt::Origin(error)) => self.refused(&origin, error),
                Err(Halt::Transfer(error)) => return Err(error),
            }
        }
    }

    fn neighbours(&self) -> Option<&Neighbours> {
        self.shared.neighbours.as_ref()
    }

    /// Gets what is missing from other nodes. Returns whether all is here.
    async fn borrow(
        &self,
        neighbours: &Neighbours,
        sink: &Sink,
        far: &mut mpsc::Receiver<u64>,
    ) -> Result<bool, PullError> {
        let borrow = Borrow {
            transfer: &self.transfer,
            sink,
            neighbours,
        };
        let withdrawn = self.permit.withdrawn(sink);
        let borrowed = tokio::select! {
            borrowed = borrow.run(far) => borrowed,
            error = withdrawn => Err(error),
        };
        if !matches!(borrowed, Ok(true)) {
            self.transfer.change(|state| {
                state.supply = Supply::Nobody;
                state.waiting.end();
            });
        }
        borrowed
    }

    /// Opens the part, with what an earlier transfer left in it.
    async fn open_sink(&self) -> Result<Sink, PullError> {
        let in_cluster = self.shared.neighbours.is_some();
        let Fillers { store, orphans, .. } = &self.shared;
        let sink = Sink::open(store, &self.transfer.digest, in_cluster, orphans).await?;
        if let Some((written, reader)) = sink.saved().await {
            self.transfer.change(|state| {
                state.written = written;
                state.file = Some(reader);
            });
        }
        Ok(sink)
    }

    /// Records an origin's failure and lets those see it who named that origin.
    fn refused(&self, origin: &Origin, error: PullError) {
        let wanted = Wanted::Blob(self.transfer.digest);
        self.shared.negative.remember(origin, wanted, &error);
        self.transfer.candidates().fail(origin, error);
        self.transfer.change(|state| state.fetched = None);
    }

    /// Fetches all that is missing from one origin.
    async fn fetch(
        &self,
        origin: &Origin,
        sink: &Sink,
        far: &mut mpsc::Receiver<u64>,
    ) -> Result<(), Halt> {
        let wanted = Wanted::Blob(self.transfer.digest);
        let negative = &self.shared.negative;
        negative.check(origin, wanted).map_err(Halt::Origin)?;
        let feed = Feed {
            transfer: &self.transfer,
            origin,
            sink,
        };
        sink.settled().await;
        let mut segments = FuturesUnordered::new();
        let withdrawn = self.permit.withdrawn(sink);
        tokio::pin!(withdrawn);
        loop {
            if segments.is_empty() {
                let gap = self.transfer.change(State::claim);
                let Some(gap) = gap else { return Ok(()) };
                segments.push(feed.run(Claimed::new(&self.transfer, gap)));
            }
            tokio::select! {
                Some(result) = segments.next() => match result {
                    // What a failed segment leaves is claimed again when the others are done.
                    Err(Halt::Origin(error)) if !segments.is_empty() => {
                        tracing::debug!(%error, "a segment failed, others go on");
                    }
                    result => result?,
                },
                // What is relayed comes in order.
                Some(position) = far.recv(), if !sink.is_relaying() => {
                    let start = self.far_start(position);
                    if let Some(id) = self.transfer.change(|state| state.split(start, position)) {
                        segments.push(feed.run(Claimed::new(&self.transfer, id)));
                    }
                }
                error = &mut withdrawn => return Err(Halt::Transfer(error)),
            }
        }
    }

    /// Returns where to begin for a reader far ahead: others can be given whole chunks only.
    fn far_start(&self, position: u64) -> u64 {
        match self.neighbours() {
            Some(_) => position - position % CHUNK_BYTES,
            None => position,
        }
    }

    /// Verifies the digest of the whole and commits it.
    async fn finish(&self, sink: &Sink) -> Result<(), PullError> {
        let (size, written, provenance) = {
            let state = self.transfer.state();
            let size = state.size.unwrap_or(0);
            (size, state.written.clone(), state.fetched_as())
        };
        let actual = sink.finish(size, written).await?;
        let expected = self.transfer.digest;
        if actual != expected {
            let fetched_as = provenance.iter().map(ToString::to_string);
            let origins = fetched_as.collect::<Vec<_>>().join(", ");
            tracing::warn!(%actual, origins, "wrong bytes were sent; they are dropped");
            sink.stop_storing().await;
            return Err(PullError::Corrupt { expected, actual });
        }
        let chain = self.transfer.change(|state| {
            state.learn_hashed(sink);
            state.phase = Phase::Verified;
            state.chain.clone()
        });
        self.shared.chains.put(&expected, chain);
        let sidecar = Sidecar::of(None, provenance);
        match sink.commit(size, sidecar).await {
            Ok(pin) => self.transfer.change(|state| state.pin = pin),
            // Everybody who waits is served from the open file; only the next pull suffers.
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "a verified blob could not be stored"
            ),
        }
        Ok(())
    }

    /// Keeps what was written for a later transfer.
    async fn suspend(&self, sink: &Sink) {
        let written = self.transfer.state().written.clone();
        if let Err(error) = sink.suspend(written).await {
            tracing::warn!(%error, "an unfinished part could not be kept");
        }
    }
}
