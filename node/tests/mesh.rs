//! Pulls through several nodes in one process: what the way over owner, home and holders promises.
//!
//! Real processes, real clients and the membership behind the views are tested in `cluster-tests`.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/liar.rs"]
mod liar;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of holdings")]
mod mesh;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use liar::Liar;
use mesh::{Mesh, Settings, noise, prompt};
use millrace::peer::Members;
use millrace::pull::{PullError, Source};
use millrace::upstream::{AccessRule, FetchError, TagPolicy, TagRule};
use millrace_protocol::access::Reader;
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{AskVouch, OriginName, Refusal};
use tokio::sync::watch;

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

/// Nodes whose upstream is for clients of their own host alone, and believe a yes for so long.
async fn private_mesh(access_ttl: Duration) -> Mesh {
    let rule = AccessRule {
        pattern: "*".to_owned(),
        read: vec![Reader::Local],
    };
    let mut settings = Settings::default();
    settings.pull.access.insert("corp".to_owned(), vec![rule]);
    settings.pull.access_ttl = access_ttl;
    settings.pull.negative_ttl = Duration::ZERO;
    let mesh = Mesh::strangers_with(&["a"; 4], settings).await;
    mesh.introduce();
    mesh
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_blob_belongs_to_a_repository_is_asked_once_for_all_nodes() {
    let mesh = private_mesh(Duration::from_secs(600)).await;
    let bytes = noise(21, 1);
    let digest = mesh.content.add(bytes.clone());
    // The nodes that are not the home first: they ask it.
    let mut order = mesh.by_walk(&digest);
    order.reverse();
    for repository in ["team/app", "team/other"] {
        for index in &order {
            let pulled = prompt(mesh.nodes[*index].pull_from(repository, &digest)).await;
            assert!(pulled.expect("pulled").0 == bytes);
            mesh.nodes[*index].settled().await;
        }
    }
    assert_eq!(mesh.gets("/team/other/blobs/"), 1, "one question for all");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_upstream_refuses_the_home_is_refused_by_all() {
    let mesh = private_mesh(Duration::ZERO).await;
    let digest = mesh.content.add(noise(22, 1));
    for node in &mesh.nodes {
        prompt(node.pull(&digest)).await.expect("pulled");
        node.settled().await;
    }
    *mesh.content.broken.lock() = Some(403);
    for index in mesh.by_walk(&digest).into_iter().rev() {
        let before = mesh.gets("/blobs/");
        let refused = prompt(mesh.nodes[index].pull(&digest)).await;
        assert!(
            matches!(refused, Err(PullError::Fetch(FetchError::Denied { .. }))),
            "a link outlives what the upstream said: {:?}",
            refused.map(|(_, source)| source)
        );
        assert_eq!(mesh.gets("/blobs/") - before, 1, "the home asks, alone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_home_cannot_vouch_asks_the_upstream_itself() {
    let mesh = private_mesh(Duration::from_secs(600)).await;
    let bytes = noise(23, 1);
    let digest = mesh.content.add(bytes.clone());
    let _home = mesh.add_home(Arc::new(Liar::honest(&bytes)));
    let pulled = prompt(mesh.nodes[0].pull(&digest)).await;
    assert!(pulled.expect("pulled").0 == bytes);
    assert_eq!(mesh.gets("/blobs/"), 1, "the content came from the home");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_vouches_for_its_own_credential_only() {
    let mesh = private_mesh(Duration::from_secs(600)).await;
    let digest = mesh.content.add(noise(24, 1));
    let order = mesh.by_walk(&digest);
    let (home, asker) = (&mesh.nodes[order[0]], &mesh.nodes[order[1]]);
    prompt(home.pull(&digest)).await.expect("pulled");
    home.settled().await;
    let own = home.store.provenance(&digest).await.remove(0);
    let vouch = |credential: &str| {
        let question = AskVouch {
            origin: OriginName {
                upstream: own.upstream.clone(),
                repository: own.repository.clone(),
                credential: credential.to_owned(),
            },
            digest,
            is_manifest: false,
            max_age_ms: 600_000,
        };
        prompt(asker.peers.vouch(home.id, question))
    };
    vouch(&own.credential).await.expect("it is its own");
    let refused = vouch("another").await.expect_err("it is another's");
    assert_eq!(refused.refusal(), Some(&Refusal::Unconfigured), "{refused}");
}

/// Nodes with a password for `corp`, whose content is for who has shown who he is.
async fn mesh_with_login() -> Mesh {
    let mut settings = Settings {
        login: Some(("ci".to_owned(), "node".to_owned())),
        ..Settings::default()
    };
    settings.pull.has_credentials = true;
    settings.pull.negative_ttl = Duration::ZERO;
    let mesh = Mesh::strangers_with(&["a", "a", "b", "b"], settings).await;
    mesh.introduce();
    mesh
}

/// Where a body pauses for other nodes to have its first chunk and no more.
fn behind_first_chunk() -> usize {
    usize::try_from(CHUNK_BYTES).expect("fits") + 50_000
}

/// Returns the home of a digest, and the owner in the other zone and the other node of that zone.
fn along_the_way<'a>(mesh: &'a Mesh, digest: &Digest) -> [&'a mesh::Node; 3] {
    let home = &mesh.nodes[mesh.by_walk(digest)[0]];
    let view = home.members.view();
    let far = |node: &&mesh::Node| node.members.view().zone() != view.zone();
    let far: Vec<_> = mesh.nodes.iter().filter(far).collect();
    let owners = far[0].members.view();
    let owner = owners.owners(Key::of_digest(digest)).next();
    let is_owner = |node: &&&mesh::Node| Some(node.id) == owner;
    let find = |wanted| far.iter().find(|node| is_owner(node) == wanted);
    [
        home,
        find(true).expect("an owner"),
        find(false).expect("another"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_on_its_way_is_what_it_is_being_fetched_as_and_not_what_others_ask_it_as() {
    let mesh = mesh_with_login().await;
    mesh.content.keep_to("team-a/app");
    let bytes = noise(25, 3);
    let digest = mesh.content.add(bytes.clone());
    let (gate, opened) = watch::channel(false);
    *mesh.content.pause.lock() = Some((behind_first_chunk(), opened));
    let [home, owner, asker] = along_the_way(&mesh, &digest);
    let own = home.origin_of("corp", "team-a/app");
    let pulling = prompt(home.puller.blob(&own, &digest))
        .await
        .expect("begun");
    for (upstream, repository) in [
        ("hub", "any/app"),
        ("hub", "team-b/app"),
        ("corp", "team-b/app"),
    ] {
        let origin = asker.origin_of(upstream, repository);
        let refused = prompt(asker.puller.blob(&origin, &digest)).await;
        assert!(is_not_found(&refused), "{origin}: {refused:?}");
    }
    assert!(!asker.holds(&digest).await, "it is still on its way");
    gate.send_replace(true);
    drop(pulling);
    for node in [home, owner, asker] {
        let pulled = prompt(node.pull_as(&node.origin_of("corp", "team-a/app"), &digest)).await;
        assert!(pulled.expect("pulled").0 == bytes);
        prompt(node.settled()).await;
        assert_eq!(node.store.provenance(&digest).await, [own.provenance()]);
    }
}

fn is_not_found<T>(result: &Result<T, PullError>) -> bool {
    matches!(result, Err(PullError::Fetch(FetchError::NotFound { .. })))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_tells_no_more_of_what_other_nodes_have_than_a_get() {
    let mesh = mesh_with_login().await;
    mesh.content.keep_to("team-a/app");
    let bytes = noise(26, 2);
    let digest = mesh.content.add(bytes.clone());
    let [home, owner, asker] = along_the_way(&mesh, &digest);
    let own = home.origin_of("corp", "team-a/app");
    prompt(home.pull_as(&own, &digest)).await.expect("pulled");
    prompt(home.settled()).await;
    for node in [asker, owner] {
        for (upstream, repository) in [("hub", "any/app"), ("corp", "team-b/app")] {
            let origin = node.origin_of(upstream, repository);
            let refused = prompt(node.puller.blob_head(&origin, &digest)).await;
            assert!(is_not_found(&refused), "{origin}: {refused:?}");
        }
        let asked = mesh.gets("/team-a/app/blobs/");
        let own = node.origin_of("corp", "team-a/app");
        let head = prompt(node.puller.blob_head(&own, &digest)).await;
        let head = head.expect("it belongs there");
        assert_eq!(
            (head.size, head.source),
            (Some(bytes.len() as u64), Source::Peer)
        );
        assert_eq!(mesh.gets("/team-a/app/blobs/"), asked, "the home vouches");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_costs_a_fleet_one_head_and_one_get() {
    let mesh = Mesh::start(&["a", "a", "b", "b"]).await;
    // So many, because they are asked for at their homes and by these at about the same time: who
    // has looked for a record just before it is written must not ask the upstream again.
    for number in 0..100 {
        let manifest = format!(r#"{{"schemaVersion":2,"layers":[],"number":{number}}}"#);
        let digest = mesh.content.add(manifest.clone().into_bytes());
        let tag = format!("v{number}");
        mesh.content.tag(&tag, &digest);
        let pulls = mesh.nodes.iter().map(|node| node.manifest(&tag));
        for pulled in prompt(join_all(pulls)).await {
            assert_eq!(pulled.expect("resolved"), manifest.as_bytes());
        }
        assert_eq!(mesh.gets(&digest.to_string()), 1, "{number}");
    }
    assert_eq!(mesh.heads("/manifests/v"), 100);
    assert_eq!(mesh.gets("/manifests/v"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_is_always_checked_is_not_answered_from_the_homes_record() {
    let mut settings = Settings::default();
    settings.pull.tags.push(TagRule {
        pattern: "*".to_owned(),
        policy: TagPolicy::Always,
        ttl: None,
    });
    let mesh = Mesh::strangers_with(&["a"; 3], settings).await;
    mesh.introduce();
    for round in 0..3 {
        for node in &mesh.nodes {
            let manifest = format!(r#"{{"round":{round},"node":"{}"}}"#, node.id).into_bytes();
            let digest = mesh.content.add(manifest.clone());
            mesh.content.tag("v1", &digest);
            let answer = prompt(node.manifest("v1")).await.expect("resolved");
            assert_eq!(answer, manifest, "it has moved since the last answer");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_split_has_healed_both_sides_say_what_the_upstream_says_now() {
    for who_sees_it_first in [0, 1] {
        let mesh = Mesh::strangers(&["a", "a"]).await;
        let old = mesh.content.add(b"{\"old\":1}".to_vec());
        let new = mesh.content.add(b"{\"new\":1}".to_vec());
        mesh.content.tag("v1", &old);
        let before = mesh.nodes[0].manifest("v1").await.expect("resolved");
        mesh.content.tag("v1", &new);
        let after = mesh.nodes[1].manifest("v1").await.expect("resolved");
        assert_ne!(before, after, "two sides, two answers");
        let newest = mesh.content.add(b"{\"newest\":1}".to_vec());
        mesh.content.tag("v1", &newest);
        mesh.introduce();
        let first = &mesh.nodes[who_sees_it_first];
        first.members.heal();
        let answer = prompt(first.manifest("v1")).await.expect("resolved");
        assert_eq!(answer, b"{\"newest\":1}");
        let other = &mesh.nodes[1 - who_sees_it_first];
        other.members.heal();
        let answer = prompt(other.manifest("v1")).await.expect("resolved");
        assert_eq!(answer, b"{\"newest\":1}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_remembered_for_a_node_that_never_asked_while_the_upstream_is_away() {
    let mesh = Mesh::start(&["a"; 4]).await;
    let manifest = br#"{"schemaVersion":2,"layers":[]}"#.to_vec();
    let digest = mesh.content.add(manifest.clone());
    mesh.content.tag("v1", &digest);
    prompt(mesh.nodes[0].manifest("v1"))
        .await
        .expect("resolved");
    *mesh.content.broken.lock() = Some(503);
    for node in &mesh.nodes[1..] {
        assert_eq!(
            prompt(node.manifest("v1")).await.expect("remembered"),
            manifest
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_promised_only_with_its_blobs_in_the_cluster() {
    let mesh = Mesh::start(&["a"; 3]).await;
    let layer = noise(6, 1);
    let layer_digest = mesh.content.add(layer.clone());
    let manifest = format!(
        r#"{{"schemaVersion":2,"layers":[{{"mediaType":"x","digest":"{layer_digest}","size":1}}]}}"#
    );
    let digest = mesh.content.add(manifest.clone().into_bytes());
    let reference = digest.to_string();
    for node in &mesh.nodes {
        prompt(node.manifest(&reference)).await.expect("fetched");
    }
    *mesh.content.broken.lock() = Some(503);
    for node in &mesh.nodes {
        // The first pull that fails tells the node that the upstream is away.
        prompt(node.pull(&layer_digest))
            .await
            .expect_err("nobody has it");
        let refused = prompt(node.manifest(&reference)).await;
        assert!(
            matches!(refused, Err(PullError::Incomplete { .. })),
            "{refused:?}"
        );
    }
    *mesh.content.broken.lock() = None;
    prompt(async {
        // The node asks the upstream again only after a while.
        while mesh.nodes[0].pull(&layer_digest).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for node in &mesh.nodes {
        prompt(node.settled()).await;
    }
    *mesh.content.broken.lock() = Some(503);
    for node in &mesh.nodes {
        let kept = prompt(node.manifest(&reference)).await.expect("promised");
        assert_eq!(kept, manifest.as_bytes());
    }
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
