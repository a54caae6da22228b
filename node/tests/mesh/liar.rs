//! A peer that speaks the protocol and lies about content.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{self, BoxFuture};
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use millrace::peer::{ChunkEvent, Handler, PeerManifest, PeerTag};
use millrace_protocol::chunk::{self, CHUNK_BYTES, ChainHasher, ChainValue};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{
    AskHolds, AskManifest, AskVouch, BlobNews, Holding, HoldingsChange, MAX_TOLD_KEYS, OpenBlob,
    ReadChunks, RecallTag, Refusal, ResolveTag,
};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Claims to have every blob.
#[derive(Debug)]
pub(crate) struct Liar {
    /// What it sends.
    pub(crate) sent: Vec<u8>,
    /// What it computes its chain from.
    pub(crate) chained: Vec<u8>,
    /// The size that it states.
    pub(crate) size: u64,
    /// Whether it sends nothing at all.
    pub(crate) mute: bool,
    /// Whether it answers nothing that it is asked for content, and lives.
    pub(crate) hesitates: bool,
    /// How many chunks it has, from the first on, if not all; of the others it says *not yet*.
    pub(crate) here: Option<u32>,
    /// How many values it tells before it ends its news, if it takes the blob from others; it may send more.
    pub(crate) part: Option<u32>,
    /// What it answers about every content.
    pub(crate) holding: Holding,
    /// Whom it lets wait for an answer what it holds, until this is true.
    pub(crate) keeps_waiting: Option<(NodeId, watch::Receiver<bool>)>,
    /// What it tells of its holdings before it falls silent.
    pub(crate) told: Vec<HoldingsChange>,
    /// How many batches of holdings it makes up behind that.
    pub(crate) made_up: u64,
    /// What it gives ahead of its chain.
    pub(crate) far: Option<Far>,
    /// Whom it names instead of sending anything, the first time that it is asked for chunks.
    pub(crate) names: Mutex<Vec<NodeId>>,
    /// How many chunks it may have sent by now, if it is slow.
    pub(crate) pace: Option<watch::Receiver<u32>>,
    /// As what it was asked for blobs, in the order of the questions.
    pub(crate) opened: Arc<Mutex<Vec<OpenBlob>>>,
}

/// What a liar gives out of order while it has only the first chunk in order.
#[derive(Debug)]
pub(crate) struct Far {
    /// What it sends.
    pub(crate) sent: Vec<u8>,
    /// What it computes the digests from that it states.
    pub(crate) stated: Vec<u8>,
    /// When it has the rest.
    pub(crate) gate: watch::Receiver<bool>,
}

impl Far {
    fn chunk(&self, index: u32) -> ChunkEvent {
        let start = usize::try_from(u64::from(index) * CHUNK_BYTES).expect("small");
        let range = start..start + usize::try_from(CHUNK_BYTES).expect("small");
        ChunkEvent::Far {
            index,
            bytes: vec![Bytes::copy_from_slice(&self.sent[range.clone()])],
            digest: Digest::of(Algorithm::Sha256, &self.stated[range]),
        }
    }
}

impl Liar {
    pub(crate) fn honest(bytes: &[u8]) -> Self {
        Self {
            sent: bytes.to_vec(),
            chained: bytes.to_vec(),
            size: bytes.len() as u64,
            mute: false,
            hesitates: false,
            here: None,
            part: None,
            holding: Holding::No,
            keeps_waiting: None,
            told: Vec::new(),
            made_up: 0,
            far: None,
            names: Mutex::default(),
            pace: None,
            opened: Arc::default(),
        }
    }

    fn chain(&self) -> Vec<ChainValue> {
        let mut values = Vec::new();
        ChainHasher::new(Algorithm::Sha256).update(&self.chained, |value| values.push(value));
        let wanted = usize::try_from(chunk::count(self.size)).expect("small") - 1;
        values.resize(wanted, ChainValue::start(Algorithm::Sha256));
        values
    }

    fn chunk(&self, index: u32) -> ChunkEvent {
        if self.here.is_some_and(|here| index >= here) {
            return ChunkEvent::NotYet;
        }
        let start = u64::from(index) * CHUNK_BYTES;
        let end = (start + CHUNK_BYTES).min(self.size);
        let mut bytes = self.sent.clone();
        bytes.resize(usize::try_from(self.size).expect("small"), 0);
        let (start, end) = (usize::try_from(start), usize::try_from(end));
        let bytes = bytes[start.expect("small")..end.expect("small")].to_vec();
        ChunkEvent::Chunk {
            index,
            bytes: vec![Bytes::from(bytes)],
        }
    }
}

impl Handler for Liar {
    fn open(&self, _: NodeId, question: OpenBlob) -> BoxStream<'static, Result<BlobNews, Refusal>> {
        self.opened.lock().push(question);
        if self.hesitates {
            return stream::pending().boxed();
        }
        let opened = BlobNews::Opened {
            size: self.size,
            provenance: Vec::new(),
            sources: Vec::new(),
        };
        let mut news = vec![Ok(opened)];
        let mut values = self.chain();
        let told = self.here.or(self.part);
        values.truncate(told.map_or(values.len(), |told| told as usize));
        if let Some(far) = &self.far {
            let rest = values.split_off(1);
            news.push(Ok(BlobNews::Chain { first: 0, values }));
            let rest = Ok(BlobNews::Chain {
                first: 1,
                values: rest,
            });
            let rest = stream::once(after(far.gate.clone(), rest));
            return stream::iter(news)
                .chain(rest)
                .chain(stream::pending())
                .boxed();
        }
        if !values.is_empty() {
            news.push(Ok(BlobNews::Chain { first: 0, values }));
        }
        if self.part.is_some() {
            return stream::iter(news).boxed();
        }
        stream::iter(news).chain(stream::pending()).boxed()
    }

    fn read(&self, _: NodeId, question: ReadChunks) -> BoxStream<'static, ChunkEvent> {
        if self.mute {
            return stream::pending().boxed();
        }
        let ask = std::mem::take(&mut *self.names.lock());
        if !ask.is_empty() {
            return stream::iter([ChunkEvent::Busy { ask }]).boxed();
        }
        let chunks = question.first..question.first + question.count;
        let events: Vec<_> = match &self.far {
            Some(far) if question.far => chunks.map(|index| far.chunk(index)).collect(),
            _ => chunks.map(|index| self.chunk(index)).collect(),
        };
        if let Some(pace) = &self.pace {
            return paced(events, question.first, pace.clone());
        }
        let gate = self.far.as_ref().filter(|_| !question.far);
        let first = usize::from(question.first == 0);
        let (now, later) = events.split_at(first.min(events.len()));
        let later = later.to_vec();
        let later = match gate.map(|far| far.gate.clone()) {
            Some(gate) => stream::once(after(gate, stream::iter(later)))
                .flatten()
                .boxed(),
            None => stream::iter(later).boxed(),
        };
        stream::iter(now.to_vec())
            .chain(later)
            .chain(stream::once(async { ChunkEvent::Done }))
            .boxed()
    }

    fn manifest(
        &self,
        _: NodeId,
        _: AskManifest,
    ) -> BoxFuture<'static, Result<PeerManifest, Refusal>> {
        if self.hesitates {
            return future::pending().boxed();
        }
        async { Err(Refusal::Absent) }.boxed()
    }

    fn resolve(&self, _: NodeId, _: ResolveTag) -> BoxFuture<'static, Result<PeerTag, Refusal>> {
        if self.hesitates {
            return future::pending().boxed();
        }
        async { Err(Refusal::Unable) }.boxed()
    }

    fn recall(&self, _: NodeId, _: RecallTag) -> BoxFuture<'static, Option<PeerTag>> {
        async { None }.boxed()
    }

    fn holds(&self, from: NodeId, question: AskHolds) -> BoxFuture<'static, Vec<Holding>> {
        let answer = vec![self.holding; question.digests.len()];
        match &self.keeps_waiting {
            Some((whom, gate)) if *whom == from => after(gate.clone(), answer).boxed(),
            _ => future::ready(answer).boxed(),
        }
    }

    fn vouch(&self, _: NodeId, _: AskVouch) -> BoxFuture<'static, Result<Duration, Refusal>> {
        async { Err(Refusal::Unable) }.boxed()
    }

    fn follow(&self, _: NodeId) -> BoxStream<'static, HoldingsChange> {
        let made_up = stream::iter(0..self.made_up).map(|batch| {
            let keys = 0..MAX_TOLD_KEYS as u64;
            let digest = |key: u64| {
                let content = (batch * MAX_TOLD_KEYS as u64 + key).to_le_bytes();
                Digest::of(Algorithm::Sha256, &content)
            };
            HoldingsChange::Have(keys.map(|key| Key::of_digest(&digest(key))).collect())
        });
        stream::iter(self.told.clone())
            .chain(made_up)
            .chain(stream::pending())
            .boxed()
    }
}

/// Sends chunks from `first` on, each when it may be sent.
fn paced(
    events: Vec<ChunkEvent>,
    first: u32,
    pace: watch::Receiver<u32>,
) -> BoxStream<'static, ChunkEvent> {
    let events = stream::iter((first..).zip(events)).then(move |(index, event)| {
        let mut pace = pace.clone();
        async move {
            // Who sets it is gone: the test is over.
            let _ = pace.wait_for(|sent| *sent > index).await;
            event
        }
    });
    let done = stream::once(async { ChunkEvent::Done });
    events.chain(done).boxed()
}

async fn after<T>(mut gate: watch::Receiver<bool>, then: T) -> T {
    // Who could open it is gone: the test is over.
    let _ = gate.wait_for(|open| *open).await;
    then
}
