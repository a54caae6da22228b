//! Several nodes' pull rooms in one process, joined by real QUIC on loopback, before one fake
//! upstream. The views are given by the test, so that they may differ and be wrong.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Duration;

use futures_util::TryStreamExt;
use millrace::cluster::{Identity, Member, Standing, View};
use millrace::peer::{self, Handler, Members, Peers};
use millrace::pull::{
    self, BlobBody, HoldingsStatus, Origin, Piece, PullError, Puller, Source, Supplier,
};
use millrace::store::{self, Store};
use millrace::task::Tasks;
use millrace::telemetry::Metrics;
use millrace::upstream::{self, Upstreams};
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest, Reference};
use millrace_protocol::placement::Key;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::watch;

use super::fake::{Fake, Reply, Seen};

/// Time that nodes have to answer each other.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longer than anything takes on a busy machine, unless it waits in a circle.
pub(crate) const PROMPT: Duration = Duration::from_secs(60);

/// Waits for what has to come to an end.
pub(crate) async fn prompt<T>(future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PROMPT, future).await;
    waited.expect("it takes no longer, and waits for nobody in a circle")
}

/// Waits for what nothing tells of.
pub(crate) async fn eventually(mut condition: impl FnMut() -> bool) {
    prompt(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Bytes of a blob of `chunks` chunks, the last one short.
pub(crate) fn noise(seed: u8, chunks: u64) -> Vec<u8> {
    let length = chunks * CHUNK_BYTES - 12_345;
    let mut state = u64::from(seed) + 1;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// Behind how many bytes a body pauses, until the gate is open.
type Pause = Option<(usize, watch::Receiver<bool>)>;

/// What the upstream has: by digest or tag.
#[derive(Clone, Default)]
pub(crate) struct Content {
    blobs: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    tags: Arc<Mutex<HashMap<String, String>>>,
    /// Status of every answer while set.
    pub(crate) broken: Arc<Mutex<Option<u16>>>,
    /// While set, answers wait until it says true.
    pub(crate) gate: Arc<Mutex<Option<watch::Receiver<bool>>>>,
    /// While set, answers from a blob's beginning pause behind so many bytes.
    pub(crate) pause: Arc<Mutex<Pause>>,
    /// What `Authorization` must be, once it is set.
    guard: Arc<Mutex<Option<String>>>,
    /// The only repository that has anything, once it is set.
    only_in: Arc<Mutex<Option<String>>>,
}

impl Content {
    pub(crate) fn add(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        self.blobs.lock().insert(digest.to_string(), bytes);
        digest
    }

    pub(crate) fn tag(&self, tag: &str, digest: &Digest) {
        self.tags.lock().insert(tag.to_owned(), digest.to_string());
    }

    /// Lets in only who says this as `Authorization`; others are asked for a password.
    pub(crate) fn guard(&self, authorization: &str) {
        *self.guard.lock() = Some(authorization.to_owned());
    }

    /// Lets all other repositories be empty.
    pub(crate) fn keep_to(&self, repository: &str) {
        *self.only_in.lock() = Some(format!("/v2/{repository}/"));
    }

    fn answer(&self, seen: &Seen) -> Reply {
        let only_in = self.only_in.lock().clone();
        if only_in.is_some_and(|only| !seen.target.starts_with(&only)) {
            return Reply::new(404, "");
        }
        let guard = self.guard.lock().clone();
        if guard.is_some_and(|guard| guard != seen.header("authorization")) {
            return Reply::new(401, "").header("www-authenticate", "Basic realm=\"corp\"");
        }
        if let Some(status) = *self.broken.lock() {
            return Reply::new(status, "");
        }
        let path = seen.target.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let tagged = self.tags.lock().get(name).cloned();
        let digest = tagged.unwrap_or_else(|| name.to_owned());
        let Some(bytes) = self.blobs.lock().get(&digest).cloned() else {
            return Reply::new(404, "");
        };
        let range = seen.header("range").strip_prefix("bytes=");
        let start = range.and_then(|range| range.strip_suffix('-')?.parse().ok());
        let reply = match start {
            Some(start) if start > 0 && start < bytes.len() => {
                let (size, last) = (bytes.len(), bytes.len() - 1);
                let range = format!("bytes {start}-{last}/{size}");
                Reply::new(206, &bytes[start..]).header("content-range", range)
            }
            _ => match self.pause.lock().clone() {
                Some((first, gate)) => Reply::new(200, bytes).pausing(first, gate),
                None => Reply::new(200, bytes),
            },
        };
        let reply = reply
            .header("docker-content-digest", digest)
            .header("content-type", "application/vnd.oci.image.manifest.v1+json");
        match self.gate.lock().clone() {
            Some(gate) => reply.after(gate),
            None => reply,
        }
    }
}

/// The members that a test gives a node.
#[derive(Debug)]
pub(crate) struct Given {
    view: Mutex<Arc<View>>,
    number: watch::Sender<u64>,
}

impl Given {
    fn alone(id: NodeId, zone: &str) -> Self {
        Self {
            view: Mutex::new(Arc::new(View::of(id, zone, Vec::new()))),
            number: watch::Sender::new(0),
        }
    }

    /// Lets the node see that a split has just healed.
    pub(crate) fn heal(&self) {
        let mut view = self.view.lock();
        let healed = View::clone(&view).healed_at(Some(std::time::Instant::now()));
        *view = Arc::new(healed);
        drop(view);
        self.number.send_modify(|number| *number += 1);
    }

    pub(crate) fn set(&self, members: Vec<Member>) {
        let mut view = self.view.lock();
        *view = Arc::new(View::of(view.me(), view.zone(), members));
        drop(view);
        self.number.send_modify(|number| *number += 1);
    }
}

impl Members for Given {
    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.lock())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.number.subscribe()
    }
}

/// A node without doors.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    zone: String,
    address: SocketAddr,
    pub(crate) members: Arc<Given>,
    pub(crate) peers: Peers,
    pub(crate) store: Store,
    pub(crate) puller: Puller,
    pub(crate) supplier: Supplier,
    upstreams: Upstreams,
    metrics: Metrics,
    folder: TempDir,
}

impl Node {
    /// Returns where the store keeps a blob.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        let blobs = self.folder.path().join("store/blobs/sha256");
        blobs.join(&digest.hex()[..2]).join(digest.hex())
    }

    pub(crate) fn member(&self) -> Member {
        member(self.id, &self.zone, self.address)
    }

    fn origin(&self, repository: &str) -> Origin {
        self.origin_of("corp", repository)
    }

    /// Returns a repository of one of the two upstreams, `corp` and `hub`.
    pub(crate) fn origin_of(&self, upstream: &str, repository: &str) -> Origin {
        Origin {
            upstream: self.upstreams.find(upstream).expect("configured"),
            repository: repository.parse().expect("a name"),
        }
    }

    /// Pulls a blob as a client would.
    pub(crate) async fn pull(&self, digest: &Digest) -> Result<(Vec<u8>, Source), PullError> {
        self.pull_from("team/app", digest).await
    }

    pub(crate) async fn pull_from(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<(Vec<u8>, Source), PullError> {
        self.pull_as(&self.origin(repository), digest).await
    }

    pub(crate) async fn pull_as(
        &self,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<(Vec<u8>, Source), PullError> {
        let blob = self.puller.blob(origin, digest).await?;
        let source = blob.source();
        let body = blob.read(0..u64::MAX).await?;
        Ok((whole(body).await?, source))
    }

    /// Pulls some bytes of a blob.
    pub(crate) async fn pull_range(
        &self,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<Vec<u8>, PullError> {
        whole(self.body(digest, range).await?).await
    }

    /// Begins to pull some bytes of a blob.
    pub(crate) async fn body(
        &self,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<BlobBody, PullError> {
        let blob = self.puller.blob(&self.origin("team/app"), digest).await?;
        blob.read(range).await
    }

    /// What the others have told this node.
    pub(crate) fn holdings(&self) -> HoldingsStatus {
        self.puller.status().holdings.expect("a cluster")
    }

    /// How many questions of this kind it has asked.
    pub(crate) fn asked(&self, kind: &str) -> u64 {
        self.counted(&format!(
            "millrace_peer_questions_sent_total{{kind=\"{kind}\"}}"
        ))
    }

    /// Returns a counter; 0 while it has counted nothing.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        let line = format!("{name} ");
        let text = self.metrics.encode().expect("a String takes all");
        let count = text.lines().find_map(|known| known.strip_prefix(&line));
        count.map_or(0, |count| count.parse().expect("a number"))
    }

    /// Waits until so many others have told this node everything.
    pub(crate) async fn in_sync(&self, others: usize) {
        while self.holdings().in_sync != others {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Whether a blob is in the store.
    pub(crate) async fn holds(&self, digest: &Digest) -> bool {
        let missing = self.store.missing(vec![*digest]).await;
        missing.expect("a store").is_empty()
    }

    /// Waits until everything that was pulled is in the store.
    pub(crate) async fn settled(&self) {
        while !self.puller.status().transfers.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    /// Pulls a manifest by tag or digest; returns its bytes.
    pub(crate) async fn manifest(&self, reference: &str) -> Result<Vec<u8>, PullError> {
        let reference: Reference = reference.parse().expect("a reference");
        let origin = self.origin("team/app");
        let answer = self.puller.manifest(&origin, &reference).await?;
        Ok(answer.bytes.to_vec())
    }
}

/// Reads a body to its end.
async fn whole(body: BlobBody) -> Result<Vec<u8>, PullError> {
    let pieces: Vec<Piece> = body.try_collect().await?;
    let bytes = pieces.iter().flat_map(|piece| match piece {
        Piece::Memory(bytes) => bytes.iter().copied(),
        Piece::File(_) => panic!("nobody told the body to lend"),
    });
    Ok(bytes.collect())
}

/// What a test may want otherwise than usual.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) pull: pull::Config,
    /// Bytes of each store.
    pub(crate) max_size: u64,
    /// How long a node may work on an answer without waiting for others.
    pub(crate) own_work: Duration,
    /// User and password for the upstream.
    pub(crate) login: Option<(String, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pull: pull::Config::default(),
            max_size: 256 * 1024 * 1024,
            own_work: peer::Config::default().own_work,
            login: None,
        }
    }
}

/// Nodes that know each other, and their upstream.
pub(crate) struct Mesh {
    pub(crate) nodes: Vec<Node>,
    pub(crate) upstream: Fake,
    pub(crate) content: Content,
}

impl Mesh {
    /// Starts a node in each of these zones, with the same upstream `corp`; `hub` is the same
    /// registry, asked without a password.
    pub(crate) async fn start(zones: &[&str]) -> Self {
        let mesh = Self::strangers(zones).await;
        mesh.introduce();
        mesh
    }

    /// Lets everybody know everybody.
    pub(crate) fn introduce(&self) {
        let everybody: Vec<Member> = self.nodes.iter().map(Node::member).collect();
        for node in &self.nodes {
            node.members.set(everybody.clone());
        }
    }

    /// Lets everybody believe that all keys are its own, of the members that it knows.
    pub(crate) fn divide(&self) {
        for node in &self.nodes {
            let mut members = node.members.view().members().to_vec();
            for member in &mut members {
                member.weight = u16::from(member.id == node.id).into();
            }
            node.members.set(members);
        }
    }

    /// As [`Mesh::start`], but nobody knows anybody yet.
    pub(crate) async fn strangers(zones: &[&str]) -> Self {
        Self::strangers_with(zones, Settings::default()).await
    }

    /// As [`Mesh::strangers`], with other settings.
    pub(crate) async fn strangers_with(zones: &[&str], settings: Settings) -> Self {
        install_provider();
        let content = Content::default();
        let answers = content.clone();
        let upstream = Fake::start(move |seen| answers.answer(seen)).await;
        let mut nodes = Vec::new();
        for zone in zones {
            nodes.push(node(zone, &upstream.url(), settings.clone()).await);
        }
        Self {
            nodes,
            upstream,
            content,
        }
    }

    /// Adds a node that answers as `handler` says, and makes it the home of everything.
    pub(crate) fn add_home(&self, handler: Arc<dyn Handler>) -> Peers {
        let extra = Extra::start();
        extra.peers.serve(handler);
        let mut everybody: Vec<Member> = self.nodes.iter().map(Node::member).collect();
        everybody.iter_mut().for_each(|member| member.weight = 0);
        everybody.push(extra.member());
        self.set_all(&extra, &everybody);
        extra.peers
    }

    /// Lets everybody know everybody and a node that owns nothing and answers as `handler` says
    /// for the placement that all have then.
    pub(crate) fn add_extra(&self, handler: impl FnOnce(u64) -> Arc<dyn Handler>) -> Extra {
        let extra = Extra::start();
        let mut everybody: Vec<Member> = self.nodes.iter().map(Node::member).collect();
        let mut light = extra.member();
        light.weight = 0;
        everybody.push(light);
        let view = View::of(extra.id, "a", everybody.clone());
        extra.peers.serve(handler(view.placement().fingerprint()));
        self.set_all(&extra, &everybody);
        extra
    }

    fn set_all(&self, extra: &Extra, everybody: &[Member]) {
        // First who would refuse a connection.
        let given = self.nodes.iter().map(|node| &node.members);
        for given in [&extra.members].into_iter().chain(given) {
            given.set(everybody.to_vec());
        }
    }

    /// Waits until everybody has told everybody what it holds.
    pub(crate) async fn in_sync(&self) {
        for node in &self.nodes {
            node.in_sync(self.nodes.len() - 1).await;
        }
    }

    /// Returns the indices of the nodes: the home of a digest first, the others behind it.
    pub(crate) fn by_walk(&self, digest: &Digest) -> Vec<usize> {
        let view = self.nodes[0].members.view();
        let home = view.homes(Key::of_digest(digest)).next().expect("members");
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.sort_by_key(|index| self.nodes[*index].id != home);
        order
    }

    /// Returns how many bodies the upstream was asked for whose target contains `part`.
    pub(crate) fn gets(&self, part: &str) -> usize {
        let seen = self.upstream.seen(part);
        seen.iter().filter(|seen| seen.method == "GET").count()
    }

    pub(crate) fn heads(&self, part: &str) -> usize {
        let seen = self.upstream.seen(part);
        seen.iter().filter(|seen| seen.method == "HEAD").count()
    }
}

/// A node that is nothing but the exchange with peers.
pub(crate) struct Extra {
    pub(crate) id: NodeId,
    members: Arc<Given>,
    pub(crate) peers: Peers,
    _folder: TempDir,
}

impl Extra {
    fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let identity = Identity::open(folder.path()).expect("an identity");
        let members = Arc::new(Given::alone(identity.id(), "a"));
        let tasks = Tasks::default();
        let peers = Peers::bind(&patient(), &identity, members.clone(), &tasks).expect("binds");
        Self {
            id: identity.id(),
            members,
            peers,
            _folder: folder,
        }
    }

    fn member(&self) -> Member {
        let address = self.peers.local_address().expect("bound");
        member(self.id, "a", address)
    }
}

pub(crate) fn install_provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        rustls::crypto::ring::default_provider()
            .install_default()
            .expect("the first provider");
    });
}

fn member(id: NodeId, zone: &str, address: SocketAddr) -> Member {
    Member {
        id,
        generation: 1,
        zone: zone.to_owned(),
        addresses: vec![address],
        weight: 1,
        version: "test".to_owned(),
        wire_version: 1,
        load: 0,
        standing: Standing::Alive,
    }
}

/// A busy machine must not look like a dead peer.
fn patient() -> peer::Config {
    peer::Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        connect_patience: PATIENCE,
        silence: PATIENCE,
        ..peer::Config::default()
    }
}

async fn node(zone: &str, upstream: &str, settings: Settings) -> Node {
    let (tasks, folder) = (Tasks::default(), TempDir::new().expect("a folder"));
    let identity = Identity::open(folder.path()).expect("an identity");
    let login = settings.login.map_or_else(String::new, |(user, password)| {
        format!(", username: '{user}', password: '{password}'")
    });
    let entries = serde_saphyr::from_str(&format!(
        "{{corp: {{url: '{upstream}'{login}}}, hub: {{url: '{upstream}'}}}}"
    ));
    let config = upstream::Config::with_builtins(entries.expect("valid YAML"), None);
    let upstreams = Upstreams::new(&config.expect("valid"), &tasks).expect("sets up");
    let store = store::Config {
        root: folder.path().join("store"),
        max_size: Some(settings.max_size),
        min_free: Some(0),
    };
    let store = Store::open(&store, &tasks).await.expect("opens");
    let members = Arc::new(Given::alone(identity.id(), zone));
    let config = peer::Config {
        own_work: settings.own_work,
        ..patient()
    };
    let peers = Peers::bind(&config, &identity, members.clone(), &tasks).expect("binds");
    let cluster: Arc<dyn Members> = members.clone();
    let neighbours = Some((cluster, peers.clone()));
    let config = pull::Config {
        holds_patience: PATIENCE,
        ..settings.pull
    };
    let puller = Puller::new(config, store.clone(), neighbours, &tasks);
    let supplier = Supplier::new(puller.clone(), upstreams.clone());
    peers.serve(Arc::new(supplier.clone()));
    let metrics = Metrics::new(|registry| {
        peers.register_metrics(registry);
        puller.register_metrics(registry);
    });
    Node {
        id: identity.id(),
        zone: zone.to_owned(),
        address: peers.local_address().expect("bound"),
        members,
        peers,
        store,
        puller,
        supplier,
        upstreams,
        metrics,
        folder,
    }
}
