//! The two sides of the peer room: a file behind a handler, and a reader that asks for its chunks
//! as a node does.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use millrace::cluster::{Identity, Member, Standing, View};
use millrace::peer::{ChunkEvent, Config, Handler, Members, PeerManifest, PeerTag, Peers};
use millrace::store::Buffers;
use millrace::task::Tasks;
use millrace_protocol::chunk::{self, CHUNK_BYTES};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest};
use millrace_protocol::wire::message::{
    AskHolds, AskManifest, AskVouch, BlobNews, Holding, MAX_READ_CHUNKS, OpenBlob, ReadChunks,
    RecallTag, Refusal, ResolveTag, Role,
};
use tokio::sync::{mpsc, watch};

use crate::part::told_to_end;
use crate::sink::{Received, Sink};

/// Chunks that have arrived and wait to be hashed.
const QUEUE: usize = 8;

/// Serves the file until told to end.
pub(crate) async fn send(source: &Path, listen: SocketAddr, folder: &Path) -> Result<()> {
    let peers = start(folder, "sender", "receiver", (listen, listen))?;
    let file = File::open(source)?;
    let size = file.metadata()?.len();
    peers.serve(Arc::new(Served {
        file: Arc::new(file),
        size,
        buffers: Buffers::default(),
    }));
    println!("{}", peers.local_address().context("bound")?);
    told_to_end().await
}

/// Asks for all chunks in order, the next question before the last is answered.
pub(crate) async fn receive(target: &Path, from: SocketAddr, folder: &Path) -> Result<Received> {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let peers = start(folder, "receiver", "sender", (any, from))?;
    let sender = Identity::open(&folder.join("sender"))?.id();
    let mut sink = Sink::create(target)?;
    let (queue, mut arrived) = mpsc::channel::<Vec<Bytes>>(QUEUE);
    let writing = tokio::task::spawn_blocking(move || {
        while let Some(pieces) = arrived.blocking_recv() {
            sink.add_pieces(&pieces)?;
        }
        anyhow::Ok(sink.finish())
    });
    receive_chunks(&peers, sender, queue).await?;
    writing.await?
}

async fn receive_chunks(
    peers: &Peers,
    sender: NodeId,
    queue: mpsc::Sender<Vec<Bytes>>,
) -> Result<()> {
    let digest = Digest::of(Algorithm::Sha256, b"");
    let question = OpenBlob {
        digest,
        role: Role::Holder,
        origins: Vec::new(),
        zone: String::new(),
        have: 0,
        copy: false,
    };
    let mut news = peers.open(sender, question).await?;
    let Some(BlobNews::Opened { size, .. }) = news.next().await? else {
        bail!("the blob was not opened");
    };
    let chunks = u32::try_from(chunk::count(size))?;
    let step = usize::try_from(MAX_READ_CHUNKS)?;
    let questions = (0..chunks).step_by(step).map(|first| {
        let count = MAX_READ_CHUNKS.min(chunks - first);
        peers.read(
            sender,
            ReadChunks {
                digest,
                first,
                count,
                far: false,
                copy: false,
            },
        )
    });
    let mut streams = stream::iter(questions).buffered(2);
    while let Some(chunks) = streams.next().await {
        let mut chunks = chunks?;
        loop {
            match chunks.next().await? {
                ChunkEvent::Chunk { bytes, .. } => queue.send(bytes).await?,
                ChunkEvent::Done => break,
                other => bail!("no chunk but {other:?}"),
            }
        }
    }
    Ok(())
}

/// Starts the peer room of one side; `addresses` are this side's and the other's.
fn start(
    folder: &Path,
    me: &str,
    other: &str,
    addresses: (SocketAddr, SocketAddr),
) -> Result<Peers> {
    let identity = Identity::open(&folder.join(me))?;
    let other = Identity::open(&folder.join(other))?.id();
    let member = |id, address| Member {
        id,
        generation: 1,
        zone: String::new(),
        addresses: vec![address],
        weight: 1,
        version: String::new(),
        wire_version: millrace_protocol::wire::frame::VERSION,
        load: 0,
        standing: Standing::Alive,
    };
    let members = vec![
        member(identity.id(), addresses.0),
        member(other, addresses.1),
    ];
    let members = Arc::new(Two {
        view: Arc::new(View::of(identity.id(), "", members)),
        changes: watch::Sender::new(0),
    });
    let config = Config {
        listen: addresses.0,
        ..Config::default()
    };
    Ok(Peers::bind(&config, &identity, members, &Tasks::default())?)
}

/// A cluster of two that never changes.
#[derive(Debug)]
struct Two {
    view: Arc<View>,
    changes: watch::Sender<u64>,
}

impl Members for Two {
    fn view(&self) -> Arc<View> {
        self.view.clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// The file, whatever digest is asked for; clones share it.
#[derive(Clone, Debug)]
struct Served {
    file: Arc<File>,
    size: u64,
    buffers: Buffers,
}

/// Reads a chunk as the store does, into the buffers that it lends.
fn read_chunk(served: &Served, index: u32) -> ChunkEvent {
    let mut at = u64::from(index) * CHUNK_BYTES;
    let end = (at + CHUNK_BYTES).min(served.size);
    let mut bytes = Vec::new();
    while at < end {
        let wanted = usize::try_from(end - at).expect("a chunk fits");
        let mut buffer = served.buffers.take(wanted);
        match served.file.read_at(buffer.space(), at) {
            Ok(read) if read > 0 => {
                at += read as u64;
                bytes.push(buffer.freeze(read));
            }
            _ => return ChunkEvent::Absent,
        }
    }
    ChunkEvent::Chunk { index, bytes }
}

impl Handler for Served {
    fn open(&self, _: NodeId, _: OpenBlob) -> BoxStream<'static, Result<BlobNews, Refusal>> {
        let opened = BlobNews::Opened {
            size: self.size,
            provenance: Vec::new(),
            sources: Vec::new(),
        };
        stream::iter([Ok(opened)]).chain(stream::pending()).boxed()
    }

    fn read(&self, _: NodeId, question: ReadChunks) -> BoxStream<'static, ChunkEvent> {
        let served = self.clone();
        let indices = question.first..question.first + question.count;
        let chunks = stream::iter(indices).map(move |index| read_chunk(&served, index));
        chunks.chain(stream::iter([ChunkEvent::Done])).boxed()
    }

    fn manifest(
        &self,
        _: NodeId,
        _: AskManifest,
    ) -> BoxFuture<'static, Result<PeerManifest, Refusal>> {
        ready(Err(Refusal::Absent)).boxed()
    }

    fn resolve(&self, _: NodeId, _: ResolveTag) -> BoxFuture<'static, Result<PeerTag, Refusal>> {
        ready(Err(Refusal::Absent)).boxed()
    }

    fn recall(&self, _: NodeId, _: RecallTag) -> BoxFuture<'static, Option<PeerTag>> {
        ready(None).boxed()
    }

    fn holds(&self, _: NodeId, question: AskHolds) -> BoxFuture<'static, Vec<Holding>> {
        ready(vec![Holding::No; question.digests.len()]).boxed()
    }

    fn vouch(&self, _: NodeId, _: AskVouch) -> BoxFuture<'static, Result<Duration, Refusal>> {
        ready(Err(Refusal::Absent)).boxed()
    }
}
