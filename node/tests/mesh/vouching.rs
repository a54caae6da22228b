//! Who may read what, where several nodes have it: the home of content vouches for it, once for all.

use std::sync::Arc;
use std::time::Duration;

use millrace::pull::{PullError, Source};
use millrace::upstream::{AccessRule, FetchError};
use millrace_protocol::access::Reader;
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::wire::message::{AskVouch, OriginName, Refusal};
use tokio::sync::watch;

use super::liar::Liar;
use super::mesh::{Mesh, Settings, noise, prompt};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_on_its_way_is_what_it_is_being_fetched_as_and_not_what_others_ask_it_as() {
    let mesh = mesh_with_login().await;
    mesh.content.keep_to("team-a/app");
    let bytes = noise(25, 3);
    let digest = mesh.content.add(bytes.clone());
    let (gate, opened) = watch::channel(false);
    *mesh.content.pause.lock() = Some((behind_first_chunk(), opened));
    let [home, owner, asker] = mesh.along_the_way(&digest);
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
    let [home, owner, asker] = mesh.along_the_way(&digest);
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
