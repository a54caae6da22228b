//! Nodes of a test: each a `Peers` with members and answers that the test decides.

#[path = "../panics/watch.rs"]
mod panics;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use millrace::cluster::{Identity, Member, Standing, View};
use millrace::peer::{ChunkEvent, Config, Handler, Members, PeerManifest, PeerTag, Peers};
use millrace::task::Tasks;
use millrace_protocol::chunk::{CHUNK_BYTES, ChainHasher};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest, MediaType};
use millrace_protocol::wire::message::{
    AskHolds, AskManifest, AskVouch, BlobNews, Holding, OpenBlob, OriginName, ReadChunks,
    RecallTag, Refusal, ResolveTag,
};
use tokio::sync::{Semaphore, watch};

use panics::NoPanics;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Members that the test sets.
#[derive(Debug)]
pub(crate) struct FakeMembers {
    view: ArcSwap<View>,
    changes: watch::Sender<u64>,
}

impl FakeMembers {
    pub(crate) fn set(&self, members: Vec<Member>) {
        let me = self.view.load().me();
        self.view.store(Arc::new(View::of(me, "a", members)));
        self.changes.send_modify(|number| *number += 1);
    }
}

impl Members for FakeMembers {
    fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// One node.
pub(crate) struct Node {
    pub(crate) peers: Peers,
    pub(crate) members: Arc<FakeMembers>,
    pub(crate) handler: Arc<FakeHandler>,
    pub(crate) id: NodeId,
    pub(crate) identity: Identity,
    pub(crate) generation: u64,
    pub(crate) tasks: Tasks,
    folder: Arc<tempfile::TempDir>,
    _panics: NoPanics,
}

/// Patience that makes a test short, and still is several times what a busy machine takes.
pub(crate) fn quick() -> Config {
    Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        silence: Duration::from_secs(2),
        pending: Duration::from_millis(100),
        question_patience: Duration::from_secs(2),
        stall: Duration::from_millis(700),
        back_off: Duration::from_millis(100),
        ..Config::default()
    }
}

impl Node {
    pub(crate) fn start(config: &Config) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().expect("folder")), config, 1)
    }

    fn start_in(folder: Arc<tempfile::TempDir>, config: &Config, generation: u64) -> Self {
        let identity = Identity::open(folder.path()).expect("identity");
        let members = Arc::new(FakeMembers {
            view: ArcSwap::from_pointee(View::of(identity.id(), "a", Vec::new())),
            changes: watch::Sender::new(0),
        });
        let tasks = Tasks::default();
        let peers = Peers::bind(config, &identity, members.clone(), &tasks).expect("binds");
        let handler = Arc::new(FakeHandler::default());
        peers.serve(handler.clone());
        Self {
            peers,
            members,
            handler,
            id: identity.id(),
            identity,
            generation,
            tasks,
            folder,
            _panics: NoPanics::watch(),
        }
    }

    /// Starts another node with the identity of this one, as a copied data folder would.
    pub(crate) fn twin(&self) -> Self {
        Self::start_in(self.folder.clone(), &quick(), self.generation)
    }

    /// Ends the process, as far as peers can tell, and starts it again at the same address.
    pub(crate) async fn crash_and_restart(self) -> Self {
        let listen = self.address();
        let Self {
            peers,
            tasks,
            folder,
            generation,
            handler,
            members,
            ..
        } = self;
        peers.close().await;
        assert_eq!(tasks.stop(PATIENCE).await, 0);
        drop((peers, handler, members));
        let config = Config { listen, ..quick() };
        eventually("the port is free", || {
            std::net::UdpSocket::bind(listen).is_ok()
        })
        .await;
        Self::start_in(folder, &config, generation + 1)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.peers.local_address().expect("bound")
    }

    pub(crate) fn member(&self) -> Member {
        member(self.id, self.generation, self.address())
    }
}

pub(crate) fn member(id: NodeId, generation: u64, address: SocketAddr) -> Member {
    Member {
        id,
        generation,
        zone: "a".to_owned(),
        addresses: vec![address],
        weight: 1,
        version: "test".to_owned(),
        wire_version: millrace_protocol::wire::frame::VERSION,
        load: 0,
        standing: Standing::Alive,
    }
}

/// Makes each of the nodes a member to all of them.
pub(crate) fn introduce(nodes: &[&Node]) {
    let members: Vec<Member> = nodes.iter().map(|node| node.member()).collect();
    for node in nodes {
        node.members.set(members.clone());
    }
}

/// Waits for a condition.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A blob with its digest.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
}

impl Blob {
    pub(crate) fn of(length: usize) -> Self {
        let bytes: Bytes = (0..length).map(|at| (at * 7 % 253) as u8).collect();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        Self { bytes, digest }
    }

    fn chunk(&self, index: u32) -> Option<Bytes> {
        let size = usize::try_from(CHUNK_BYTES).expect("fits");
        let start = usize::try_from(index).expect("fits").checked_mul(size)?;
        let end = self.bytes.len().min(start.checked_add(size)?);
        (start < end).then(|| self.bytes.slice(start..end))
    }
}

/// What the fake answers; a digest that is in none of these is absent.
#[derive(Debug)]
pub(crate) struct FakeHandler {
    pub(crate) blobs: parking_lot::Mutex<Vec<Blob>>,
    /// Each answer takes one of these first: without them, answers are pending.
    pub(crate) turns: Arc<Semaphore>,
    /// Streams and futures that are alive.
    alive: Arc<()>,
    pub(crate) others: parking_lot::Mutex<Vec<NodeId>>,
    pub(crate) questions: std::sync::atomic::AtomicUsize,
}

impl Default for FakeHandler {
    fn default() -> Self {
        Self {
            blobs: parking_lot::Mutex::default(),
            turns: Arc::new(Semaphore::new(1_000_000)),
            alive: Arc::new(()),
            others: parking_lot::Mutex::default(),
            questions: 0.into(),
        }
    }
}

impl FakeHandler {
    /// Makes every answer wait.
    pub(crate) fn hold(&self) {
        self.turns.forget_permits(usize::MAX >> 4);
    }

    /// Lets every answer go.
    pub(crate) fn release(&self) {
        self.turns.add_permits(1_000_000);
    }

    /// How many answers are being worked on or listened to.
    pub(crate) fn alive(&self) -> usize {
        Arc::strong_count(&self.alive) - 1
    }

    fn find(&self, digest: &Digest) -> Option<Blob> {
        let blobs = self.blobs.lock();
        blobs.iter().find(|blob| blob.digest == *digest).cloned()
    }

    /// Counts a question; what is returned waits for its turn, and counts as alive meanwhile.
    fn turn(&self) -> impl Future<Output = Arc<()>> + Send + 'static + use<> {
        self.questions
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (turns, alive) = (self.turns.clone(), self.alive.clone());
        async move {
            turns.acquire().await.expect("never closed").forget();
            alive
        }
    }
}

pub(crate) fn origin() -> OriginName {
    OriginName {
        upstream: "docker.io".to_owned(),
        repository: "library/alpine".parse().expect("valid"),
        credential: "anonymous".to_owned(),
    }
}

/// All news of a blob, in order.
pub(crate) fn news_of(blob: &Blob, sources: Vec<NodeId>) -> Vec<BlobNews> {
    let mut values = Vec::new();
    let mut hasher = ChainHasher::new(Algorithm::Sha256);
    hasher.update(&blob.bytes, |value| values.push(value));
    vec![
        BlobNews::Opened {
            size: blob.bytes.len() as u64,
            provenance: vec![origin()],
            sources: sources.clone(),
        },
        BlobNews::Chain { first: 0, values },
        BlobNews::Sources(sources),
        BlobNews::Whole,
    ]
}

impl Handler for FakeHandler {
    fn open(
        &self,
        from: NodeId,
        question: OpenBlob,
    ) -> BoxStream<'static, Result<BlobNews, Refusal>> {
        let (turn, blob) = (self.turn(), self.find(&question.digest));
        let news = async move {
            let alive = turn.await;
            let news: Vec<_> = match blob {
                Some(blob) => news_of(&blob, vec![from]).into_iter().map(Ok).collect(),
                None => vec![Err(Refusal::Absent)],
            };
            // The stream stays open behind the news, until the asker drops it.
            let rest = stream::pending().map(move |news| {
                let _ = &alive;
                news
            });
            stream::iter(news).chain(rest)
        };
        news.flatten_stream().boxed()
    }

    fn read(&self, _from: NodeId, question: ReadChunks) -> BoxStream<'static, ChunkEvent> {
        let (turn, blob) = (self.turn(), self.find(&question.digest));
        let events = async move {
            let _alive = turn.await;
            let Some(blob) = blob else {
                return stream::iter(vec![ChunkEvent::Absent]);
            };
            let mut events = Vec::new();
            for index in question.first..question.first + question.count {
                let Some(bytes) = blob.chunk(index) else {
                    events.push(ChunkEvent::NotYet);
                    return stream::iter(events);
                };
                // In pieces, as a store would read it.
                let middle = bytes.len() / 3;
                let bytes = vec![bytes.slice(..middle), bytes.slice(middle..)];
                events.push(ChunkEvent::Chunk { index, bytes });
            }
            events.push(ChunkEvent::Done);
            stream::iter(events)
        };
        events.flatten_stream().boxed()
    }

    fn manifest(
        &self,
        _from: NodeId,
        question: AskManifest,
    ) -> BoxFuture<'static, Result<PeerManifest, Refusal>> {
        let (turn, blob) = (self.turn(), self.find(&question.digest));
        async move {
            let _alive = turn.await;
            let blob = blob.ok_or(Refusal::NotFound(origin()))?;
            Ok(PeerManifest {
                media_type: MediaType::new(MediaType::OCI_MANIFEST),
                bytes: blob.bytes,
                provenance: vec![origin()],
            })
        }
        .boxed()
    }

    fn resolve(
        &self,
        _from: NodeId,
        question: ResolveTag,
    ) -> BoxFuture<'static, Result<PeerTag, Refusal>> {
        let turn = self.turn();
        async move {
            let _alive = turn.await;
            Ok(PeerTag {
                digest: Digest::of(Algorithm::Sha256, question.tag.as_str().as_bytes()),
                age: Duration::from_millis(question.max_age_ms / 2),
                origin: question.origin,
            })
        }
        .boxed()
    }

    fn recall(&self, _from: NodeId, question: RecallTag) -> BoxFuture<'static, Option<PeerTag>> {
        let turn = self.turn();
        async move {
            let _alive = turn.await;
            (question.tag.as_str() == "known").then(|| PeerTag {
                digest: Digest::of(Algorithm::Sha256, b"known"),
                age: Duration::from_secs(86_400),
                origin: origin(),
            })
        }
        .boxed()
    }

    fn holds(&self, _from: NodeId, question: AskHolds) -> BoxFuture<'static, Vec<Holding>> {
        let turn = self.turn();
        let has = |digest: &Digest| match self.find(digest) {
            Some(_) => Holding::Whole,
            None => Holding::No,
        };
        let holdings = question.digests.iter().map(has).collect();
        async move {
            let _alive = turn.await;
            holdings
        }
        .boxed()
    }

    fn vouch(
        &self,
        _from: NodeId,
        question: AskVouch,
    ) -> BoxFuture<'static, Result<Duration, Refusal>> {
        let turn = self.turn();
        async move {
            let _alive = turn.await;
            match question.is_manifest {
                true => Ok(Duration::from_millis(question.max_age_ms / 2)),
                false => Err(Refusal::NotFound(question.origin)),
            }
        }
        .boxed()
    }

    fn others(&self, _from: NodeId, _question: ReadChunks) -> Vec<NodeId> {
        self.others.lock().clone()
    }
}
