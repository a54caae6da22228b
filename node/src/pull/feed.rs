//! Feeding one segment from one origin: request, receive, write in batches, resume after a break.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use tokio::time::Instant;

use crate::store::StoreError;
use crate::upstream::{BlobBody, Defect, FetchError, Retry, Subject};

use super::claimed::Claimed;
use super::error::PullError;
use super::fill::Halt;
use super::origin::Origin;
use super::pending::{resolve, sleep_until};
use super::relay::relay;
use super::segment::SegmentId;
use super::sink::{Sink, Taken};
use super::transfer::{Phase, State, Transfer};

/// Most bytes that wait for the write before them; then the upstream has to wait. As many are
/// being written, and the HTTP client's buffers behind them are up to several times as large, for
/// each of 64 requests at a time.
const MAX_PENDING_BYTES: usize = 512 * 1024;

/// The same for a download that has made room for others: of these there are up to 448.
const MAX_PENDING_BYTES_OF_MANY: usize = 64 * 1024;

/// From this size on a batch is written at once.
const BATCH_BYTES: usize = 256 * 1024;

/// How long a smaller batch waits for more, once the blob flows: it bounds how often every
/// reader is woken, at a delay that no client notices.
const BATCH_DELAY: Duration = Duration::from_millis(5);

/// Most attempts in a row that bring no byte.
const MAX_ATTEMPTS: usize = 5;

/// What one segment is fed with.
#[derive(Clone, Copy)]
pub(super) struct Feed<'a> {
    pub(super) transfer: &'a Arc<Transfer>,
    pub(super) origin: &'a Origin,
    pub(super) sink: &'a Sink,
}

impl Feed<'_> {
    /// Fetches a segment to its end.
    ///
    /// The end may move closer meanwhile, when a reader far ahead splits the segment.
    ///
    /// # Errors
    /// [`Halt`]. What the segment lacks can be claimed again.
    /// # Cancel safety
    /// So it can when the future is dropped.
    pub(super) async fn run(self, segment: Claimed<'_>) -> Result<(), Halt> {
        let mut attempts = backoff();
        loop {
            let (position, end) = segment.bounds();
            if position >= end {
                return Ok(());
            }
            let Err(halt) = self.attempt(segment.id(), position).await else {
                continue;
            };
            let Halt::Origin(error) = &halt else {
                return Err(halt);
            };
            if segment.bounds().0 > position {
                attempts = backoff();
            }
            let flows = matches!(self.transfer.state().phase, Phase::Flowing);
            let delay = if flows && worth_repeating(error) {
                attempts.next()
            } else {
                None
            };
            let Some(delay) = delay else { return Err(halt) };
            tracing::info!(%error, origin = %self.origin, position, "the body broke; resuming");
            tokio::time::sleep(delay).await;
        }
    }

    /// Makes one request at `position` and takes what it brings.
    async fn attempt(self, id: SegmentId, position: u64) -> Result<(), Halt> {
        let Origin {
            upstream,
            repository,
        } = self.origin;
        let digest = &self.transfer.digest;
        let turn = {
            let _queued = self.transfer.queue();
            upstream.blob_turn().await
        };
        let asked = Instant::now();
        let body = upstream
            .open_blob_in_turn(turn, repository, digest, position)
            .await;
        let body = body.map_err(|error| Halt::Origin(error.into()))?;
        self.learn(&body, position, asked)?;
        let mut batches = Batches {
            feed: self,
            id,
            position,
            skip: position - body.offset(),
            pending: Vec::new(),
            pending_bytes: 0,
            writing: None,
            flushed: None,
        };
        let result = batches.receive(body).await;
        // What arrived before a break is good: the next request begins behind it.
        let flushed = batches.flush().await;
        result.and(flushed)
    }

    /// Takes over the size and the starting point that an answer states, and that it has come out
    /// of this origin, which was `asked` for it.
    fn learn(self, body: &BlobBody, position: u64, asked: Instant) -> Result<(), Halt> {
        let known = self.transfer.state().size;
        let contradicts = matches!((known, body.size()), (Some(a), Some(b)) if a != b);
        if contradicts || body.offset() > position {
            return Err(self.bad_answer(Defect::WrongRange));
        }
        self.transfer.change(|state| {
            if let Some(size) = body.size() {
                state.learn_size(size);
            }
            state.fetched = Some((self.origin.provenance(), asked));
        });
        Ok(())
    }

    fn bad_answer(self, defect: Defect) -> Halt {
        let Origin {
            upstream,
            repository,
        } = self.origin;
        let subject = Subject::Blob(repository.clone(), self.transfer.digest);
        let error = FetchError::BadAnswer {
            upstream: upstream.name().into(),
            subject: Arc::new(subject),
            defect,
        };
        Halt::Origin(error.into())
    }
}

/// Returns how many bytes may wait, and from how many on they are written at once.
fn bounds_of(body: &BlobBody) -> (usize, usize) {
    if body.is_lasting() {
        (MAX_PENDING_BYTES_OF_MANY, MAX_PENDING_BYTES_OF_MANY)
    } else {
        (MAX_PENDING_BYTES, BATCH_BYTES)
    }
}

/// Returns the delays between attempts that bring nothing.
fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(3))
        .with_max_times(MAX_ATTEMPTS)
        .with_jitter()
        .build()
}

/// Whether the same origin may well give the rest a little later.
fn worth_repeating(error: &PullError) -> bool {
    match error {
        PullError::Fetch(FetchError::Unavailable { .. }) => true,
        error => error.retry() == Retry::SameSourceLater,
    }
}

/// Bytes of one answer on their way to the sink, gathered so that writes and wake-ups are few.
///
/// One batch is written while the next is received.
struct Batches<'a> {
    feed: Feed<'a>,
    id: SegmentId,
    /// Where the first pending byte belongs.
    position: u64,
    /// Bytes at the start of the body that are here already.
    skip: u64,
    pending: Vec<Bytes>,
    pending_bytes: usize,
    writing: Option<Writing<'a>>,
    /// When the last batch was taken; `None` before the first.
    flushed: Option<Instant>,
}

type Writing<'a> = Pin<Box<dyn Future<Output = Result<Written, StoreError>> + Send + 'a>>;

/// A batch that the sink has taken.
struct Written {
    start: u64,
    end: u64,
    taken: Taken,
}

impl Batches<'_> {
    /// Takes the body until its end or the segment's.
    async fn receive(&mut self, mut body: BlobBody) -> Result<(), Halt> {
        while self.received() < self.end() {
            let due = self.due();
            let (most, batch) = bounds_of(&body);
            tokio::select! {
                chunk = body.next_chunk(), if self.pending_bytes < most => {
                    match chunk.map_err(|error| Halt::Origin(error.into()))? {
                        Some(chunk) => self.add(chunk),
                        None => return self.end_of_body().await,
                    }
                    let urgent = self.flushed.is_none() || self.pending_bytes >= batch;
                    if urgent && self.writing.is_none() {
                        self.begin_write();
                    }
                }
                written = resolve(self.writing.as_mut()), if self.writing.is_some() => {
                    self.writing = None;
                    self.show(written).await?;
                    if self.pending_bytes >= batch {
                        self.begin_write();
                    }
                }
                () = sleep_until(due), if due.is_some() => self.begin_write(),
            }
        }
        Ok(())
    }

    /// Returns where the segment ends by now.
    fn end(&self) -> u64 {
        self.feed.transfer.state().segments.bounds(self.id).1
    }

    /// Returns the position of the next byte to receive.
    fn received(&self) -> u64 {
        self.position + self.pending_bytes as u64
    }

    /// Returns when the pending bytes must be written at the latest.
    fn due(&self) -> Option<Instant> {
        let waiting = self.writing.is_none() && !self.pending.is_empty();
        self.flushed
            .filter(|_| waiting)
            .map(|flushed| flushed + BATCH_DELAY)
    }

    /// Adds a chunk without what is here already and without what lies beyond the segment.
    fn add(&mut self, mut chunk: Bytes) {
        let skip = self.skip.min(chunk.len() as u64);
        self.skip -= skip;
        let _ = chunk.split_to(usize::try_from(skip).expect("at most the chunk's length"));
        let room = self.end().saturating_sub(self.received());
        chunk.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        if !chunk.is_empty() {
            self.pending_bytes += chunk.len();
            self.pending.push(chunk);
        }
    }

    /// At the end of a body without a stated length the size is known at last.
    async fn end_of_body(&mut self) -> Result<(), Halt> {
        self.flush().await?;
        let size = self.position;
        let transfer = self.feed.transfer;
        if transfer.state().size.is_none() {
            transfer.change(|state| state.learn_size(size));
        }
        if self.position < self.end() {
            return Err(self.feed.bad_answer(Defect::WrongRange));
        }
        Ok(())
    }

    /// Hands the pending bytes to the sink, in a future that is polled while more are received.
    fn begin_write(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let Feed { transfer, sink, .. } = self.feed;
        let (size, written) = {
            let state = transfer.state();
            (state.size, state.written.clone())
        };
        let chunks = std::mem::take(&mut self.pending);
        let start = self.position;
        let end = start + std::mem::take(&mut self.pending_bytes) as u64;
        self.position = end;
        self.flushed = Some(Instant::now());
        self.writing = Some(Box::pin(async move {
            let is_awaited = transfer.is_awaited();
            sink.reserve(size, start..end, &written, is_awaited).await?;
            let taken = sink.take(start, chunks, written).await?;
            Ok(Written { start, end, taken })
        }));
    }

    /// Waits until everything received is written and shown.
    async fn flush(&mut self) -> Result<(), Halt> {
        loop {
            if let Some(writing) = self.writing.take() {
                let written = writing.await;
                self.show(written).await?;
            }
            if self.pending.is_empty() {
                return Ok(());
            }
            self.begin_write();
        }
    }

    /// Shows a batch to readers.
    async fn show(&mut self, written: Result<Written, StoreError>) -> Result<(), Halt> {
        let Written { start, end, taken } =
            written.map_err(|error| Halt::Transfer(error.into()))?;
        match taken {
            Taken::Relayed(passing) => {
                let Feed { transfer, sink, .. } = self.feed;
                let id = self.id;
                let advance = move |state: &mut State| state.advance(id, end);
                let relayed = relay(transfer, sink, start, passing, advance).await;
                if !relayed.map_err(Halt::Transfer)? {
                    // What is relayed comes in order: the segment before this one goes on to here.
                    transfer.change(|state| state.segments.finish(self.id));
                }
                Ok(())
            }
            Taken::Written => {
                self.feed.transfer.change(|state| {
                    state.written.insert(start..end);
                    state.advance(self.id, end);
                    state.learn_hashed(self.feed.sink);
                });
                Ok(())
            }
        }
    }
}
