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
use millrace::peer::{BlobStream, PeerError};
use millrace::pull;
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::{BlobNews, OpenBlob, OriginName, Refusal, Role};
use tokio::sync::watch;

const CHUNK: usize = CHUNK_BYTES as usize;

/// Asks a node for a blob as its owner.
async fn ask(asker: &Extra, node: &Node, digest: &Digest, copy: bool) -> BlobStream {
    let question = OpenBlob {
        digest: *digest,
        role: Role::Owner,
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

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_no_reason_to_ask_an_upstream() {
    let mesh = Mesh::strangers(&["a"]).await;
    let asker = Extra::start(0);
    mesh.gather(&[0], &[&asker]);
    let digest = mesh.content.add(noise(1, 2));
    let node = &mesh.nodes[0];
    let mut copy = ask(&asker, node, &digest, true).await;
    match prompt(copy.next()).await {
        Err(PeerError::Refused { refusal, .. }) => assert_eq!(refusal, Refusal::Unable),
        told => panic!("{told:?}"),
    }
    assert_eq!(mesh.gets("/blobs/"), 0);
    let mut wanted = ask(&asker, node, &digest, false).await;
    let told = prompt(wanted.next()).await.expect("told");
    assert!(matches!(told, Some(BlobNews::Opened { .. })), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_waits_for_after_all_is_asked_for_anew() {
    let settings = Settings {
        pull: pull::Config {
            hop_patience: Duration::from_millis(500),
            ..pull::Config::default()
        },
        ..Settings::default()
    };
    let mesh = Mesh::strangers_with(&["a"], settings).await;
    let bytes = noise(2, 2);
    let digest = mesh.content.add(bytes.clone());
    let hesitant = Liar {
        hesitates: true,
        ..Liar::honest(&bytes)
    };
    let opened = Arc::clone(&hesitant.opened);
    let (home, asker) = (Extra::start(1), Extra::start(0));
    home.peers.serve(Arc::new(hesitant));
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
    let mesh = Mesh::strangers_with(&["a", "a"], settings).await;
    let [home, node] = &mesh.nodes[..] else {
        unreachable!("two nodes")
    };
    let asker = Extra::start(0);
    mesh.gather(&[0], &[&asker]);
    let (_open, gate) = watch::channel(false);
    *mesh.content.pause.lock() = Some((4 * CHUNK, gate));
    let digest = mesh.content.add(vec![1; size]);
    let mut first = prompt(home.body(&digest, 0..u64::MAX))
        .await
        .expect("begun");
    prompt(first.next()).await.expect("a piece").expect("read");
    let mut copy = ask(&asker, node, &digest, true).await;
    prompt(copy.next()).await.expect("it is being made");
    let wanted = mesh.content.add(vec![2; size]);
    *mesh.content.pause.lock() = None;
    let (pulled, _) = prompt(node.pull(&wanted)).await.expect("pulled");
    assert!(pulled == vec![2; size]);
    prompt(node.settled()).await;
    assert!(node.holds(&wanted).await, "it is kept, not only passed on");
}
