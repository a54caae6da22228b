//! Nodes that have no room for what passes through them: others get it elsewhere, and their own clients
//! get all of it.

use anyhow::{Result, ensure};
use millrace_cluster_tests::fake::{Gate, Then, When, assert_whole, noise};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::http::Request;
use tokio::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// Far below what a hop may be silent for that is believed to fetch.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_home_that_runs_out_of_room_says_so_to_those_who_wait() -> Result<()> {
    let plan = Fleet::of(2).each(|index, node| match index {
        0 => node.set("cache/max_size", "30MiB"),
        _ => node,
    });
    let scene = Scene::start(plan).await?;
    let other = noise(1, 16 * MIB);
    let other_path = scene.add(&other);
    scene.pull(0, &other_path, &other).await?;
    scene.fleet.committed(0).await;
    let (digest, large) = scene.fleet.content_of_home(0, 20 * MIB);
    let path = Scene::path(&digest);
    scene.add(&large);
    let gate = Gate::default();
    let stalled = Then::healthy().stall(2 * MIB as u64, &gate);
    scene
        .fake
        .on(When::get(&digest.to_string()).first(1), stalled);
    let taker = scene.fleet.node(1).address();
    let mut reader = Request::get(&path).open(taker).await?;
    let begin = reader.read_at_least(MIB).await?;
    let home = scene.fleet.node(0).address();
    // What is being read does not make way for the large blob.
    let slow = Request::get(&other_path).open(home).await?;
    ensure!(slow.head().header("x-millrace-source") == Some("local"));
    gate.open();
    let opened = Instant::now();
    let rest = reader.finish().await?;
    let took = opened.elapsed();
    ensure!([begin, rest.body].concat() == large, "other bytes came");
    ensure!(took < SOON, "it took {took:?}");
    assert_whole(&slow.finish().await?, &other);
    let relayed = scene.fleet.node(0).log().contains("is relayed");
    ensure!(relayed, "there was room");
    Ok(())
}

#[tokio::test]
async fn what_others_hold_is_relayed_by_a_node_without_room() -> Result<()> {
    let plan = Fleet::of(3).each(|index, node| match index {
        1 => node.set("cache/max_size", "8MiB"),
        _ => node,
    });
    let scene = Scene::start(plan).await?;
    for seed in 0..4 {
        let size = 24 * MIB + seed;
        let (digest, content) = scene.fleet.content_of_home(0, size);
        let path = Scene::path(&digest);
        scene.add(&content);
        scene.pull(0, &path, &content).await?;
        scene.fleet.committed(0).await;
        let answer = scene.fleet.node(1).send(Request::get(&path)).await?;
        assert_whole(&answer, &content);
        ensure!(answer.header("x-millrace-source") == Some("peer"));
        let fetches = scene.fake.count("GET", &digest.to_string());
        ensure!(fetches == 1, "{fetches} fetches");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_relayed_goes_on_from_another_holder() -> Result<()> {
    let plan = Fleet::of(3).each(|index, node| match index {
        1 => node.set("cache/max_size", "8MiB"),
        _ => node,
    });
    let mut scene = Scene::start(plan).await?;
    let (digest, content) = scene.fleet.content_of_home(0, 64 * MIB);
    let path = Scene::path(&digest);
    scene.add(&content);
    for node in [0, 2] {
        scene.pull(node, &path, &content).await?;
        scene.fleet.committed(node).await;
    }
    let mut reader = Request::get(&path)
        .open(scene.fleet.node(1).address())
        .await?;
    let begin = reader.read_at_least(20 * MIB).await?;
    scene.fleet.kill(0);
    let killed = Instant::now();
    let rest = reader.finish().await?;
    let took = killed.elapsed();
    ensure!([begin, rest.body].concat() == content, "other bytes came");
    ensure!(took < SOON, "it took {took:?}");
    let fetches = scene.fake.count("GET", &digest.to_string());
    ensure!(fetches == 1, "{fetches} fetches");
    Ok(())
}
