//! One node of a mesh: its pull room and its exchange with peers, without doors.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use millrace::cluster::{Identity, Member};
use millrace::peer::{self, Members, Peers};
use millrace::pull::{
    self, BlobBody, HoldingsStatus, Origin, Piece, PullError, Puller, Source, Supplier,
};
use millrace::store::{self, Store};
use millrace::task::Tasks;
use millrace::telemetry::Metrics;
use millrace::upstream::{self, Upstreams};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Digest, Reference};
use tempfile::TempDir;

use super::given::{Given, member};

/// Time that nodes have to answer each other, unless a test is about that.
const PATIENCE: Duration = Duration::from_secs(5);

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

    /// Returns the file by which the store replaces what it says of an unfinished blob.
    pub(crate) fn part_state_path(&self, digest: &Digest) -> PathBuf {
        let parts = self.folder.path().join("store/parts");
        parts.join(format!("sha256-{}.json.new", digest.hex()))
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
    /// How long a member may say nothing, and take to be connected with.
    pub(crate) silence: Duration,
    /// How long the nearest members have to say what they hold.
    pub(crate) holds_patience: Duration,
    /// User and password for the upstream.
    pub(crate) login: Option<(String, String)>,
    /// How much a node asks of the upstream at a time.
    pub(crate) downloads: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pull: pull::Config::default(),
            max_size: 256 * 1024 * 1024,
            own_work: peer::Config::default().own_work,
            silence: PATIENCE,
            holds_patience: PATIENCE,
            login: None,
            downloads: None,
        }
    }
}

/// A busy machine must not look like a dead peer.
pub(super) fn patient() -> peer::Config {
    peer::Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        connect_patience: PATIENCE,
        silence: PATIENCE,
        pending: Duration::from_millis(100),
        ..peer::Config::default()
    }
}

pub(super) async fn node(zone: &str, upstream: &str, settings: Settings) -> Node {
    let (tasks, folder) = (Tasks::default(), TempDir::new().expect("a folder"));
    let identity = Identity::open(folder.path()).expect("an identity");
    let login = settings.login.map_or_else(String::new, |(user, password)| {
        format!(", username: '{user}', password: '{password}'")
    });
    let limit = settings.downloads.map_or_else(String::new, |most| {
        format!(", max_requests: {most}, max_downloads: {most}")
    });
    let entries = serde_saphyr::from_str(&format!(
        "{{corp: {{url: '{upstream}'{login}{limit}}}, hub: {{url: '{upstream}'}}}}"
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
        connect_patience: settings.silence,
        silence: settings.silence,
        ..patient()
    };
    let peers = Peers::bind(&config, &identity, members.clone(), &tasks).expect("binds");
    let cluster: Arc<dyn Members> = members.clone();
    let neighbours = Some((cluster, peers.clone()));
    let config = pull::Config {
        holds_patience: settings.holds_patience,
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
