//! One blob that was opened at one hop, until all of it is here or the hop is passed over.
//!
//! Three things go on at a time: news of the hop, the next chunk of a source, the write of the
//! chunk before it.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millrace_protocol::chunk::{self, CHUNK_BYTES, ChainValue};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::transfer::{Step, Taking};
use millrace_protocol::wire::message::{BlobNews, ReadChunks};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::peer::{BlobStream, ChunkEvent, ChunkStream, PeerError};
use crate::pull::error::PullError;
use crate::pull::fill::Halt;
use crate::pull::neighbours::Hop;
use crate::pull::pending::{resolve, sleep_until};
use crate::pull::relay::relay;
use crate::pull::sink::{Check, Checked, Taken};
use crate::pull::transfer::{Phase, State};

use super::{Ended, Take};

/// Chunks that one take holds in memory at most: one that arrives, one that waits, one that is
/// written.
const CHUNKS_IN_MEMORY: u32 = 3;

/// How long a source that is alive may bring no chunk and not say either that it has none yet:
/// longer than it waits itself before it says so.
const STALLED: Duration = Duration::from_secs(10);

/// How long the hop may owe the check value of a chunk that has come, with no other value: as long
/// as a peer may say nothing, because nobody sends a chunk before its value is known to all.
const OWED: Duration = Duration::from_secs(3);

type Reading = BoxFuture<'static, (Option<ChunkStream>, Result<ChunkEvent, PeerError>)>;
type Writing<'a> = Pin<Box<dyn Future<Output = Result<(Chunk, Checked), PullError>> + Send + 'a>>;

/// A chunk that has arrived.
#[derive(Debug)]
struct Chunk {
    source: NodeId,
    index: u32,
    bytes: Vec<Bytes>,
}

/// One blob that was opened at one hop.
pub(super) struct Session<'a> {
    take: Take<'a>,
    hop: Hop,
    news: Option<BlobStream>,
    size: u64,
    /// From when on `taking` counts time.
    began: Instant,
    taking: Taking,
    /// The chain as the hop states it, from the first chunk on.
    chain: Vec<ChainValue>,
    reading: Option<Reading>,
    /// When the source was asked, or last brought a chunk; or the hop a value for one that waits.
    heard: Instant,
    /// A chunk that waits for its check value, or for the write before it.
    received: Option<Chunk>,
    writing: Option<Writing<'a>>,
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
        let mut session = Self {
            take,
            hop,
            news: Some(news),
            size,
            began: Instant::now(),
            taking,
            chain: Vec::new(),
            reading: None,
            heard: Instant::now(),
            received: None,
            writing: None,
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
            self.begin_write();
            let due = match self.poll() {
                Step::Complete => return Ok(Ended::Complete),
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
                }
                (stream, event) = resolve(self.reading.as_mut()), if self.received.is_none() => {
                    self.reading = None;
                    self.handle_event(stream, event);
                }
                written = resolve(self.writing.as_mut()) => {
                    self.writing = None;
                    let (chunk, checked) = written.map_err(Halt::Transfer)?;
                    self.handle_checked(chunk, checked).await?;
                }
                Some(position) = far.recv() => self.handle_far(position),
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
        let arrived = self.writing.is_some() || self.received.is_some();
        if arrived && self.taking.reading().is_none() {
            return Step::Wait(None);
        }
        self.taking.poll(self.began.elapsed())
    }

    /// Whether the next chunk is waited for, or its check value, and nothing else.
    fn is_waiting(&self) -> bool {
        (self.reading.is_some() || self.received.is_some()) && self.writing.is_none()
    }

    /// Returns how long what is waited for may take.
    fn patience(&self) -> Duration {
        if self.received.is_some() {
            OWED
        } else {
            STALLED
        }
    }

    /// Leaves whoever keeps this node waiting: it lives, and is of no use. Returns how the session
    /// ends if it does.
    fn handle_stalled(&mut self) -> Option<Ended> {
        let culprit = match &self.received {
            // Nobody sends a chunk before its check value has been told to all.
            Some(_) => self.hop.peer,
            None => {
                self.reading = None;
                self.taking.reading()?
            }
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
                let expected = u32::try_from(self.chain.len()) == Ok(first);
                self.chain.extend(values);
                if self.received.is_some() {
                    self.heard = Instant::now();
                }
                if !expected || self.chain.len() > self.chain_length() {
                    return Some(self.contradicted("its chain does not go with its size"));
                }
                // Which of two hops is wrong shows the digest only.
                (!self.agrees_with_own()).then(|| {
                    tracing::warn!(peer.id = %self.hop.peer.short(), "it states another chain");
                    Ended::PassedOver
                })
            }
            Ok(Some(BlobNews::Sources(sources))) => {
                self.use_sources(sources);
                None
            }
            Ok(Some(BlobNews::Whole)) => (self.chain.len() < self.chain_length())
                .then(|| self.contradicted("it has the whole and tells no chain of it")),
            Ok(Some(BlobNews::Opened { .. })) => Some(Ended::PassedOver),
            Ok(None) => {
                self.news = None;
                // Without the values nothing more can be checked.
                let has_all = self.chain.len() >= self.chain_length();
                (!has_all).then_some(Ended::PassedOver)
            }
            Err(error) => Some(self.take.passed_over(self.hop, &error)),
        }
    }

    /// Whether the stated chain is the one of the bytes that are here.
    fn agrees_with_own(&self) -> bool {
        let state = self.take.transfer.state();
        let own = state.chain.iter();
        own.zip(&self.chain).all(|(own, stated)| own == stated)
    }

    fn begin_read(&mut self, source: NodeId, first: u32, count: u32) {
        let peers = self.take.neighbours.peers.clone();
        let question = ReadChunks {
            digest: self.take.transfer.digest,
            first,
            count,
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
                self.received = Some(Chunk {
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
            Ok(ChunkEvent::Absent) => self.taking.handle_wrong(source),
            Err(error) => {
                tracing::debug!(peer.id = %source.short(), %error, "a source failed");
                self.taking.handle_failed(now);
            }
        }
    }

    /// Checks and writes the received chunk, if its check value is known and nothing else is
    /// being written.
    fn begin_write(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let Some(chunk) = self.received.take() else {
            return;
        };
        let Some(check) = self.check(chunk.index) else {
            self.received = Some(chunk);
            return;
        };
        let Take { transfer, sink, .. } = self.take;
        let range = range(chunk.index, self.size);
        let size = self.size;
        self.writing = Some(Box::pin(async move {
            sink.reserve(Some(size), range.end).await?;
            let written = transfer.state().written.clone();
            let bytes = chunk.bytes.clone();
            let checked = sink
                .take_checked(range.start, bytes, check, written)
                .await?;
            Ok((chunk, checked))
        }));
    }

    /// Returns what a chunk is checked by; `None` while the hop has not told.
    fn check(&self, index: u32) -> Option<Check> {
        let algorithm = self.take.transfer.digest.algorithm();
        let before = match index.checked_sub(1) {
            None => ChainValue::start(algorithm),
            Some(last) => self.chain.get(last as usize)?.clone(),
        };
        let after = if index + 1 == self.chunks() {
            None
        } else {
            Some(self.chain.get(index as usize)?.clone())
        };
        Some(Check { before, after })
    }

    async fn handle_checked(&mut self, chunk: Chunk, checked: Checked) -> Result<(), Halt> {
        let Chunk { source, index, .. } = chunk;
        let range = range(index, self.size);
        let length = range.end - range.start;
        let Take { transfer, sink, .. } = self.take;
        match checked {
            Checked::Wrong(whole) => {
                tracing::warn!(peer.id = %source.short(), index, "a peer sent a wrong chunk");
                self.take.neighbours.metrics.wrong_chunks.inc();
                self.wrong.push((index, source));
                self.wrong_whole = whole.or(self.wrong_whole);
                self.reading = None;
                self.received = None;
                self.taking.handle_wrong(source);
                if source == self.hop.peer {
                    // Chain and chunk are both its own.
                    self.take.neighbours.distrust(source);
                }
                return Ok(());
            }
            Checked::Right(Taken::Relayed(chunks)) => {
                let advance = |state: &mut State, _| state.phase = Phase::Flowing;
                let relayed = relay(transfer, range.start, chunks, advance).await;
                relayed.map_err(Halt::Transfer)?;
            }
            Checked::Right(Taken::Written) => transfer.change(|state| {
                state.written.insert(range);
                state.phase = Phase::Flowing;
                sink.publish_chain(&mut state.chain);
            }),
        }
        let metrics = &self.take.neighbours.metrics;
        metrics.received_bytes.inc_by(length);
        self.taking.handle_chunk(index);
        // Somebody else's chunk fits the chain, so it was the sender's fault.
        for (_, sender) in self.wrong.extract_if(.., |(wrong, _)| *wrong == index) {
            self.take.neighbours.distrust(sender);
        }
        Ok(())
    }

    fn handle_far(&mut self, position: u64) {
        let index = u32::try_from(position / CHUNK_BYTES).unwrap_or(u32::MAX);
        if self.taking.handle_wanted(index) {
            self.reading = None;
            self.received = None;
            self.taking.handle_done();
        }
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

/// Returns the bytes of a chunk in the blob, half-open.
fn range(index: u32, size: u64) -> Range<u64> {
    let start = u64::from(index) * CHUNK_BYTES;
    start..(start + CHUNK_BYTES).min(size)
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
