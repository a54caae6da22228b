//! What a node collects of what others got before their home was lost, and what it does not.

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
use std::time::Duration;

use futures_util::StreamExt;
use hung::Hung;
use liar::Liar;
use mesh::{Extra, Mesh, Settings, eventually, noise, prompt};
use millrace::peer::PeerError;
use millrace::pull;
use millrace::pull::PullError;
use millrace::upstream::FetchError;
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::oci::{Algorithm, Digest};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{AskHolds, Holding, OpenBlob, Purpose, Refusal, Role};
use tokio::sync::watch;

const CHUNK: usize = CHUNK_BYTES as usize;

/// A member that has some of a blob from another, and gives it.
fn taker(bytes: &[u8], chunks: u32) -> Liar {
    Liar {
        part: Some(chunks),
        holding: Holding::Part { chunks },
        ..Liar::honest(bytes)
    }
}

/// A home whose third chunk does not fit its own chain.
fn wrong_in_the_middle(bytes: &[u8]) -> Liar {
    let mut liar = Liar::honest(bytes);
    liar.sent[2 * CHUNK + 7] ^= 1;
    liar
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_from_who_was_wrong_is_neither_counted_nor_given() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(1, 6);
    let digest = mesh.content.add(bytes.clone());
    let next = Liar {
        hesitates: true,
        ..Liar::honest(&bytes)
    };
    let asked = Arc::clone(&next.opened);
    let mut homes = [Extra::start(1), Extra::start(1)];
    let view = mesh.view(&[], &[&homes[0], &homes[1]]);
    let first = view.homes(Key::of_digest(&digest)).next();
    homes.sort_by_key(|home| Some(home.id) != first);
    let [wrong, behind] = &homes;
    wrong.peers.serve(Arc::new(wrong_in_the_middle(&bytes)));
    behind.peers.serve(Arc::new(next));
    mesh.gather(&[], &[wrong, behind]);
    let node = &mesh.nodes[0];
    let pulling = node.pull(&digest);
    let looking = async {
        eventually(|| !asked.lock().is_empty()).await;
        assert!(node.counted("millrace_pull_peer_received_bytes_total") > 0);
        assert_eq!(asked.lock()[0].have, 0);
        let question = AskHolds {
            digests: vec![digest],
            purpose: Purpose::Know,
        };
        let holds = behind.peers.holds(node.id, question, mesh::PROMPT).await;
        assert_eq!(holds.expect("answered"), [Holding::No]);
        let question = OpenBlob {
            digest,
            role: Role::Holder,
            origins: Vec::new(),
            zone: "a".to_owned(),
            have: 0,
            copy: false,
        };
        let mut news = behind.peers.open(node.id, question).await.expect("asked");
        match news.next().await {
            Err(PeerError::Refused { refusal, .. }) => assert_eq!(refusal, Refusal::Absent),
            told => panic!("{told:?}"),
        }
    };
    prompt(async {
        tokio::select! {
            pulled = pulling => panic!("its home has not answered: {:?}", pulled.map(|_| ())),
            () = looking => {}
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_not_collected_when_what_is_here_came_from_who_was_wrong() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(2, 6);
    let digest = mesh.content.add(bytes.clone());
    let taker = taker(&bytes, 4);
    let asked = Arc::clone(&taker.opened);
    let (home, other) = (Extra::start(1), Extra::start(0));
    home.peers.serve(Arc::new(wrong_in_the_middle(&bytes)));
    other.peers.serve(Arc::new(taker));
    mesh.gather(&[], &[&home, &other]);
    let node = &mesh.nodes[0];
    let (pulled, _) = prompt(node.pull(&digest)).await.expect("pulled");
    assert!(pulled == bytes);
    assert_eq!(
        asked.lock().len(),
        0,
        "it may have the same of the same node"
    );
    assert_eq!(mesh.gets("/blobs/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_asked_an_upstream_collects_no_parts() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(3, 6);
    let digest = mesh.content.add(bytes.clone());
    let other = mesh.content.add(noise(4, 1));
    let node = &mesh.nodes[0];
    let (open, gate) = watch::channel(false);
    *mesh.content.pause.lock() = Some((2 * CHUNK, gate));
    *mesh.content.cut.lock() = Some(3 * CHUNK);
    let first = prompt(node.body(&digest, 0..u64::MAX)).await;
    let first = first.expect("it has begun");
    // What it fetched from is then of no use; what it has is not kept at once.
    mesh.content.keep_to("team/other");
    let hung = Hung::at(node.part_state_path(&digest));
    open.send_replace(true);
    let own = node.origin_of("corp", "team/app");
    prompt(async {
        while !is_not_found(&node.puller.blob(&own, &digest).await) {
            tokio::task::yield_now().await;
        }
        *mesh.content.pause.lock() = None;
        *mesh.content.cut.lock() = None;
        node.pull_from("team/other", &other).await.expect("pulled");
    })
    .await;
    // By now it has no other origin, until this one is named.
    let another = node.origin_of("corp", "team/other");
    let second = prompt(node.puller.blob(&another, &digest)).await;
    let taker = taker(&bytes, 5);
    let asked = Arc::clone(&taker.opened);
    let _taker = mesh.add_extra(|_| Arc::new(taker));
    drop(hung);
    let second = second.expect("it goes on").read(0..u64::MAX).await;
    prompt(second.expect("opened").for_each(|piece| async {
        piece.expect("read");
    }))
    .await;
    prompt(node.settled()).await;
    drop(first);
    assert!(node.holds(&digest).await);
    assert_eq!(node.asked("holds"), 1, "it has looked for others again");
    assert_eq!(asked.lock().len(), 0, "it might wait for this node");
}

fn is_not_found<T>(result: &Result<T, PullError>) -> bool {
    matches!(result, Err(PullError::Fetch(FetchError::NotFound { .. })))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_stalls_costs_no_byte_of_the_upstream_a_second_time() {
    let settings = Settings {
        pull: pull::Config {
            hop_patience: Duration::from_millis(500),
            ..pull::Config::default()
        },
        ..Settings::default()
    };
    // In another zone, so that it is asked as a home and not as an owner, who would ask the first one.
    let mesh = Mesh::strangers_with(&["b", "a"], settings).await;
    let [next, node] = &mesh.nodes[..] else {
        unreachable!("two nodes")
    };
    let home = Extra::start(1);
    let view = mesh.view(&[0], &[&home]);
    let is_home = |bytes: &Vec<u8>| {
        let key = Key::of_digest(&Digest::of(Algorithm::Sha256, bytes));
        view.homes(key).next() == Some(home.id)
    };
    let mut blobs = (0..u8::MAX).map(|seed| noise(seed, 6));
    let bytes = blobs.find(is_home).expect("one of them");
    let digest = mesh.content.add(bytes.clone());
    // What it gave has left the upstream for it.
    home.peers.serve(Arc::new(Liar {
        here: Some(3),
        ..Liar::honest(&bytes)
    }));
    mesh.gather(&[0], &[&home]);
    let (pulled, _) = prompt(node.pull(&digest)).await.expect("pulled");
    assert!(pulled == bytes);
    assert_eq!(node.puller.status().distrusted, [home.id]);
    assert_eq!(mesh.gets("/blobs/"), 1);
    let left = bytes.len() as u64 - 3 * CHUNK_BYTES;
    assert_eq!(mesh.upstream.sent_bytes(), left);
    prompt(next.settled()).await;
    assert!(next.holds(&digest).await, "it was the home's place");
}
