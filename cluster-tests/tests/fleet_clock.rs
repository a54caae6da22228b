//! Nodes whose clock is set back: tags are checked when they are due, what was used last stays, and the
//! node remains a member.

use anyhow::{Result, ensure};
use bytes::Bytes;
use millrace_cluster_tests::clock::Clock;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{self, Image, assert_whole, noise};
use millrace_cluster_tests::fleet::{Fleet, Plan, Scene};
use millrace_cluster_tests::load::crowd::{all, pull, stampede};
use millrace_protocol::oci::Digest;
use serde_json::json;

const MIB: usize = 1 << 20;

/// The repository of tags.
const TAGGED: &str = "team/app";

/// An hour before the right time, in seconds.
const BACK: i64 = -3_600;

/// Returns a plan of three nodes, the first of which has this clock.
fn of_three(clock: &Clock) -> Plan {
    let clock = clock.clone();
    Fleet::of(3).each(move |index, node| match index {
        0 => clock.on(node),
        _ => node,
    })
}

#[tokio::test]
async fn a_node_whose_clock_is_set_back_stays_and_comes_back() -> Result<()> {
    let clock = Clock::right().await?;
    let mut scene = Scene::start(of_three(&clock)).await?;
    let layers = [noise(1, MIB)];
    let image = scene.fake.add_image(TAGGED, "1", &layers);
    scene
        .pull_image(0, (TAGGED, "1"), (&image, &layers))
        .await?;
    clock.set(BACK)?;
    scene
        .pull_image(0, (TAGGED, "1"), (&image, &layers))
        .await?;
    let contents: Vec<(String, Bytes)> = (10..16)
        .map(|seed| {
            let content = noise(seed, MIB);
            (scene.add(&content), content)
        })
        .collect();
    for (path, content) in &contents {
        all(stampede(scene.clients(&[0, 1, 2], 1), path, content).await)?;
    }
    scene.fleet.agree().await;
    // Started anew in the past, it is the newer run all the same.
    scene.fleet.restart(&[0]).await?;
    scene.fleet.agree().await;
    for (path, content) in &contents {
        pull(scene.fleet.node(0).address(), path, content).await?;
    }
    scene
        .pull_image(0, (TAGGED, "1"), (&image, &layers))
        .await?;
    let sum: usize = contents.iter().map(|(_, content)| content.len()).sum();
    assert_eq!(
        scene.fake.sent_bytes("/blobs/"),
        sum as u64 + image_bytes(&scene)?
    );
    Ok(())
}

/// Returns the bytes of blobs of the image, which left the upstream once.
fn image_bytes(scene: &Scene) -> Result<u64> {
    let records = scene.fake.requests("GET", "/team/app/blobs/");
    ensure!(records.len() == 2, "{records:?}");
    Ok(records.iter().map(|record| record.sent_bytes).sum())
}

/// Lets a tag of the upstream point to one of several images.
fn point(scene: &Scene, tag: &str, seed: u64) -> Image {
    scene.fake.add_image(TAGGED, tag, &[noise(seed, 1_000)])
}

/// Ends the first node, which writes down what it knows, and starts it again.
async fn again(scene: &mut Scene) -> Result<()> {
    scene.fleet.leave(0).await?;
    scene.fleet.restart(&[0]).await?;
    scene.fleet.agree().await;
    Ok(())
}

#[tokio::test]
async fn a_tag_that_moves_is_followed_when_the_clock_was_set_back() -> Result<()> {
    let clock = Clock::right().await?;
    let tags = json!([
        {"match": "*:short-*", "policy": "ttl", "ttl": "2s"},
        {"match": "*", "policy": "ttl", "ttl": "1h"},
    ]);
    let plan = of_three(&clock)
        .set("upstreams/fake/tags", tags)
        .set("cache/revalidate", "20s");
    let mut scene = Scene::start(plan).await?;
    // Node 0 answers for others, too.
    let [short, long] = ["short", "long"].map(|name| scene.fleet.tag_of_home(0, TAGGED, name));
    for tag in [&short, &long] {
        let old = point(&scene, tag, 1);
        scene.expect_tag(&[0], (TAGGED, tag), &old).await?;
    }
    clock.set(2 * BACK)?;
    let new = point(&scene, &short, 2);
    for node in [1, 0] {
        eventually("the tag is due", async || {
            let seen = scene.expect_tag(&[node], (TAGGED, &short), &new).await;
            seen.is_ok()
        })
        .await;
    }
    // What this run has heard is as young as it is.
    let old = point(&scene, &long, 1);
    let asked = scene.fake.count("HEAD", &long);
    scene.expect_tag(&[0], (TAGGED, &long), &old).await?;
    ensure!(scene.fake.count("HEAD", &long) == asked, "it is not due");
    // The next run finds a record from the future, which may be of any age.
    let new = point(&scene, &long, 2);
    again(&mut scene).await?;
    let (tag, nodes) = ((TAGGED, long.as_str()), [1, 0]);
    scene.expect_tag(&nodes, tag, &new).await?;
    let layers = [noise(2, 1_000)];
    scene.pull_image(0, tag, (&new, &layers)).await?;
    // While nobody can tell what is right, it is better than nothing.
    scene.fleet.committed(0).await;
    clock.set(3 * BACK)?;
    again(&mut scene).await?;
    scene.fake.stop().await;
    scene.expect_tag(&[0], tag, &new).await
}

/// Whether a blob comes out of the store.
async fn is_kept(scene: &fake::Scene, digest: &Digest) -> Result<bool> {
    let head = scene.blob("app", digest).header("Range", "bytes=0-9");
    let answer = scene.send(head).await?;
    Ok(answer.header("x-millrace-source") == Some("local"))
}

#[tokio::test]
async fn what_was_used_since_the_clock_was_set_back_outlives_what_was_not() -> Result<()> {
    let clock = Clock::right().await?;
    let small = |node| clock.on(node).set("cache/max_size", "20MiB");
    let mut scene = fake::Scene::with(small).await?;
    let blobs: Vec<Bytes> = (0..5).map(|seed| noise(seed, 6 * MIB)).collect();
    let add = |blob: &Bytes| scene.fake.add_blob("app", blob.clone());
    let digests: Vec<Digest> = blobs.iter().map(add).collect();
    let fetched = async |scene: &fake::Scene, number: usize| -> Result<()> {
        let answer = scene.send(scene.blob("app", &digests[number])).await?;
        assert_whole(&answer, &blobs[number]);
        scene.settle().await;
        Ok(())
    };
    // Three fit.
    for number in [0, 1, 2] {
        fetched(&scene, number).await?;
    }
    clock.set(BACK)?;
    // The order is now 1, 2, 0; the next two take the places of 1 and 2.
    for number in [0, 3] {
        fetched(&scene, number).await?;
    }
    // Also by a run that began in the past.
    clock.set(2 * BACK)?;
    scene.node.stop().await?;
    scene.node.restart().await?;
    fetched(&scene, 4).await?;
    for number in [0, 3, 4] {
        let is_kept = is_kept(&scene, &digests[number]).await?;
        ensure!(is_kept, "blob {number} had to go");
    }
    let asked = scene.fake.count("GET", "/blobs/");
    ensure!(asked == 5, "{asked} fetches");
    Ok(())
}
