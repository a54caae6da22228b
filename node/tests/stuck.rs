//! Members that live and do not get on: they are waited for as long as they may wait for others,
//! then left, and whoever comes next does not wait for them again.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/hung.rs"]
mod hung;
#[path = "mesh/liar.rs"]
mod liar;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of a mesh")]
mod mesh;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hung::Hung;
use liar::Liar;
use mesh::{Mesh, Node, Settings, eventually, noise, prompt};
use millrace::peer::{Members, Peers};
use millrace::pull::{self, Piece};
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::oci::{Algorithm, Digest};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{BlobNews, Holding, OpenBlob, OriginName, Role};
use tokio::sync::watch;

/// A patience with members that makes a test short; a home has twice as long.
const HOP_PATIENCE: Duration = Duration::from_millis(500);

/// How long the members of a test may work by themselves, and what a busy disk does not need for all that
/// a node stores.
const OWN_WORK: Duration = Duration::from_millis(500);
const BUSY_DISK: Duration = Duration::from_secs(3);

/// A node whose home for everything behaves as `liar` says.
async fn before(liar: Liar) -> (Mesh, Peers) {
    before_with(liar, HOP_PATIENCE).await
}

async fn before_with(liar: Liar, hop_patience: Duration) -> (Mesh, Peers) {
    let pull = pull::Config {
        hop_patience,
        ..pull::Config::default()
    };
    let settings = Settings {
        pull,
        ..Settings::default()
    };
    let mesh = Mesh::strangers_with(&["a"], settings).await;
    let home = mesh.add_home(Arc::new(liar));
    (mesh, home)
}

fn hesitant() -> Liar {
    Liar {
        hesitates: true,
        ..Liar::honest(&noise(0, 1))
    }
}

/// The upstream's repository, as a member names it.
fn corp() -> OriginName {
    OriginName {
        upstream: "corp".to_owned(),
        repository: "team/app".parse().expect("a name"),
        credential: "anonymous".into(),
    }
}

/// Returns how often a home was left because it does not get on.
fn left(node: &Node) -> u64 {
    node.counted("millrace_pull_hops_passed_over_total{role=\"home\",reason=\"stuck\"}")
}

async fn pulls(node: &Node, digest: &Digest, bytes: &[u8]) {
    let (pulled, _) = prompt(node.pull(digest)).await.expect("pulled");
    assert!(pulled == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_opens_no_blob_is_left_and_not_asked_again() {
    let (mesh, _home) = before(hesitant()).await;
    let node = &mesh.nodes[0];
    for seed in 1..3 {
        let bytes = noise(seed, 2);
        let digest = mesh.content.add(bytes.clone());
        pulls(node, &digest, &bytes).await;
    }
    assert_eq!((left(node), node.asked("open")), (1, 1));
    assert_eq!(node.puller.status().distrusted.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_gives_no_manifest_is_left_and_not_asked_again() {
    let (mesh, _home) = before(hesitant()).await;
    let node = &mesh.nodes[0];
    for content in [b"{}".to_vec(), b"{ }".to_vec()] {
        let digest = mesh.content.add(content.clone());
        let pulled = prompt(node.manifest(&digest.to_string())).await;
        assert_eq!(pulled.expect("pulled"), content);
    }
    assert_eq!((left(node), node.asked("manifest")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_resolves_no_tag_is_left_and_not_asked_again() {
    let (mesh, _home) = before(hesitant()).await;
    let node = &mesh.nodes[0];
    let digest = mesh.content.add(b"{}".to_vec());
    for tag in ["one", "two"] {
        mesh.content.tag(tag, &digest);
        assert_eq!(prompt(node.manifest(tag)).await.expect("pulled"), b"{}");
    }
    assert_eq!((left(node), node.asked("resolve")), (1, 1));
    assert_eq!(node.asked("manifest"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_has_the_beginning_and_nothing_more_is_left() {
    let bytes = noise(1, 6);
    let liar = Liar {
        here: Some(2),
        ..Liar::honest(&bytes)
    };
    let (mesh, _home) = before(liar).await;
    let digest = mesh.content.add(bytes.clone());
    let node = &mesh.nodes[0];
    pulls(node, &digest, &bytes).await;
    assert_eq!(left(node), 1);
    assert!(node.counted("millrace_pull_peer_received_bytes_total") > 0);
    assert!(node.counted("millrace_pull_peer_retries_total{reason=\"not_yet\"}") > 0);
    assert_eq!(mesh.gets("/blobs/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_is_slow_and_gets_on_is_not_left() {
    /// A home has twice as long, which is more than each pause and less than all of them together.
    const PATIENCE: Duration = Duration::from_secs(3);
    const PAUSE: Duration = Duration::from_millis(1200);
    let bytes = noise(1, 6);
    let (pace, paced) = watch::channel(0);
    let liar = Liar {
        pace: Some(paced),
        ..Liar::honest(&bytes)
    };
    let (mesh, _home) = before_with(liar, PATIENCE).await;
    let digest = mesh.content.add(bytes.clone());
    let node = &mesh.nodes[0];
    let flow = async {
        for chunks in 1..=6 {
            let since = Instant::now();
            eventually(|| since.elapsed() > PAUSE).await;
            pace.send_replace(chunks);
        }
    };
    tokio::join!(pulls(node, &digest, &bytes), flow);
    assert_eq!((left(node), mesh.gets("/blobs/")), (0, 0));
    assert_eq!(node.puller.status().distrusted, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_not_left_for_a_client_that_pauses() {
    const PATIENCE: Duration = Duration::from_secs(1);
    let settings = Settings {
        pull: pull::Config {
            source_patience: PATIENCE,
            ..pull::Config::default()
        },
        // It is passed on at the client's pace.
        max_size: CHUNK_BYTES,
        ..Settings::default()
    };
    let mesh = Mesh::strangers_with(&["a"], settings).await;
    // More than twice what is kept for a client that pauses.
    let bytes = noise(1, 80);
    let _home = mesh.add_home(Arc::new(Liar::honest(&bytes)));
    let digest = mesh.content.add(bytes.clone());
    let node = &mesh.nodes[0];
    let mut body = prompt(node.body(&digest, 0..u64::MAX))
        .await
        .expect("opened");
    let mut pulled = Vec::new();
    for eighth in [1, 2, 3, 4, 8] {
        while pulled.len() < bytes.len() * eighth / 8 {
            let piece = prompt(body.next()).await.expect("a piece");
            let Piece::Memory(piece) = piece.expect("read") else {
                panic!("nobody told the body to lend");
            };
            pulled.extend_from_slice(&piece);
        }
        let since = Instant::now();
        eventually(|| since.elapsed() > PATIENCE * 3 / 2).await;
    }
    assert!(pulled == bytes);
    assert_eq!(node.puller.status().distrusted, []);
    assert_eq!(mesh.gets("/blobs/"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taker_is_not_left_for_what_it_got_behind_its_part() {
    // Few enough that all are sent before the first is written.
    let bytes = noise(1, 4);
    let mesh = Mesh::strangers(&["a"]).await;
    let taker = Liar {
        part: Some(2),
        holding: Holding::Part { chunks: 2 },
        ..Liar::honest(&bytes)
    };
    let taker = mesh.add_extra(|_| Arc::new(taker));
    let digest = mesh.content.add(bytes);
    let node = &mesh.nodes[0];
    let question = OpenBlob {
        digest,
        role: Role::Home,
        origins: vec![corp()],
        zone: "a".to_owned(),
        have: 2,
        copy: false,
    };
    let opened = async {
        let mut news = taker.peers.open(node.id, question).await.expect("asked");
        while !matches!(news.next().await.expect("told"), Some(BlobNews::Whole)) {}
    };
    prompt(opened).await;
    let received = node.counted("millrace_pull_peer_received_bytes_total");
    assert_eq!(received, 2 * CHUNK_BYTES);
    assert_eq!(node.puller.status().distrusted, []);
    assert_eq!(mesh.gets("/blobs/"), 1);
}

async fn busy_with_themselves(own_work: Duration) -> Mesh {
    let settings = Settings {
        own_work,
        ..Settings::default()
    };
    let mesh = Mesh::strangers_with(&["a"; 3], settings).await;
    mesh.introduce();
    mesh
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_whose_disk_hangs_says_so() {
    let mesh = busy_with_themselves(OWN_WORK).await;
    let bytes = noise(1, 2);
    let digest = mesh.content.add(bytes.clone());
    let order = mesh.by_walk(&digest);
    let _hung = Hung::at(mesh.nodes[order[0]].blob_path(&digest));
    let node = &mesh.nodes[order[1]];
    pulls(node, &digest, &bytes).await;
    assert_eq!(left(node), 1);
    assert_eq!(node.puller.status().distrusted, [mesh.nodes[order[0]].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_waits_for_its_upstream_is_not_stuck() {
    let mesh = busy_with_themselves(BUSY_DISK).await;
    let bytes = noise(1, 2);
    let digest = mesh.content.add(bytes.clone());
    let manifest = mesh.content.add(b"{}".to_vec());
    mesh.content.tag("latest", &manifest);
    let (open, gate) = watch::channel(false);
    *mesh.content.gate.lock() = Some(gate);
    let began = Instant::now();
    let later = async {
        // Far longer than anybody may be busy with himself.
        eventually(|| began.elapsed() > BUSY_DISK * 2).await;
        open.send_replace(true);
    };
    let blobs = mesh.nodes.iter().map(|node| node.pull(&digest));
    let blobs = futures_util::future::join_all(blobs);
    let tags = mesh.nodes.iter().map(|node| node.manifest("latest"));
    let tags = futures_util::future::join_all(tags);
    let (blobs, tags, ()) = prompt(async { tokio::join!(blobs, tags, later) }).await;
    assert!(
        blobs
            .into_iter()
            .all(|pulled| pulled.expect("pulled").0 == bytes)
    );
    assert!(
        tags.into_iter()
            .all(|pulled| pulled.expect("pulled") == b"{}")
    );
    assert_eq!(mesh.gets("/blobs/"), 1);
    for node in &mesh.nodes {
        assert_eq!((left(node), node.puller.status().distrusted), (0, vec![]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_waits_for_its_turn_is_waited_for() {
    let settings = Settings {
        pull: pull::Config {
            hop_patience: HOP_PATIENCE,
            ..pull::Config::default()
        },
        own_work: OWN_WORK,
        downloads: Some(1),
        ..Settings::default()
    };
    let mesh = Mesh::strangers_with(&["a", "a", "b", "b"], settings).await;
    mesh.introduce();
    let bytes = noise(1, 3);
    let digest = mesh.content.add(bytes.clone());
    let [home, owner, asker] = mesh.along_the_way(&digest);
    // The home has its hands full with what it alone asks for.
    let view = home.members.view();
    let own = (2..u8::MAX).map(|seed| noise(seed, 3)).find(|own| {
        let digest = Digest::of(Algorithm::Sha256, own);
        view.homes(Key::of_digest(&digest)).next() == Some(home.id)
    });
    let crowd = mesh.content.add(own.expect("one of them"));
    let (open, gate) = watch::channel(false);
    *mesh.content.pause.lock() = Some((300_000, gate));
    let first = prompt(home.body(&crowd, 0..u64::MAX)).await;
    let first = first.expect("it has begun");
    let began = Instant::now();
    let later = async {
        // Longer than the owner may bring nothing, and so than the home.
        eventually(|| began.elapsed() > HOP_PATIENCE * 8).await;
        assert!(asker.puller.status().transfers[0].queued);
        open.send_replace(true);
    };
    tokio::join!(pulls(asker, &digest, &bytes), later);
    drop(first);
    assert_eq!(mesh.gets(&digest.to_string()), 1);
    for node in [owner, asker] {
        assert_eq!(node.puller.status().distrusted, []);
    }
}
