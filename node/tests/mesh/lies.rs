//! Members that state what is not so: no wrong byte is kept, and the pull goes on.

use std::sync::Arc;

use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use parking_lot::Mutex;

use super::liar::Liar;
use super::mesh::{Extra, Mesh, noise, prompt};

/// Pulls through a home that is `liar`, twice; returns what came of it.
async fn pull_past(mesh: &Mesh, liar: Liar, digest: &Digest) -> [Option<Vec<u8>>; 2] {
    let _home = mesh.add_home(Arc::new(liar));
    let mut pulled = [None, None];
    for bytes in &mut pulled {
        let pull = prompt(mesh.nodes[0].pull(digest)).await;
        *bytes = pull.ok().map(|(bytes, _)| bytes);
    }
    pulled
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_honest_peer_gives_is_taken() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(10, 3);
    let digest = mesh.content.add(bytes.clone());
    let pulled = pull_past(&mesh, Liar::honest(&bytes), &digest).await;
    assert!(pulled.iter().flatten().all(|pulled| *pulled == bytes));
    assert_eq!(mesh.gets("/blobs/"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_chunk_of_a_peer_reaches_nobody_and_the_pull_goes_on() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(11, 3);
    let digest = mesh.content.add(bytes.clone());
    let mut liar = Liar::honest(&bytes);
    liar.sent[usize::try_from(CHUNK_BYTES).expect("fits") + 77] ^= 1;
    for pulled in pull_past(&mesh, liar, &digest).await {
        assert!(pulled.expect("pulled") == bytes);
    }
    assert_eq!(mesh.gets("/blobs/"), 1, "the rest came from the upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_last_chunk_is_found_by_the_digest() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(12, 1);
    let digest = mesh.content.add(bytes.clone());
    let mut liar = Liar::honest(&bytes);
    liar.sent[5] ^= 1;
    for pulled in pull_past(&mesh, liar, &digest).await {
        assert!(pulled.expect("pulled") == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_chain_may_cost_a_pull_and_is_never_stored() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(13, 3);
    let digest = mesh.content.add(bytes.clone());
    // Consistent in itself: only the digest can tell.
    let [first, second] = pull_past(&mesh, Liar::honest(&noise(14, 3)), &digest).await;
    assert!(first.is_none_or(|pulled| pulled == bytes));
    assert!(second.expect("the liar is not asked again") == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_size_of_a_peer_is_found_out() {
    for size in [2 * CHUNK_BYTES, 4 * CHUNK_BYTES] {
        let mesh = Mesh::strangers(&["a"]).await;
        let bytes = noise(15, 3);
        let digest = mesh.content.add(bytes.clone());
        let mut liar = Liar::honest(&bytes);
        liar.size = size;
        let [first, second] = pull_past(&mesh, liar, &digest).await;
        assert!(first.is_none_or(|pulled| pulled == bytes));
        assert!(second.expect("the liar is not asked again") == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lives_and_sends_nothing_is_left() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(16, 2);
    let digest = mesh.content.add(bytes.clone());
    let mut liar = Liar::honest(&bytes);
    liar.mute = true;
    let _home = mesh.add_home(Arc::new(liar));
    let (pulled, _) = prompt(mesh.nodes[0].pull(&digest)).await.expect("pulled");
    assert!(pulled == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_found_wrong_is_not_read_from_at_anothers_word() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(17, 6);
    let digest = mesh.content.add(bytes.clone());
    let mut homes = [Extra::start(1), Extra::start(1)];
    let view = mesh.view(&[], &[&homes[0], &homes[1]]);
    let first = view.homes(Key::of_digest(&digest)).next();
    homes.sort_by_key(|home| Some(home.id) != first);
    let [wrong, busy] = &homes;
    wrong.peers.serve(Arc::new(Liar {
        sent: vec![0; bytes.len()],
        ..Liar::honest(&bytes)
    }));
    busy.peers.serve(Arc::new(Liar {
        names: Mutex::new(vec![wrong.id]),
        ..Liar::honest(&bytes)
    }));
    mesh.gather(&[], &[wrong, busy]);
    let node = &mesh.nodes[0];
    let (pulled, _) = prompt(node.pull(&digest)).await.expect("pulled");
    assert!(pulled == bytes);
    assert_eq!(node.puller.status().distrusted, [wrong.id]);
    // Of the one that is wrong, and twice of the one that names it.
    assert_eq!(node.asked("read"), 3);
}
