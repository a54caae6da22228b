//! Many nodes, one upstream: whoever asks, however many ask, each byte leaves the upstream once.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use millrace_cluster_tests::client::{Client as _, Skopeo};
use millrace_cluster_tests::fake::{Then, When, assert_whole, noise};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::image::Image;
use millrace_cluster_tests::load::crowd::{all, stampede};
use millrace_cluster_tests::repository::Repository;
use millrace_cluster_tests::upstream::Upstream;

const MIB: usize = 1 << 20;

/// Slow enough that everybody asks while the blob is on its way.
const SLOW: u64 = 8 << 20;

/// Bytes of content that a node had from others.
const RECEIVED: &str = "millrace_peer_received_bytes_total";

/// How many times its size a blob may enter a node: one chunk of the 24 may be asked for again.
const ONCE: f64 = 1.05;

/// Asserts that no body left the upstream twice.
async fn assert_each_left_once(upstream: &Upstream, image: &Image) -> Result<()> {
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    for access in upstream.content_accesses().await? {
        // One byte asks for the size of a blob.
        if matches!(access.status, 200 | 206) && access.body_bytes > 1 {
            *left.entry(access.path).or_default() += 1;
        }
    }
    ensure!(left.values().all(|times| *times == 1), "{left:?}");
    let expected = image.contents().len();
    ensure!(left.len() == expected, "{expected} contents, but {left:?}");
    Ok(())
}

#[tokio::test]
async fn five_nodes_that_pull_one_after_the_other_cost_one_upstream_pull() -> Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::of_layers(12)?;
    upstream.push(&image, "team/app", "1").await?;
    let fleet = Fleet::of(5)
        .upstream("corp", &upstream.url())
        .start()
        .await?;
    for node in 0..5 {
        let repository = Repository::at(fleet.node(node).address(), "corp/team/app");
        repository.pull(&image, "1").await?;
    }
    assert_each_left_once(&upstream, &image).await
}

#[tokio::test]
async fn skopeo_pulls_through_any_node_what_another_one_fetched() -> Result<()> {
    let mut upstream = Upstream::start().await?;
    let image = Image::runnable("fleet")?;
    upstream.push(&image, "library/app", "1").await?;
    let plan = Fleet::of(3).upstream("docker.io", &upstream.url());
    let fleet = plan.start().await?;
    let first = Repository::at(fleet.node(0).address(), "library/app");
    first.pull(&image, "1").await?;
    upstream.stop();
    for node in 1..3 {
        let skopeo = Skopeo::through(&fleet.node(node).address().to_string())?;
        skopeo.pull("docker.io/library/app:1").await?;
        skopeo.compare("docker.io/library/app:1", &image).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_stampede_through_all_nodes_costs_one_upstream_pull() -> Result<()> {
    let scene = Scene::start(Fleet::of(5)).await?;
    let content = noise(1, 24 * MIB);
    let path = scene.add(&content);
    scene
        .fake
        .on(When::get("/blobs/"), Then::healthy().rate(SLOW));
    let clients = scene.clients(&[0, 1, 2, 3, 4], 8);
    all(stampede(clients, &path, &content).await)?;
    assert_eq!(scene.fake.sent_bytes("/blobs/"), content.len() as u64);
    assert_each_entered_once(&scene.fleet, content.len()).await
}

/// Asserts that a blob of `size` bytes entered each node once: from the others, but for the one that
/// had it from the upstream.
async fn assert_each_entered_once(fleet: &Fleet, size: usize) -> Result<()> {
    let mut entered = Vec::new();
    for node in fleet.running() {
        let received = fleet.node(node).metric(RECEIVED, &[]).await?;
        entered.push(received.context("a node counts what it receives")?);
    }
    let once = size as f64 * ONCE;
    ensure!(entered.iter().all(|bytes| *bytes <= once), "{entered:?}");
    let all = once * (entered.len() - 1) as f64;
    ensure!(entered.iter().sum::<f64>() <= all, "{entered:?}");
    Ok(())
}

#[tokio::test]
async fn a_tag_that_all_nodes_ask_for_at_once_is_resolved_once() -> Result<()> {
    let scene = Scene::start(Fleet::of(5)).await?;
    let layers = [noise(1, MIB)];
    let image = scene.fake.add_image("team/app", "1", &layers);
    let nodes = 0..5;
    let pulls = nodes.map(|node| scene.pull_image(node, ("team/app", "1"), (&image, &layers)));
    try_join_all(pulls).await?;
    assert_eq!(scene.fake.count("HEAD", "/manifests/1"), 1);
    let manifests = scene.fake.requests("GET", "/manifests/");
    assert_eq!(manifests.len(), 1, "{manifests:?}");
    Ok(())
}

/// Returns where a node says that it had a blob from.
async fn source(scene: &Scene, node: usize, path: &str, content: &Bytes) -> Result<String> {
    let answer = scene.fleet.node(node).send(Request::get(path)).await?;
    assert_whole(&answer, content);
    scene.fleet.committed(node).await;
    let source = answer.header("x-millrace-source");
    Ok(source.context("it says so")?.to_owned())
}

#[tokio::test]
async fn a_client_is_told_that_its_node_had_a_blob_from_another() -> Result<()> {
    let scene = Scene::start(Fleet::of(2)).await?;
    let (_, content) = scene.fleet.content_of_home(0, MIB);
    let path = scene.add(&content);
    for (node, expected) in [(0, "upstream"), (1, "peer"), (1, "local"), (0, "local")] {
        let source = source(&scene, node, &path, &content).await?;
        ensure!(source == expected, "node {node}: {source}");
    }
    Ok(())
}

#[tokio::test]
async fn a_manifest_of_seven_mebibytes_is_had_through_every_node_and_without_the_upstream()
-> Result<()> {
    let scene = Scene::start(Fleet::of(3)).await?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let config = scene.fake.add_blob("team/app", "{}");
    let config = serde_json::json!({"mediaType": "application/json", "digest": config.to_string(), "size": 2});
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [],
        "annotations": {"padding": "x".repeat(7 * MIB)},
    });
    let manifest = manifest.to_string();
    let digest = scene
        .fake
        .add_manifest("team/app", media_type, manifest.clone());
    scene.fake.set_tag("team/app", "large", &digest);
    let pull = async |node: usize, name: &str| -> Result<()> {
        let path = format!("/v2/fake/team/app/manifests/{name}");
        let answer = scene.fleet.node(node).send(Request::get(&path)).await?;
        assert_whole(&answer, manifest.as_bytes());
        Ok(())
    };
    let digest = digest.to_string();
    for node in 0..3 {
        pull(node, "large").await?;
        pull(node, &digest).await?;
    }
    let fetched = scene.fake.count("GET", "/manifests/");
    ensure!(fetched == 1, "{fetched} fetches");
    // Its one blob has to be here, too, for it to be promised without the upstream.
    let (path, content) = (config["digest"].as_str().context("a digest")?, "{}".into());
    let path = format!("/v2/fake/team/app/blobs/{path}");
    scene.pull(0, &path, &content).await?;
    scene.fake.stop().await;
    for node in 0..3 {
        pull(node, &digest).await?;
    }
    Ok(())
}
