//! The filler: one task per transfer that gets the bytes, verifies the whole and commits it.
//!
//! It outlives the clients that caused it and is never slowed by one. It tries the origins that
//! its waiters named, resumes by Range after a break, and opens further segments for readers far
//! ahead. It does not decide what a client is told.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::store::{Sidecar, Store};
use crate::task::Tasks;

use super::error::PullError;
use super::feed::Feed;
use super::negative::Negative;
use super::origin::Origin;
use super::sink::Sink;
use super::table::Table;
use super::transfer::{Phase, State, Transfer};

/// Most fills that go on without anybody waiting for them.
const MAX_ORPHANS: usize = 8;

/// What all fillers of a node share.
#[derive(Clone, Debug)]
pub(super) struct Fillers {
    pub(super) store: Store,
    pub(super) tasks: Tasks,
    pub(super) negative: Negative,
    pub(super) table: Table,
    orphans: Arc<Semaphore>,
    /// Tells fills without waiters to make way.
    pressure: Arc<Notify>,
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
    pub(super) fn new(store: Store, tasks: Tasks, negative: Negative) -> Self {
        Self {
            store,
            tasks,
            negative,
            table: Table::default(),
            orphans: Arc::new(Semaphore::new(MAX_ORPHANS)),
            pressure: Arc::default(),
        }
    }

    /// Starts the filler of a transfer that was just entered into the table.
    pub(super) fn start(&self, transfer: &Arc<Transfer>, far: mpsc::Receiver<u64>) {
        let span = tracing::info_span!("pull", blob.digest = %transfer.digest);
        let filler = Filler {
            shared: self.clone(),
            transfer: Arc::clone(transfer),
        };
        self.tasks.spawn(span, filler.run(far));
    }
}

struct Filler {
    shared: Fillers,
    transfer: Arc<Transfer>,
}

impl Filler {
    async fn run(self, mut far: mpsc::Receiver<u64>) {
        let digest = self.transfer.digest;
        let result = match self.shared.store.blob(&digest).await {
            // It was committed between the miss and this start.
            Ok(Some(blob)) => {
                self.transfer.found(blob);
                Ok(())
            }
            Ok(None) => self.fill(&mut far).await,
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(()) => self.shared.table.remove(&self.transfer),
            Err(error) => {
                tracing::debug!(%error, "the transfer failed");
                self.shared.table.fail(&self.transfer, error);
            }
        }
    }

    /// Tries origins until one has supplied what is missing.
    async fn fill(&self, far: &mut mpsc::Receiver<u64>) -> Result<(), PullError> {
        loop {
            let sink = self.open_sink().await?;
            loop {
                let candidate = self.transfer.candidates().next();
                let Some(origin) = candidate else { break };
                match self.fetch(&origin, &sink, far).await {
                    Ok(()) => return self.finish(&origin, &sink).await,
                    Err(Halt::Origin(error)) => self.refused(&origin, error),
                    Err(Halt::Transfer(error)) => {
                        self.suspend(&sink).await;
                        return Err(error);
                    }
                }
            }
            // What is here is kept before the transfer leaves the table, so that the next one
            // finds it; whoever joined meanwhile with another origin is served from it, too.
            self.suspend(&sink).await;
            self.shared.table.next_candidate(&self.transfer)?;
            if sink.is_relaying() {
                // What was relayed is gone and cannot be hashed again: whoever asks next begins.
                return Err(PullError::Stopped);
            }
        }
    }

    /// Opens the part, with what an earlier transfer left in it.
    async fn open_sink(&self) -> Result<Sink, PullError> {
        let sink = Sink::open(&self.shared.store, &self.transfer.digest).await?;
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
        let subject = self.transfer.digest.to_string();
        self.shared.negative.remember(origin, &subject, &error);
        self.transfer.candidates().fail(origin, error);
        self.transfer.change(|_| ());
    }

    /// Fetches all that is missing from one origin.
    async fn fetch(
        &self,
        origin: &Origin,
        sink: &Sink,
        far: &mut mpsc::Receiver<u64>,
    ) -> Result<(), Halt> {
        let subject = self.transfer.digest.to_string();
        self.shared
            .negative
            .check(origin, &subject)
            .map_err(Halt::Origin)?;
        let feed = Feed {
            transfer: &self.transfer,
            origin,
            sink,
        };
        let mut segments = FuturesUnordered::new();
        let unneeded = self.unneeded(sink);
        tokio::pin!(unneeded);
        loop {
            if segments.is_empty() {
                let gap = self.transfer.change(State::claim);
                let Some(gap) = gap else { return Ok(()) };
                segments.push(feed.run(gap));
            }
            tokio::select! {
                Some(result) = segments.next() => match result {
                    // What a failed segment leaves is claimed again when the others are done.
                    Err(Halt::Origin(error)) if !segments.is_empty() => {
                        tracing::debug!(%error, "a segment failed, others go on");
                    }
                    result => result?,
                },
                Some(position) = far.recv() => {
                    if let Some(id) = self.transfer.change(|state| state.split(position)) {
                        segments.push(feed.run(id));
                    }
                }
                error = &mut unneeded => return Err(Halt::Transfer(error)),
            }
        }
    }

    /// Resolves when the fill should stop although it could go on: the node stops, or nobody
    /// waits and there are too many such fills, or others need the room.
    async fn unneeded(&self, sink: &Sink) -> PullError {
        let stopping = self.shared.tasks.stopping();
        tokio::select! {
            () = stopping => {}
            () = self.orphaned(sink) => {}
        }
        PullError::Stopped
    }

    async fn orphaned(&self, sink: &Sink) {
        let mut waiters = self.transfer.watch_waiters();
        let mut permit = None;
        loop {
            let pressed = self.shared.pressure.notified();
            if *waiters.borrow_and_update() > 0 {
                permit = None;
            } else if sink.is_relaying() {
                return;
            } else if permit.is_none() {
                let free = Arc::clone(&self.shared.orphans).try_acquire_owned();
                let Ok(free) = free else { return };
                permit = Some(free);
            }
            tokio::select! {
                changed = waiters.changed() => if changed.is_err() { return },
                () = pressed, if permit.is_some() => return,
            }
        }
    }

    /// Verifies the digest of the whole and commits it.
    async fn finish(&self, origin: &Origin, sink: &Sink) -> Result<(), PullError> {
        let (size, written) = {
            let state = self.transfer.state();
            (state.size.unwrap_or(0), state.written.clone())
        };
        let actual = sink.finish(size, written).await?;
        let expected = self.transfer.digest;
        if actual != expected {
            tracing::warn!(%actual, %origin, "an upstream sent wrong bytes; they are dropped");
            sink.stop_storing().await;
            return Err(PullError::Corrupt { expected, actual });
        }
        self.transfer.change(|state| state.phase = Phase::Verified);
        let sidecar = Sidecar::new(None, origin.provenance());
        if let Err(error) = sink.commit(size, sidecar).await {
            // Everybody who waits is served from the open file; only the next pull suffers.
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a verified blob could not be stored"
            );
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
