//! The end of a node in the middle of a body, and what its next start finds.

use std::time::Duration;

use anyhow::{Context, Result};
use millrace_cluster_tests::condition::{eventually, patience};
use millrace_cluster_tests::fake::{Ended, Fake, Gate, Scene, Then, When, assert_whole, noise};
use millrace_protocol::oci::Digest;

const MIB: usize = 1024 * 1024;

/// A node that has half of a blob, and whose client has left.
async fn half_full() -> Result<(Scene, Digest, Gate)> {
    let scene = Scene::of(Fake::start().await?, |node| {
        node.set("http/draintimeout", "5s")
    })
    .await?;
    let digest = scene.fake.add_blob("app", noise(1, 16 * MIB));
    let gate = Gate::default();
    let half = Then::healthy().stall(8 * MIB as u64, &gate);
    scene.fake.on(When::get("/blobs/").first(1), half);
    let mut reader = scene.open(scene.blob("app", &digest)).await?;
    reader.read_at_least(7 * MIB).await?;
    Ok((scene, digest, gate))
}

#[tokio::test]
async fn a_restart_continues_the_part() -> Result<()> {
    let (mut scene, digest, _gate) = half_full().await?;
    assert!(scene.node.stop().await?.success(), "a drain is no failure");
    eventually("the upstream sees the node leave", async || {
        scene.fake.records()[0].end == Some(Ended::Left)
    })
    .await;
    scene.node.restart().await?;
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, &noise(1, 16 * MIB));
    let fetches = scene.fake.requests("GET", "/blobs/");
    let start = fetches[1].range_start().context("the part was dropped")?;
    assert!(start >= 7 * MIB as u64, "continued at {start}");
    assert_eq!(fetches[1].sent_bytes, 16 * MIB as u64 - start);
    Ok(())
}

#[tokio::test]
async fn a_kill_leaves_nothing_wrong() -> Result<()> {
    let (mut scene, digest, _gate) = half_full().await?;
    let small = scene.fake.add_blob("app", "small");
    assert_whole(&scene.send(scene.blob("app", &small)).await?, b"small");
    scene.node.kill();
    scene.node.restart().await?;
    for _ in 0..2 {
        let answer = scene.send(scene.blob("app", &digest)).await?;
        assert_whole(&answer, &noise(1, 16 * MIB));
    }
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_at_once_although_a_client_reads() -> Result<()> {
    let mut scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", noise(1, 4 * MIB));
    let _never = scene.fake.pause_blobs(MIB as u64);
    let mut reader = scene.open(scene.blob("app", &digest)).await?;
    reader.read_at_least(1_000).await?;
    scene.node.drain().await;
    assert!(
        reader.end().is_none(),
        "the reader was cut at the first signal"
    );
    scene.node.terminate();
    scene
        .node
        .ended(patience().min(Duration::from_secs(10)))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_drain_lets_a_running_body_finish() -> Result<()> {
    let mut scene = Scene::start().await?;
    let content = noise(1, 4 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    let gate = scene.fake.pause_blobs(MIB as u64);
    let reader = scene.open(scene.blob("app", &digest)).await?;
    scene.node.drain().await;
    gate.open();
    assert_whole(&reader.finish().await?, &content);
    scene.node.ended(patience()).await?;
    Ok(())
}
