//! One blob that was opened at one hop, until all of it is here or the hop is passed over.
//!
//! Four things go on at a time: news of the hop, the next chunk of a source, the writes of
//! those before it, and what `lanes` takes for readers far ahead. This file waits for them and
//! decides what is next; what follows from news is in `news`, from chunks in `arrivals`, from
//! silence in `stall`.

mod arrivals;
mod news;
mod stall;

use std::ops::Range;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millrace_protocol::chunk::{self, CHUNK_BYTES, ChainValue};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::transfer::{Step, Taking};
use millrace_protocol::wire::message::{BlobNews, Cause, ReadChunks};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::peer::{BlobStream, ChunkEvent, ChunkStream, PeerError};
use crate::pull::claimed::Claimed;
use crate::pull::error::PullError;
use crate::pull::fill::Halt;
use crate::pull::memory::{Room, Share};
use crate::pull::neighbours::Hop;
use crate::pull::pending::{resolve, sleep_until};
use crate::pull::transfer::State;

use super::lanes::Lanes;
use super::writes::Writes;
use super::{Ended, Take};

type Reading = BoxFuture<'static, (Option<ChunkStream>, Result<ChunkEvent, PeerError>)>;

/// One blob that was opened at one hop.
pub(super) struct Session<'a> {
    take: Take<'a>,
    hop: Hop,
    news: Option<BlobStream>,
    /// What the hop says that it waits for.
    delays: watch::Receiver<Cause>,
    size: u64,
    /// From when on `taking` counts time.
    began: Instant,
    taking: Taking,
    /// The stretch that is taken in order; what is not here and in no segment comes next.
    stretch: Option<Claimed<'a>>,
    lanes: Lanes<'a>,
    /// From which chunk on the hop gives nothing: the number of chunks, but where it has a part only.
    end: u32,
    /// The chain as the hop states it, from the first chunk on.
    chain: watch::Sender<Vec<ChainValue>>,
    reading: Option<Reading>,
    /// Where the chunk belongs that arrives next; without it none is received.
    room: Option<Room>,
    /// When the source was asked, or last brought a chunk, or the hop a value for one that waits; or
    /// when this node had time to listen again.
    heard: Instant,
    /// When anything of the blob last came, a chunk or news of the hop, or was written.
    got_on: Instant,
    writes: Writes<'a>,
    /// Chunks that did not fit the chain, and who sent them.
    wrong: Vec<(u32, NodeId)>,
    /// The digest that the whole would have with a last chunk that did not fit.
    wrong_whole: Option<Digest>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        take: Take<'a>,
        hop: Hop,
        news: BlobStream,
        size: u64,
        sources: Vec<NodeId>,
    ) -> Self {
        let chunks = u32::try_from(chunk::count(size)).unwrap_or(u32::MAX);
        let mut taking = Taking::new(chunks);
        let here = take.transfer.state().here();
        for index in here.iter().flat_map(|range| whole_chunks(range, size)) {
            taking.handle_chunk(index);
        }
        let chain = watch::Sender::default();
        let mut session = Self {
            take,
            hop,
            delays: news.delays(),
            news: Some(news),
            size,
            began: Instant::now(),
            taking,
            stretch: None,
            end: chunks,
            lanes: Lanes::new(take, hop, size, chain.subscribe()),
            chain,
            reading: None,
            room: None,
            heard: Instant::now(),
            got_on: Instant::now(),
            writes: Writes::new(take, size),
            wrong: Vec::new(),
            wrong_whole: None,
        };
        session.use_sources(sources);
        session
    }

    /// Runs the session to its end.
    ///
    /// # Errors
    /// [`Halt::Transfer`] when what is here turned out to be wrong, or cannot be stored.
    pub(super) async fn run(mut self, far: &mut mpsc::Receiver<u64>) -> Result<Ended, Halt> {
        let share = share(self.take).await?;
        self.got_on = Instant::now();
        loop {
            if let Some(stretch) = &self.stretch {
                self.writes.begin(stretch, &self.chain.borrow());
            }
            let due = match self.poll() {
                Step::Complete => return self.complete().await,
                Step::Exhausted => return self.exhausted(),
                // Those whom the hop has named take from it as well, or wait for this node: they
                // are not waited for when the hop is of no use.
                Step::Wait(Some(_)) if self.is_left_alone() => {
                    return Ok(Ended::PassedOver);
                }
                Step::Wait(due) => due,
                Step::Read {
                    source,
                    first,
                    count,
                } => {
                    self.begin_read(source, first, count);
                    None
                }
            };
            self.make_room(&share);
            let (stalls_at, stuck_at) = (self.stalls_at(), self.stuck_at());
            tokio::select! {
                news = next_news(&mut self.news) => {
                    if let Some(ended) = self.handle_news(news) {
                        return Ok(ended);
                    }
                    self.confirm()?;
                }
                Ok(()) = self.delays.changed() => self.handle_delay(),
                (stream, event) = resolve(self.reading.as_mut()), if self.room.is_some() => {
                    self.reading = None;
                    if let Some(ended) = self.handle_event(stream, event) {
                        return Ok(ended);
                    }
                }
                written = self.writes.next() => {
                    if let Some(ended) = self.handle_written(written).await? {
                        return Ok(ended);
                    }
                }
                event = self.lanes.next() => {
                    self.handle_lane(event.map_err(Halt::Transfer)?)?;
                }
                Some(position) = far.recv() => self.lanes.begin(position),
                () = sleep_until(due.map(|due| self.began + due)), if due.is_some() => {}
                () = tokio::time::sleep_until(stalls_at), if self.is_waiting() => {
                    if let Some(ended) = self.handle_stalled() {
                        return Ok(ended);
                    }
                }
                () = tokio::time::sleep_until(stuck_at), if !self.writes.are_running() => {
                    return Ok(self.stuck());
                }
            }
        }
    }

    /// Makes room for the next chunk: the take's own as soon as that is free, else what nobody else
    /// needs. Without any, the next is received when a chunk was written.
    fn make_room(&mut self, share: &Share) {
        if self.reading.is_none() || !self.writes.have_room() {
            self.room = None;
        } else if let Some(own) = share.own() {
            self.room = Some(own);
        } else if self.room.is_none() {
            self.room = share.more();
        }
    }

    /// Returns what to do next. A chunk that has arrived and is not written yet is still missing
    /// for `taking`, so nothing new is asked for before it is.
    fn poll(&mut self) -> Step {
        if self.taking.reading().is_none() {
            if !self.writes.are_done() || !self.aim() {
                return Step::Wait(None);
            }
            if self.is_past_end() {
                return Step::Exhausted;
            }
        }
        let is_reading = self.taking.reading().is_some();
        let step = self.taking.poll(self.began.elapsed());
        if is_reading && self.taking.reading().is_none() {
            // What it has sent is dealt with first.
            self.reading = None;
            return self.poll();
        }
        step
    }

    /// Whether nobody is read from now, and the hop is of no use any more.
    fn is_left_alone(&self) -> bool {
        self.taking.reading().is_none() && self.taking.is_banned(&self.hop.peer)
    }

    /// Turns to the next stretch when the last one is over. Returns whether there is something to
    /// do: what is left may all be in the far lanes.
    fn aim(&mut self) -> bool {
        let transfer = self.take.transfer;
        if self.stretch.as_ref().is_none_or(Claimed::is_over) {
            self.stretch = None;
            let claimed = transfer.change(State::claim);
            self.stretch = claimed.map(|id| Claimed::new(transfer, id));
        }
        if let Some(stretch) = &self.stretch {
            self.taking.handle_wanted(stretch.chunks().start);
        }
        self.stretch.is_some() || self.taking.is_complete()
    }

    /// Whether the next chunk is none that the hop has.
    fn is_past_end(&self) -> bool {
        let stretch = self.stretch.as_ref();
        stretch.is_some_and(|stretch| stretch.chunks().start >= self.end)
    }

    /// Ends the running read where another lane has begun, or the hop has no more.
    fn end_read_at_stretch(&mut self) {
        let is_over = self.stretch.as_ref().is_none_or(Claimed::is_over);
        if (is_over || self.is_past_end()) && self.taking.reading().is_some() {
            self.reading = None;
            self.writes.clear_waiting();
            self.taking.handle_done();
        }
    }

    fn chunks(&self) -> u32 {
        u32::try_from(chunk::count(self.size)).unwrap_or(u32::MAX)
    }

    fn begin_read(&mut self, source: NodeId, first: u32, count: u32) {
        let stretch = self.stretch.as_ref().map(|stretch| stretch.chunks().end);
        let end = stretch.unwrap_or(u32::MAX).min(self.end);
        let count = count.min(end.saturating_sub(first).max(1));
        let transfer = self.take.transfer;
        transfer.change(|state| state.waiting.read_from(source));
        let peers = self.take.neighbours.peers.clone();
        let question = ReadChunks {
            digest: transfer.digest,
            first,
            count,
            far: false,
            copy: self.take.is_copy,
        };
        let reading = async move {
            match peers.read(source, question).await {
                Ok(stream) => next_event(stream).await,
                Err(error) => (None, Err(error)),
            }
        };
        self.reading = Some(reading.boxed());
        self.heard = Instant::now();
    }

    /// Ends with the whole; what came ahead of the chain is hashed before, so that it is known who
    /// was wrong.
    async fn complete(self) -> Result<Ended, Halt> {
        let Take { transfer, sink, .. } = self.take;
        let written = {
            let state = transfer.state();
            (!state.far.is_empty()).then(|| state.written.clone())
        };
        if let Some(written) = written {
            let hashed = sink.finish(self.size, written).await;
            hashed.map_err(|error| Halt::Transfer(error.into()))?;
            self.confirm()?;
        }
        Ok(Ended::Complete)
    }

    /// Ends without the whole: nobody who was named can give the rest.
    fn exhausted(self) -> Result<Ended, Halt> {
        if self.wrong.is_empty() {
            return Ok(Ended::PassedOver);
        }
        // Whatever it stated, nobody's bytes fit it.
        self.take.neighbours.trust.distrust(self.hop.peer);
        match self.wrong_whole {
            // Only the digest can tell that a whole chain is wrong, and then so is all that was
            // taken by it.
            Some(actual) if self.chunks() > 1 => Err(Halt::Transfer(PullError::Corrupt {
                expected: self.take.transfer.digest,
                actual,
            })),
            _ => Ok(Ended::PassedOver),
        }
    }
}

/// Returns the indices of the chunks that a range has all of, half-open.
fn whole_chunks(range: &Range<u64>, size: u64) -> Range<u32> {
    let index = |chunks: u64| u32::try_from(chunks).unwrap_or(u32::MAX);
    let end = match range.end < size {
        true => range.end / CHUNK_BYTES,
        false => chunk::count(size),
    };
    index(range.start.div_ceil(CHUNK_BYTES))..index(end)
}

/// Waits until the first chunk may be held; that of a copy only if it may be now.
async fn share(take: Take<'_>) -> Result<Share, Halt> {
    let memory = &take.neighbours.memory;
    if !take.is_copy {
        return Ok(memory.share().await);
    }
    let share = memory.copy_share();
    share.ok_or(Halt::Transfer(PullError::Stopped))
}

async fn next_event(
    mut stream: ChunkStream,
) -> (Option<ChunkStream>, Result<ChunkEvent, PeerError>) {
    let event = stream.next().await;
    (Some(stream), event)
}

async fn next_news(news: &mut Option<BlobStream>) -> Result<Option<BlobNews>, PeerError> {
    match news {
        Some(news) => news.next().await,
        None => std::future::pending().await,
    }
}
