//! One blob that was opened at one hop, until all of it is here or the hop is passed over.
//!
//! Four things go on at a time: news of the hop, the next chunk of a source, the writes of
//! those before it, and what `lanes` takes for readers far ahead.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millrace_protocol::chunk::{self, ChainValue};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::transfer::{Step, Taking};
use millrace_protocol::wire::message::{BlobNews, ReadChunks};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::peer::{BlobStream, ChunkEvent, ChunkStream, PeerError};
use crate::pull::error::PullError;
use crate::pull::fill::Halt;
use crate::pull::neighbours::Hop;
use crate::pull::pending::{resolve, sleep_until};
use crate::pull::relay::relay;
use crate::pull::sink::{Checked, Taken};
use crate::pull::transfer::State;

use super::lanes::{Claimed, LaneEvent, Lanes};
use super::writes::{self, Chunk, Writes};
use super::{Ended, STALLED, Take, range};

/// Chunks that one take, without its far lanes, holds in memory at most: one that arrives, those
/// that wait, those that are written.
const CHUNKS_IN_MEMORY: u32 = 1 + writes::MAX_CHUNKS;

/// How long the hop may owe the check value of a chunk that has come, with no other value: as long
/// as a peer may say nothing, because nobody sends a chunk before its value is known to all.
const OWED: Duration = Duration::from_secs(3);

type Reading = BoxFuture<'static, (Option<ChunkStream>, Result<ChunkEvent, PeerError>)>;

/// One blob that was opened at one hop.
pub(super) struct Session<'a> {
    take: Take<'a>,
    hop: Hop,
    news: Option<BlobStream>,
    size: u64,
    /// From when on `taking` counts time.
    began: Instant,
    taking: Taking,
    /// The stretch that is taken in order; what is not here and in no segment comes next.
    stretch: Option<Claimed<'a>>,
    lanes: Lanes<'a>,
    /// The chain as the hop states it, from the first chunk on.
    chain: watch::Sender<Vec<ChainValue>>,
    reading: Option<Reading>,
    /// When the source was asked, or last brought a chunk; or the hop a value for one that waits.
    heard: Instant,
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
        for index in 0..chunks {
            let range = range(index, size);
            let state = take.transfer.state();
            if state.written.gaps(&range).next().is_none() {
                taking.handle_chunk(index);
            }
        }
        let chain = watch::Sender::default();
        let mut session = Self {
            take,
            hop,
            news: Some(news),
            size,
            began: Instant::now(),
            taking,
            stretch: None,
            lanes: Lanes::new(take, hop, size, chain.subscribe()),
            chain,
            reading: None,
            heard: Instant::now(),
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
        let _memory = self
            .take
            .neighbours
            .memory(CHUNKS_IN_MEMORY.min(self.chunks().max(1)))
            .await;
        loop {
            if let Some(stretch) = &self.stretch {
                self.writes.begin(stretch, &self.chain.borrow());
            }
            let due = match self.poll() {
                Step::Complete => return self.complete().await,
                Step::Exhausted => return self.exhausted(),
                // Those whom the hop has named take from it as well, or wait for this node: they
                // are not waited for when the hop is of no use.
                Step::Wait(Some(_)) if self.taking.is_banned(&self.hop.peer) => {
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
            let stalled = self.heard + self.patience();
            tokio::select! {
                news = next_news(&mut self.news) => {
                    if let Some(ended) = self.handle_news(news) {
                        return Ok(ended);
                    }
                    self.confirm()?;
                }
                (stream, event) = resolve(self.reading.as_mut()), if self.writes.have_room() => {
                    self.reading = None;
                    self.handle_event(stream, event);
                }
                written = self.writes.next() => {
                    for (chunk, checked) in written.map_err(Halt::Transfer)? {
                        self.handle_checked(chunk, checked).await?;
                    }
                    if self.hop_is_wrong() {
                        return Ok(Ended::PassedOver);
                    }
                }
                event = self.lanes.next() => {
                    self.handle_lane(event.map_err(Halt::Transfer)?)?;
                }
                Some(position) = far.recv() => self.lanes.begin(position),
                () = sleep_until(due.map(|due| self.began + due)), if due.is_some() => {}
                () = tokio::time::sleep_until(stalled), if self.is_waiting() => {
                    if let Some(ended) = self.handle_stalled() {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    /// Returns what to do next. A chunk that has arrived and is not written yet is still missing
    /// for `taking`, so nothing new is asked for before it is.
    fn poll(&mut self) -> Step {
        if self.taking.reading().is_none() && (!self.writes.are_done() || !self.aim()) {
            return Step::Wait(None);
        }
        self.taking.poll(self.began.elapsed())
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

    /// Ends the running read where another lane has begun.
    fn end_read_at_stretch(&mut self) {
        if self.stretch.as_ref().is_none_or(Claimed::is_over) && self.taking.reading().is_some() {
            self.reading = None;
            self.writes.clear_waiting();
            self.taking.handle_done();
        }
    }

    /// Whether the next chunk is waited for, or its check value, and nothing else.
    fn is_waiting(&self) -> bool {
        (self.reading.is_some() || self.writes.are_waiting()) && !self.writes.are_running()
    }

    /// Returns how long what is waited for may take.
    fn patience(&self) -> Duration {
        if self.writes.are_waiting() {
            OWED
        } else {
            STALLED
        }
    }

    /// Leaves whoever keeps this node waiting: it lives, and is of no use. Returns how the session
    /// ends if it does.
    fn handle_stalled(&mut self) -> Option<Ended> {
        let culprit = if self.writes.are_waiting() {
            // Nobody sends a chunk before its check value has been told to all.
            self.hop.peer
        } else {
            self.reading = None;
            self.taking.reading()?
        };
        self.take.neighbours.leave_alone(culprit);
        if culprit == self.hop.peer {
            return Some(Ended::PassedOver);
        }
        self.taking.handle_wrong(culprit);
        None
    }

    /// Gives up a hop that contradicts itself.
    fn contradicted(&self, how: &'static str) -> Ended {
        tracing::warn!(peer.id = %self.hop.peer.short(), "{how}");
        self.take.neighbours.distrust(self.hop.peer);
        Ended::PassedOver
    }

    /// Returns how many values lead from the first chunk to the last one.
    fn chain_length(&self) -> usize {
        (self.chunks().max(1) - 1) as usize
    }

    fn chunks(&self) -> u32 {
        u32::try_from(chunk::count(self.size)).unwrap_or(u32::MAX)
    }

    /// Reads from the sources that the hop names, at last from the hop itself.
    fn use_sources(&mut self, mut sources: Vec<NodeId>) {
        let neighbours = self.take.neighbours;
        let me = neighbours.view().me();
        sources.retain(|source| *source != me && *source != self.hop.peer);
        sources.retain(|source| neighbours.is_trusted(source));
        sources.push(self.hop.peer);
        self.taking.handle_sources(sources);
    }

    /// Takes over news. Returns how the session ends if it does.
    fn handle_news(&mut self, news: Result<Option<BlobNews>, PeerError>) -> Option<Ended> {
        match news {
            Ok(Some(BlobNews::Chain { first, values })) => {
                let before = self.chained();
                let expected = u32::try_from(before) == Ok(first);
                self.chain.send_modify(|chain| chain.extend(values));
                if self.writes.are_waiting() {
                    self.heard = Instant::now();
                }
                if !expected || self.chained() > self.chain_length() {
                    return Some(self.contradicted("its chain does not go with its size"));
                }
                // Which of two hops is wrong shows the digest only.
                (!self.agrees_with_own(before)).then(|| {
                    tracing::warn!(peer.id = %self.hop.peer.short(), "it states another chain");
                    Ended::PassedOver
                })
            }
            Ok(Some(BlobNews::Sources(sources))) => {
                self.use_sources(sources);
                None
            }
            Ok(Some(BlobNews::Whole)) => (self.chained() < self.chain_length())
                .then(|| self.contradicted("it has the whole and tells no chain of it")),
            Ok(Some(BlobNews::Opened { .. })) => Some(Ended::PassedOver),
            Ok(None) => {
                self.news = None;
                // Without the values nothing more can be checked.
                let has_all = self.chained() >= self.chain_length();
                (!has_all).then_some(Ended::PassedOver)
            }
            Err(error) => Some(self.take.passed_over(self.hop, &error)),
        }
    }

    /// Returns how many values the hop has stated.
    fn chained(&self) -> usize {
        self.chain.borrow().len()
    }

    /// Whether the stated chain, from its `first` value on, is the one of the bytes that are here.
    fn agrees_with_own(&self, first: usize) -> bool {
        let state = self.take.transfer.state();
        let stated = self.chain.borrow();
        let own = state.chain.iter().skip(first);
        own.zip(stated.iter().skip(first))
            .all(|(own, stated)| own == stated)
    }

    /// Shows how far the bytes here, also those that came ahead of the chain, lead to the values
    /// that the hop has stated.
    ///
    /// # Errors
    /// What came ahead of the chain does not.
    fn confirm(&self) -> Result<(), Halt> {
        let Take { transfer, sink, .. } = self.take;
        let stated = self.chain.borrow();
        let contradicted = transfer.change(|state| {
            let agreed = sink.publish_agreed(&mut state.chain, &stated);
            state.far.forget(state.chain.len());
            agreed.err().and_then(|index| state.far.get(index).copied())
        });
        let Some(chunk) = contradicted else {
            return Ok(());
        };
        // Both are the hop's word; where not, nobody knows who was wrong.
        if chunk.stated_by == Some(self.hop.peer) {
            self.take.neighbours.distrust(self.hop.peer);
        }
        let digest = transfer.digest;
        Err(Halt::Transfer(PullError::Contradicted { digest }))
    }

    fn begin_read(&mut self, source: NodeId, first: u32, count: u32) {
        let end = self.stretch.as_ref().map(|stretch| stretch.chunks().end);
        let room = end.map_or(count, |end| end.saturating_sub(first));
        let count = count.min(room.max(1));
        let peers = self.take.neighbours.peers.clone();
        let question = ReadChunks {
            digest: self.take.transfer.digest,
            first,
            count,
            far: false,
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

    fn handle_event(&mut self, stream: Option<ChunkStream>, event: Result<ChunkEvent, PeerError>) {
        let Some(source) = self.taking.reading() else {
            return;
        };
        let now = self.began.elapsed();
        match event {
            Ok(ChunkEvent::Chunk { index, bytes }) => {
                self.heard = Instant::now();
                self.writes.push(Chunk {
                    source,
                    index,
                    bytes,
                });
                self.reading = stream.map(|stream| next_event(stream).boxed());
            }
            Ok(ChunkEvent::Done) => self.taking.handle_done(),
            Ok(ChunkEvent::NotYet) => self.taking.handle_not_yet(now),
            Ok(ChunkEvent::Busy { ask }) => {
                let me = self.take.neighbours.view().me();
                let others: Vec<NodeId> = ask.into_iter().filter(|node| *node != me).collect();
                self.taking.handle_hint(&others);
                self.taking.handle_not_yet(now);
            }
            // A far chunk was not asked for.
            Ok(ChunkEvent::Absent | ChunkEvent::Far { .. }) => self.taking.handle_wrong(source),
            Err(error) => {
                tracing::debug!(peer.id = %source.short(), %error, "a source failed");
                self.taking.handle_failed(now);
            }
        }
    }

    async fn handle_checked(&mut self, chunk: Chunk, checked: Checked) -> Result<(), Halt> {
        let Chunk { source, index, .. } = chunk;
        let range = range(index, self.size);
        let length = range.end - range.start;
        let transfer = self.take.transfer;
        let stretch = self.stretch.as_ref().map(Claimed::id);
        let advance = |state: &mut State, position| {
            if let Some(stretch) = stretch {
                state.advance(stretch, position);
            }
        };
        match checked {
            Checked::Wrong(whole) => {
                tracing::warn!(peer.id = %source.short(), index, "a peer sent a wrong chunk");
                self.take.neighbours.metrics.wrong_chunks.inc();
                self.wrong.push((index, source));
                self.wrong_whole = whole.or(self.wrong_whole);
                self.reading = None;
                self.writes.clear_waiting();
                self.taking.handle_wrong(source);
                if source == self.hop.peer {
                    // Chain and chunk are both its own.
                    self.take.neighbours.distrust(source);
                }
                return Ok(());
            }
            Checked::Right(Taken::Relayed(chunks)) => {
                let relayed = relay(transfer, range.start, chunks, advance).await;
                relayed.map_err(Halt::Transfer)?;
            }
            Checked::Right(Taken::Written) => transfer.change(|state| {
                state.written.insert(range.clone());
                advance(state, range.end);
            }),
        }
        self.confirm()?;
        let metrics = &self.take.neighbours.metrics;
        metrics.received_bytes.inc_by(length);
        self.taking.handle_chunk(index);
        self.end_read_at_stretch();
        // Somebody else's chunk fits the chain, so it was the sender's fault.
        for (_, sender) in self.wrong.extract_if(.., |(wrong, _)| *wrong == index) {
            self.take.neighbours.distrust(sender);
        }
        Ok(())
    }

    /// Whether the hop has sent a chunk that does not fit the chain that it states. Those whom it
    /// has named take from it as well and may wait for this node, so they are not turned to. Of a
    /// last chunk only the digest can tell, and whoever else has it may be right.
    fn hop_is_wrong(&self) -> bool {
        let hop = self.hop.peer;
        self.wrong_whole.is_none() && self.wrong.iter().any(|(_, sender)| *sender == hop)
    }

    /// Takes over what a far lane has done.
    ///
    /// # Errors
    /// As [`Session::confirm`].
    fn handle_lane(&mut self, event: LaneEvent) -> Result<(), Halt> {
        let neighbours = self.take.neighbours;
        match event {
            LaneEvent::Here(index) => {
                self.taking.handle_chunk_of_lane(index);
                return self.confirm();
            }
            LaneEvent::Ended => {}
            LaneEvent::Wrong(index) => {
                // Chunk and check are both its own.
                tracing::warn!(peer.id = %self.hop.peer.short(), index, "a far chunk is wrong");
                neighbours.metrics.wrong_chunks.inc();
                neighbours.distrust(self.hop.peer);
                self.lanes.bar();
            }
        }
        Ok(())
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
        self.take.neighbours.distrust(self.hop.peer);
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
