//! Stores that are too small for what is pulled: the disk bound holds, every pull is right, and what
//! leaves the upstream a second time had no copy left in the cluster.

use anyhow::{Result, ensure};
use bytes::Bytes;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{noise, sha256};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_protocol::oci::{Algorithm, Digest};

const KIB: usize = 1 << 10;

/// Bytes of each store.
const MAX_SIZE: u64 = 8 << 20;

/// Bytes of each blob.
const BLOB: usize = 384 * KIB;

/// Half as much again as one store holds, and half of what three hold.
const BLOBS: u64 = 32;

/// How often a blob may be fetched, on average, by nodes that together have room for all twice.
const MOST_FETCHED: f64 = 1.25;

/// Asserts that no store is above its bound; a blob that is just moved to its place counts twice.
async fn assert_bounded(fleet: &Fleet) -> Result<()> {
    for index in 0..fleet.size() {
        fleet.committed(index).await;
        let status = fleet.node(index).status().await?;
        let bytes = |name: &str| status["store"][name].as_u64().unwrap_or(u64::MAX);
        let taken = bytes("blob_bytes")
            .saturating_add(bytes("growing_bytes"))
            .saturating_add(bytes("suspended_bytes"));
        ensure!(taken <= MAX_SIZE, "node {index} has taken {taken}");
    }
    Ok(())
}

/// Waits until a node has room for the next blob, so that nothing has to go unseen.
async fn roomy(fleet: &Fleet, node: usize) {
    eventually("the node has room for a blob", async || {
        let status = fleet.node(node).status().await;
        let bytes = status.ok().and_then(|s| s["store"]["blob_bytes"].as_u64());
        bytes.is_some_and(|bytes| bytes + BLOB as u64 <= MAX_SIZE)
    })
    .await;
}

/// Pulls everything through one node.
async fn pull_all(scene: &Scene, node: usize, contents: &[(String, Bytes)]) -> Result<()> {
    for (path, content) in contents {
        scene.pull(node, path, content).await?;
        assert_bounded(&scene.fleet).await?;
    }
    Ok(())
}

#[tokio::test]
async fn nodes_under_pressure_keep_one_copy_among_them() -> Result<()> {
    let plan = Fleet::of(3).set("cache/max_size", MAX_SIZE.to_string());
    let scene = Scene::start(plan).await?;
    let contents: Vec<(String, Bytes)> = (0..BLOBS)
        .map(|seed| {
            let content = noise(seed, BLOB);
            (scene.add(&content), content)
        })
        .collect();
    for _ in 0..2 {
        for node in 0..3 {
            pull_all(&scene, node, &contents).await?;
        }
    }
    let fetched = scene.fake.sent_bytes("/blobs/") / BLOB as u64;
    let evicted = scene
        .fleet
        .sum("millrace_store_evicted_blobs_total", &[])
        .await?;
    let elsewhere = scene
        .fleet
        .sum("millrace_store_evicted_elsewhere_total", &[])
        .await?;
    let unknown = evicted - elsewhere;
    ensure!(evicted > 0.0, "nothing had to go");
    ensure!(elsewhere > 0.0, "no copy was found of what had to go");
    let again = fetched as f64 / BLOBS as f64;
    ensure!(again <= MOST_FETCHED, "each was fetched {again} times");
    ensure!(
        (fetched - BLOBS) as f64 <= unknown,
        "{fetched} were fetched, {unknown} went without a copy elsewhere"
    );
    Ok(())
}

#[tokio::test]
async fn what_only_one_node_holds_outlives_the_pressure_on_it() -> Result<()> {
    let plan = Fleet::of(3).set("cache/max_size", MAX_SIZE.to_string());
    let scene = Scene::start(plan).await?;
    // Its home pulls it, and nobody else.
    let (digest, precious) = scene.fleet.content_of_home(0, BLOB);
    let path = Scene::path(&digest);
    scene.add(&precious);
    scene.pull(0, &path, &precious).await?;
    scene.fleet.committed(0).await;
    // Then other things, which their homes keep.
    let others = (1_000..).map(|seed| noise(seed, BLOB)).filter(|content| {
        let digest = Digest::of(Algorithm::Sha256, content);
        scene.fleet.home(&digest) != 0
    });
    for content in others.take(usize::try_from(BLOBS)?) {
        let path = scene.add(&content);
        scene.pull(0, &path, &content).await?;
        assert_bounded(&scene.fleet).await?;
        roomy(&scene.fleet, 0).await;
    }
    let evicted = scene
        .fleet
        .sum("millrace_store_evicted_blobs_total", &[])
        .await?;
    ensure!(evicted > 0.0, "nothing had to go");
    let before = scene.fake.sent_bytes(&digest.to_string());
    scene.pull(2, &path, &precious).await?;
    ensure!(
        before > 0 && scene.fake.sent_bytes(&digest.to_string()) == before,
        "it was fetched again"
    );
    Ok(())
}

#[tokio::test]
async fn a_blob_that_no_node_has_room_for_is_fetched_by_each_for_itself() -> Result<()> {
    const NODES: usize = 4;
    const LARGE: usize = 12 * 1024 * KIB;
    let plan = Fleet::of(NODES).set("cache/max_size", "4MiB");
    let scene = Scene::start(plan).await?;
    let content = noise(7, LARGE);
    let path = scene.add(&content);
    let homes = scene.fleet.walk(&sha256(&content));
    // Those first who have both homes to ask.
    for node in homes.iter().rev() {
        scene.pull(*node, &path, &content).await?;
    }
    // One for each node, and what the two homes began for the first who asked.
    let fetches = scene.fake.count("GET", "/blobs/");
    ensure!(fetches <= NODES + 2, "{fetches} fetches");
    Ok(())
}
