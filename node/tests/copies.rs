//! Copies that nobody waits for make way for everything that somebody does.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/liar.rs"]
mod liar;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of a mesh")]
mod mesh;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use liar::Liar;
use mesh::{Extra, Mesh, Node, Settings, eventually, noise, prompt};
use millrace::peer::{BlobStream, Members, PeerError};
use millrace::pull;
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{BlobNews, Holding, OpenBlob, OriginName, Refusal, Role};
use tokio::sync::watch;

const CHUNK: usize = CHUNK_BYTES as usize;

/// Returns one node, which soon leaves who does not get on.
async fn impatient() -> Mesh {
    let settings = Settings {
        pull: pull::Config {
            hop_patience: Duration::from_millis(500),
            ..pull::Config::default()
        },
        ..Settings::default()
    };
    Mesh::strangers_with(&["a"], settings).await
}

/// Asks a node for a blob as its owner.
async fn ask(asker: &Extra, node: &Node, digest: &Digest, copy: bool) -> BlobStream {
    ask_as(Role::Owner, asker, node, digest, copy).await
}

async fn ask_as(role: Role, asker: &Extra, node: &Node, digest: &Digest, copy: bool) -> BlobStream {
    let question = OpenBlob {
        digest: *digest,
        role,
        origins: vec![OriginName {
            upstream: "corp".to_owned(),
            repository: "team/app".parse().expect("a name"),
            credential: "anonymous".to_owned(),
        }],
        zone: "a".to_owned(),
        have: 0,
        copy,
    };
    prompt(asker.peers.open(node.id, question))
        .await
        .expect("asked")
}

/// Starts a node that owns nothing and has a blob, of which it sends so many chunks before it is told
/// to send more.
fn slow(bytes: &[u8], chunks: u32) -> (Extra, watch::Sender<u32>) {
    let (pace, sent) = watch::channel(chunks);
    let extra = Extra::start(0);
    extra.peers.serve(Arc::new(Liar {
        pace: Some(sent),
        ..Liar::honest(bytes)
    }));
    (extra, pace)
}

/// Returns by what a question is answered that is refused.
async fn refusal(news: &mut BlobStream) -> Refusal {
    match prompt(news.next()).await {
        Err(PeerError::Refused { refusal, .. }) => refusal,
        told => panic!("{told:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_no_reason_to_ask_an_upstream() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(1, 2);
    let asker = Extra::start(0);
    asker.peers.serve(Arc::new(Liar {
        part: Some(0),
        ..Liar::honest(&bytes)
    }));
    mesh.gather(&[0], &[&asker]);
    let digest = mesh.content.add(bytes);
    let node = &mesh.nodes[0];
    let mut copy = ask(&asker, node, &digest, true).await;
    assert_eq!(refusal(&mut copy).await, Refusal::Unable);
    assert_eq!(mesh.gets("/blobs/"), 0);
    let mut wanted = ask(&asker, node, &digest, false).await;
    let told = prompt(wanted.next()).await.expect("told");
    assert!(matches!(told, Some(BlobNews::Opened { .. })), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_waits_for_after_all_is_asked_for_anew() {
    let mesh = impatient().await;
    let bytes = noise(2, 2);
    let digest = mesh.content.add(bytes.clone());
    let hesitant = Liar {
        hesitates: true,
        holding: Holding::Whole,
        ..Liar::honest(&bytes)
    };
    let opened = Arc::clone(&hesitant.opened);
    let (home, asker) = (Extra::start(1), Extra::start(0));
    home.peers.serve(Arc::new(hesitant));
    asker.peers.serve(Arc::new(Liar {
        part: Some(0),
        ..Liar::honest(&bytes)
    }));
    mesh.gather(&[], &[&home, &asker]);
    let node = &mesh.nodes[0];
    let _copy = ask(&asker, node, &digest, true).await;
    eventually(|| opened.lock().len() == 1).await;
    let (pulled, _) = prompt(node.pull(&digest)).await.expect("pulled");
    assert!(pulled == bytes);
    let marks: Vec<bool> = opened.lock().iter().map(|question| question.copy).collect();
    assert_eq!(marks, [true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_gives_its_room_to_what_somebody_waits_for() {
    let size = 8 * CHUNK;
    let settings = Settings {
        // Room for one of the two.
        max_size: (size + size / 2) as u64,
        ..Settings::default()
    };
    let mesh = Mesh::strangers_with(&["a"], settings).await;
    let node = &mesh.nodes[0];
    let bytes = vec![1; size];
    let (asker, _pace) = slow(&bytes, 4);
    mesh.gather(&[0], &[&asker]);
    let digest = mesh.content.add(bytes);
    let mut copy = ask(&asker, node, &digest, true).await;
    prompt(copy.next()).await.expect("it is being made");
    let wanted = mesh.content.add(vec![2; size]);
    let (pulled, _) = prompt(node.pull(&wanted)).await.expect("pulled");
    assert!(pulled == vec![2; size]);
    prompt(node.settled()).await;
    assert!(node.holds(&wanted).await, "it is kept, not only passed on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_taken_from_who_asks_for_it() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(3, 2);
    let digest = mesh.content.add(bytes.clone());
    let honest = Liar::honest(&bytes);
    let opened = Arc::clone(&honest.opened);
    let (home, asker) = (Extra::start(1), Extra::start(0));
    home.peers.serve(Arc::new(honest));
    asker.peers.serve(Arc::new(Liar::honest(&bytes)));
    mesh.gather(&[], &[&home, &asker]);
    let node = &mesh.nodes[0];
    let mut copy = ask(&asker, node, &digest, true).await;
    while prompt(copy.next()).await.expect("told") != Some(BlobNews::Whole) {}
    prompt(node.settled()).await;
    assert!(node.holds(&digest).await);
    assert_eq!(opened.lock().len(), 0, "the home has nothing to do with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_does_not_turn_what_somebody_waits_for_to_another_hop() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(4, 4);
    let digest = mesh.content.add(bytes.clone());
    let (pace, sent) = watch::channel(1);
    let paced = Liar {
        pace: Some(sent),
        ..Liar::honest(&bytes)
    };
    let opened = Arc::clone(&paced.opened);
    let (home, asker) = (Extra::start(1), Extra::start(0));
    home.peers.serve(Arc::new(paced));
    mesh.gather(&[], &[&home, &asker]);
    let node = &mesh.nodes[0];
    let mut body = prompt(node.body(&digest, 0..u64::MAX))
        .await
        .expect("begun");
    prompt(body.next()).await.expect("a piece").expect("read");
    let mut copy = ask(&asker, node, &digest, true).await;
    assert_eq!(refusal(&mut copy).await, Refusal::Unable);
    pace.send_replace(u32::MAX);
    while let Some(piece) = prompt(body.next()).await {
        piece.expect("read");
    }
    assert_eq!(opened.lock().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_begins_nothing_for_a_copy() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(5, 2);
    let digest = mesh.content.add(bytes.clone());
    let asker = Extra::start(0);
    asker.peers.serve(Arc::new(Liar::honest(&bytes)));
    mesh.gather(&[0], &[&asker]);
    let node = &mesh.nodes[0];
    let mut copy = ask_as(Role::Home, &asker, node, &digest, true).await;
    assert_eq!(refusal(&mut copy).await, Refusal::Absent);
    assert!(node.puller.status().transfers.is_empty());
    prompt(node.pull(&digest)).await.expect("pulled");
    prompt(node.settled()).await;
    let mut copy = ask_as(Role::Home, &asker, node, &digest, true).await;
    let told = prompt(copy.next()).await.expect("told");
    assert!(matches!(told, Some(BlobNews::Opened { .. })), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_of_what_is_kept_further_copies_are_asked_for() {
    let mut settings = Settings {
        max_size: 4 * CHUNK_BYTES,
        ..Settings::default()
    };
    settings.pull.replicas = 2;
    let mesh = Mesh::strangers_with(&["a"], settings).await;
    let node = &mesh.nodes[0];
    let other = Extra::start(1);
    let liar = Liar::honest(&noise(0, 1));
    let opened = Arc::clone(&liar.opened);
    other.peers.serve(Arc::new(liar));
    mesh.gather(&[0], &[&other]);
    let owned = |chunks| {
        (0..=u8::MAX).find_map(|seed| {
            let digest = mesh.content.add(noise(seed, chunks));
            let view = node.members.view();
            let owner = view.owners(Key::of_digest(&digest)).next();
            (owner == Some(node.id)).then_some(digest)
        })
    };
    let (large, small) = (owned(6).expect("one"), owned(2).expect("one"));
    for digest in [&large, &small] {
        prompt(node.pull(digest)).await.expect("pulled");
        prompt(node.settled()).await;
    }
    eventually(|| !opened.lock().is_empty()).await;
    let asked: Vec<Digest> = opened.lock().iter().map(|asked| asked.digest).collect();
    assert_eq!(asked, [small]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_brings_nothing_for_a_copy_is_asked_again_all_the_same() {
    let mesh = impatient().await;
    let bytes = noise(6, 2);
    let digest = mesh.content.add(bytes.clone());
    let asker = Extra::start(0);
    asker.peers.serve(Arc::new(Liar {
        hesitates: true,
        ..Liar::honest(&bytes)
    }));
    mesh.gather(&[0], &[&asker]);
    let node = &mesh.nodes[0];
    let mut copy = ask(&asker, node, &digest, true).await;
    assert_eq!(refusal(&mut copy).await, Refusal::Unable);
    assert_eq!(node.puller.status().distrusted, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_room_ends_no_other() {
    let size = 8 * CHUNK;
    let settings = Settings {
        // Room for one of the two.
        max_size: (size + size / 2) as u64,
        ..Settings::default()
    };
    let mesh = Mesh::strangers_with(&["a"], settings).await;
    let node = &mesh.nodes[0];
    let (one, other) = (vec![1; size], vec![2; size]);
    let (first_asker, pace) = slow(&one, 4);
    let (second_asker, _pace) = slow(&other, u32::MAX);
    mesh.gather(&[0], &[&first_asker, &second_asker]);
    let (one, other) = (mesh.content.add(one), mesh.content.add(other));
    let mut first = ask(&first_asker, node, &one, true).await;
    while !matches!(
        prompt(first.next()).await.expect("told"),
        Some(BlobNews::Chain { .. })
    ) {}
    let mut second = ask(&second_asker, node, &other, true).await;
    while let Ok(news) = prompt(second.next()).await {
        assert_ne!(news, Some(BlobNews::Whole));
    }
    pace.send_replace(u32::MAX);
    while prompt(first.next()).await.expect("told") != Some(BlobNews::Whole) {}
    prompt(node.settled()).await;
    assert!(node.holds(&one).await);
}
