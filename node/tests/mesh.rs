//! Pulls through several nodes in one process: what the way over owner, home and holders promises.
//!
//! Here is what concerns blobs; `tags` has tags and manifests, `vouching` who may read what, `lies`
//! what a member states that is not so. Real processes, real clients and the membership behind the
//! views are tested in `cluster-tests`.

#[path = "mesh/commits.rs"]
mod commits;
#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/liar.rs"]
mod liar;
#[path = "mesh/lies.rs"]
mod lies;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of holdings")]
mod mesh;
#[path = "mesh/tags.rs"]
mod tags;
#[path = "mesh/vouching.rs"]
mod vouching;

use futures_util::future::join_all;
use mesh::{Mesh, Settings, noise, prompt};
use millrace::peer::Members;
use millrace::pull::{PullError, Source};
use millrace::upstream::FetchError;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_leaves_the_upstream_once_however_many_nodes_ask() {
    let mesh = Mesh::start(&["a"; 6]).await;
    let bytes = noise(1, 5);
    let digest = mesh.content.add(bytes.clone());
    let pulls = mesh.nodes.iter().map(|node| node.pull(&digest));
    for pulled in prompt(join_all(pulls)).await {
        assert!(pulled.expect("pulled").0 == bytes);
    }
    assert_eq!(mesh.gets("/blobs/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_has_is_never_asked_of_the_upstream_again() {
    let mesh = Mesh::start(&["a", "a", "b", "b"]).await;
    let bytes = noise(2, 2);
    let digest = mesh.content.add(bytes.clone());
    let order = mesh.by_walk(&digest);
    let last = &mesh.nodes[order[3]];
    assert!(prompt(last.pull(&digest)).await.expect("pulled").0 == bytes);
    for node in &mesh.nodes {
        prompt(node.settled()).await;
    }
    *mesh.content.broken.lock() = Some(503);
    for index in &order[..3] {
        let (pulled, source) = prompt(mesh.nodes[*index].pull(&digest))
            .await
            .expect("pulled");
        assert!(pulled == bytes);
        assert!(matches!(source, Source::Local | Source::Peer), "{source:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_take_each_other_for_the_home_do_not_wait_in_a_circle() {
    let mesh = Mesh::strangers(&["a", "a"]).await;
    let [one, other] = &mesh.nodes[..] else {
        unreachable!("two nodes")
    };
    let bytes = noise(3, 3);
    let digest = mesh.content.add(bytes.clone());
    // Each believes that all keys belong to the other.
    for (node, peer) in [(one, other), (other, one)] {
        let mut me = node.member();
        me.weight = 0;
        node.members.set(vec![me, peer.member()]);
    }
    let pulls = [one.pull(&digest), other.pull(&digest)];
    for pulled in prompt(join_all(pulls)).await {
        assert!(pulled.expect("pulled").0 == bytes);
    }
    assert!(mesh.gets("/blobs/") <= 2);
    let manifest = br#"{"schemaVersion":2,"layers":[]}"#.to_vec();
    let reference = mesh.content.add(manifest.clone()).to_string();
    let pulls = [one.manifest(&reference), other.manifest(&reference)];
    for pulled in prompt(join_all(pulls)).await {
        assert!(pulled.expect("pulled") == manifest);
    }
    assert!(mesh.gets("/manifests/") <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_is_no_owner_is_found_while_the_upstream_is_away() {
    let mesh = Mesh::strangers(&["a"; 4]).await;
    let bytes = noise(4, 2);
    let digest = mesh.content.add(bytes.clone());
    let alone = &mesh.nodes[0];
    assert!(prompt(alone.pull(&digest)).await.expect("pulled").0 == bytes);
    *mesh.content.broken.lock() = Some(503);
    let mut everybody: Vec<_> = mesh.nodes.iter().map(mesh::Node::member).collect();
    everybody[0].weight = 0;
    for node in &mesh.nodes {
        node.members.set(everybody.clone());
    }
    let (pulled, source) = prompt(mesh.nodes[3].pull(&digest)).await.expect("pulled");
    assert!(pulled == bytes);
    assert_eq!(source, Source::Peer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_is_dead_is_passed_over() {
    let mesh = Mesh::start(&["a"; 3]).await;
    let bytes = noise(5, 1);
    let digest = mesh.content.add(bytes.clone());
    let order = mesh.by_walk(&digest);
    mesh.nodes[order[0]].peers.close().await;
    for index in &order[1..] {
        assert!(
            prompt(mesh.nodes[*index].pull(&digest))
                .await
                .expect("pulled")
                .0
                == bytes
        );
    }
    assert_eq!(mesh.gets("/blobs/"), 1, "the second home took its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_home_is_final_where_the_credential_is_the_same() {
    let mesh = Mesh::start(&["a"; 4]).await;
    let digest = Digest::of(
        millrace_protocol::oci::Algorithm::Sha256,
        b"nobody has this",
    );
    for node in &mesh.nodes {
        let refused = prompt(node.pull(&digest)).await;
        assert!(
            matches!(refused, Err(PullError::Fetch(FetchError::NotFound { .. }))),
            "{refused:?}"
        );
    }
    assert_eq!(mesh.gets("/blobs/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_owner_keeps_a_copy_where_that_is_wanted() {
    let mut settings = Settings::default();
    settings.pull.replicas = 2;
    let mesh = Mesh::strangers_with(&["a"; 4], settings).await;
    mesh.introduce();
    let digest = mesh.content.add(noise(7, 2));
    let order = mesh.by_walk(&digest);
    let puller = &mesh.nodes[order[3]];
    prompt(puller.pull(&digest)).await.expect("pulled");
    let key = Key::of_digest(&digest);
    let owners: Vec<_> = puller.members.view().owners(key).collect();
    assert_eq!(owners.len(), 2);
    for node in mesh.nodes.iter().filter(|node| owners.contains(&node.id)) {
        prompt(async {
            while !node.holds(&digest).await {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    assert_eq!(mesh.gets("/blobs/"), 1);
}
