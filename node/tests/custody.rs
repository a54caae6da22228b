//! Making room where other nodes may hold the same: what goes first, and what has to stay.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of pulls")]
mod mesh;

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mesh::{Mesh, Node, Settings, eventually, prompt};
use millrace::peer::Handler;
use millrace::pull::{self, Puller, Supplier};
use millrace::store::{Config, Custody, Provenance, Sidecar, Store};
use millrace::task::Tasks;
use millrace::upstream::{self, Upstreams};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest};
use millrace_protocol::wire::message::{AskHolds, Holding, Purpose};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc};

/// Bytes of a store; a sixteenth of them is kept free.
const MAX_SIZE: u64 = 1_600_000;

/// More questions than any test leads to.
const MANY: usize = 10_000;

/// Bytes of a blob: fifteen of them fit, and one more lacks room.
const BLOB: usize = 100_000;

/// Other nodes that have what the test says.
#[derive(Debug)]
struct Others {
    have: Mutex<HashSet<Digest>>,
    /// How many more questions they answer.
    answers: Arc<Semaphore>,
    /// What they were asked.
    asked: mpsc::Sender<Vec<Digest>>,
}

impl Custody for Others {
    fn elsewhere(&self, digests: Vec<Digest>) -> BoxFuture<'static, HashSet<Digest>> {
        let have = self.have.lock().clone();
        let answers = Arc::clone(&self.answers);
        let asked = self.asked.clone();
        async move {
            // A test that does not look at the questions has dropped their receiver.
            let _ = asked.send(digests.clone()).await;
            answers.acquire().await.expect("never closed").forget();
            digests.into_iter().filter(|d| have.contains(d)).collect()
        }
        .boxed()
    }
}

/// A store among others that have nothing yet.
struct Scene {
    store: Store,
    others: Arc<Others>,
    asked: mpsc::Receiver<Vec<Digest>>,
    tasks: Tasks,
    folder: TempDir,
}

impl Scene {
    async fn start() -> Self {
        let (tasks, folder) = (Tasks::default(), TempDir::new().expect("a folder"));
        let config = Config {
            min_free: Some(0),
            max_size: Some(MAX_SIZE),
            ..Config::new(folder.path())
        };
        let store = Store::open(&config, &tasks).await.expect("opens");
        let (asking, asked) = mpsc::channel(1024);
        let others = Arc::new(Others {
            have: Mutex::default(),
            answers: Arc::new(Semaphore::new(MANY)),
            asked: asking,
        });
        Self {
            store,
            others,
            asked,
            tasks,
            folder,
        }
    }

    fn keep_room(&self) {
        let others: Arc<dyn Custody> = self.others.clone();
        self.store.keep_room(others, &self.tasks);
    }

    /// Returns what answers other nodes.
    fn supplier(&self) -> Supplier {
        mesh::install_provider();
        let puller = Puller::new(
            pull::Config::default(),
            self.store.clone(),
            None,
            &self.tasks,
        );
        let upstreams = upstream::Config::with_builtins(Default::default(), None);
        let upstreams = Upstreams::new(&upstreams.expect("valid"), &self.tasks);
        Supplier::new(puller, upstreams.expect("sets up"))
    }

    async fn put(&self, seed: u8) -> Digest {
        let bytes = Bytes::from(vec![seed; BLOB]);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let mut part = self.store.part(&digest).await.expect("a part");
        part.reserve(BLOB as u64).await.expect("room");
        part.writer().write(0, &[bytes]).expect("written");
        let provenance = Provenance {
            upstream: "docker.io".into(),
            repository: "library/alpine".parse().expect("a name"),
            credential: "anonymous".into(),
        };
        let sidecar = Sidecar::new(None, provenance);
        let committed = part.commit(BLOB as u64, sidecar).await;
        committed.expect("committed");
        digest
    }

    async fn fill(&self, blobs: u8) -> Vec<Digest> {
        let mut digests = Vec::new();
        for seed in 0..blobs {
            digests.push(self.put(seed).await);
        }
        digests
    }

    async fn gone(&self, digests: &[Digest]) -> Vec<Digest> {
        let missing = self.store.missing(digests.to_vec()).await;
        missing.expect("a store")
    }

    fn blobs(&self) -> u64 {
        self.store.status().blobs
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_that_another_node_has_goes_whatever_else_is_older() {
    let scene = Scene::start().await;
    let digests = scene.fill(16).await;
    let (last, had) = digests.split_at(8);
    scene.others.have.lock().extend(had);
    scene.keep_room();
    eventually(|| scene.blobs() < 16).await;
    assert_eq!(scene.gone(had).await.len(), 1);
    assert_eq!(scene.gone(last).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_judged_while_there_is_room() {
    let mut scene = Scene::start().await;
    let digests = scene.fill(15).await;
    scene.others.have.lock().extend(&digests);
    scene.keep_room();
    scene.put(15).await;
    let asked = prompt(scene.asked.recv()).await.expect("a question");
    assert_eq!(asked.len(), 1, "as many as are lacking");
    eventually(|| scene.blobs() == 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_copies_keep_half_of_the_store_and_no_more() {
    let scene = Scene::start().await;
    let digests = scene.fill(16).await;
    scene.keep_room();
    eventually(|| scene.blobs() < 16).await;
    let status = scene.store.status();
    assert_eq!(scene.gone(&digests).await.len(), 1);
    assert_eq!(status.spared_bytes, MAX_SIZE / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_judged_is_withdrawn_and_comes_back_when_it_stays() {
    let mut scene = Scene::start().await;
    scene.others.answers.forget_permits(MANY);
    scene.fill(16).await;
    scene.keep_room();
    let judged = prompt(scene.asked.recv()).await.expect("a question");
    assert!(judged.iter().all(|d| scene.store.is_withdrawn(d)));
    scene.others.answers.add_permits(MANY);
    eventually(|| judged.iter().all(|d| !scene.store.is_withdrawn(d))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_means_to_drop_its_copy_does_not_count_on_one_that_is_judged() {
    let mut scene = Scene::start().await;
    let supplier = scene.supplier();
    scene.others.answers.forget_permits(MANY);
    let digests = scene.fill(16).await;
    scene.keep_room();
    let judged = prompt(scene.asked.recv()).await.expect("a question");
    for purpose in [Purpose::Know, Purpose::Fetch, Purpose::Drop] {
        let question = AskHolds {
            digests: digests.clone(),
            purpose,
        };
        let told = prompt(supplier.holds(NodeId::new([7; 32]), question)).await;
        for (digest, holding) in digests.iter().zip(told) {
            // Who only wants it can have it for as long as it is here.
            let is_kept_back = purpose == Purpose::Drop && judged.contains(digest);
            assert_eq!(
                holding == Holding::Whole,
                !is_kept_back,
                "{purpose:?} {digest}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_while_it_is_judged_stays() {
    let mut scene = Scene::start().await;
    scene.others.answers.forget_permits(MANY);
    let digests = scene.fill(16).await;
    scene.others.have.lock().extend(&digests);
    scene.keep_room();
    let judged = prompt(scene.asked.recv()).await.expect("a question");
    let read = scene.store.blob(&judged[0]).await.expect("a store");
    drop(read.expect("it is here"));
    scene.others.answers.add_permits(1);
    prompt(scene.asked.recv()).await.expect("another question");
    assert_eq!(scene.gone(&digests).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_waits_for_nobody_and_takes_last_copies_at_last() {
    let scene = Scene::start().await;
    let digests = scene.fill(16).await;
    scene.keep_room();
    eventually(|| scene.blobs() < 16).await;
    let spared = scene.store.status().spared_bytes;
    scene.others.answers.forget_permits(MANY);
    let part = scene.store.part(&digests[0]).await;
    let mut part = part.expect("a part");
    // What is not spared goes first…
    let unspared = MAX_SIZE - spared;
    prompt(part.reserve(unspared)).await.expect("room");
    assert_eq!(scene.store.status().spared_bytes, spared);
    // … and when nothing else is left, the bound holds all the same.
    prompt(part.reserve(MAX_SIZE)).await.expect("room");
    assert_eq!((scene.blobs(), scene.store.status().spared_bytes), (0, 0));
    assert!(!scene.asked.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cannot_be_removed_keeps_no_other_from_making_room() {
    let scene = Scene::start().await;
    let digests = scene.fill(16).await;
    let hex = digests[0].hex();
    let blobs = scene.folder.path().join("blobs/sha256");
    let path = blobs.join(&hex[..2]).join(hex);
    fs::remove_file(&path).expect("removed");
    fs::create_dir_all(path.join("of somebody")).expect("a folder in its place");
    scene.others.have.lock().extend(&digests);
    scene.keep_room();
    eventually(|| scene.blobs() == 15).await;
    assert!(path.exists());
    assert_eq!(scene.gone(&digests[1..]).await, digests[1..2]);
}

/// Returns blobs of the upstream, `count` for each node as their home.
fn blobs_of_all_homes(mesh: &Mesh, count: usize) -> Vec<Digest> {
    let mut found = vec![0; mesh.nodes.len()];
    let mut digests = Vec::new();
    for seed in 0_u32.. {
        if digests.len() == mesh.nodes.len() * count {
            break;
        }
        let digest = mesh.content.add(seed.to_le_bytes().repeat(BLOB / 4));
        let home = mesh.by_walk(&digest)[0];
        if found[home] < count {
            found[home] += 1;
            digests.push(digest);
        }
    }
    digests
}

/// Pulls all through one node, each time with room for the next.
async fn pull_all(node: &Node, digests: &[Digest]) {
    for digest in digests {
        prompt(node.pull(digest)).await.expect("pulled");
        prompt(node.settled()).await;
        eventually(|| {
            let status = node.store.status();
            assert!(status.blob_bytes + status.growing_bytes <= MAX_SIZE);
            status.blob_bytes + status.growing_bytes <= MAX_SIZE / 16 * 15
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_holds_more_than_a_node_and_asks_the_upstream_once() {
    let settings = Settings {
        max_size: MAX_SIZE,
        ..Settings::default()
    };
    let mesh = Mesh::strangers_with(&["a"; 3], settings).await;
    mesh.introduce();
    let digests = blobs_of_all_homes(&mesh, 8);
    assert!(digests.len() * BLOB > usize::try_from(MAX_SIZE).expect("small"));
    for node in &mesh.nodes {
        pull_all(node, &digests).await;
    }
    *mesh.content.broken.lock() = Some(503);
    for node in &mesh.nodes {
        pull_all(node, &digests).await;
    }
    assert_eq!(mesh.gets("/blobs/"), digests.len());
}
