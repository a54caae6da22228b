//! Tags and manifests, where several nodes ask for them.

use futures_util::future::join_all;
use millrace::pull::PullError;
use millrace::upstream::{TagPolicy, TagRule};

use super::mesh::{Mesh, Settings, noise, prompt};

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
