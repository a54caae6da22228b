//! A node that joins others, which hold blobs and images: whatever its clients want of these, the upstream
//! is there all the time and is asked for nothing but what tags point to that are the new node's now.

use anyhow::{Result, ensure};
use bytes::Bytes;
use millrace_cluster_tests::fake::{Fake, noise};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use serde_json::json;

/// The nodes that are there first.
const NODES: usize = 3;

const BLOBS: u64 = 40;
const BLOB: usize = 64 << 10;

/// So many that some tags stay where they were and some move, whatever names the nodes have.
const IMAGES: u64 = 24;

/// The repository of images.
const TEAM: &str = "team/app";

/// A path by which nodes serve something, and its bytes.
type Held = (String, Bytes);

/// Adds an image of this tag, and returns what a client asks for that pulls it by tag and by digest.
fn image(fake: &Fake, tag: &str, seed: u64) -> [Held; 3] {
    let layer = noise(seed, BLOB);
    let image = fake.add_image(TEAM, tag, std::slice::from_ref(&layer));
    let path = |kind: &str, name: &str| format!("/v2/fake/{TEAM}/{kind}/{name}");
    let manifest = image.manifest_bytes;
    [
        (path("manifests", tag), manifest.clone()),
        (path("manifests", &image.manifest.to_string()), manifest),
        (path("blobs", &image.layers[0].to_string()), layer),
    ]
}

/// Returns the upstream's requests behind the first `before`, in alphabetical order.
fn asked_since(fake: &Fake, before: usize) -> Vec<String> {
    let records = fake.records().split_off(before);
    let lines = records
        .iter()
        .map(|record| format!("{} {}", record.method, record.target));
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn a_node_that_joins_asks_no_upstream_for_what_the_others_hold() -> Result<()> {
    let fake = Fake::start().await?;
    // No tag is due while the test runs.
    let plan = Fleet::of(NODES).upstream("fake", &fake.url()).set(
        "cache/tags",
        json!([{"match": "*", "policy": "ttl", "ttl": "1h"}]),
    );
    let fleet = plan.start().await?;
    let mut scene = Scene { fake, fleet };
    let blobs = (0..BLOBS).map(|seed| noise(seed, BLOB));
    let mut held: Vec<Held> = blobs.map(|blob| (scene.add(&blob), blob)).collect();
    let tags: Vec<String> = (0..IMAGES).map(|number| format!("{number:02}")).collect();
    for (tag, seed) in tags.iter().zip(BLOBS..) {
        held.extend(image(&scene.fake, tag, seed));
    }
    for (number, (path, content)) in held.iter().enumerate() {
        scene.pull(number % NODES, path, content).await?;
    }
    let before = scene.fake.records().len();
    let joined = scene.fleet.join(&plan).await?;
    scene.fleet.agree().await;
    for (path, content) in &held {
        scene.pull(joined, path, content).await?;
    }
    // Of a tag whose home it is now it has no record; what it points to can be had from the others.
    let is_moved = |tag: &&String| scene.fleet.home_of_tag(TEAM, tag) == joined;
    let moved = tags.iter().filter(is_moved);
    let due: Vec<String> = moved
        .map(|tag| format!("HEAD /v2/{TEAM}/manifests/{tag}"))
        .collect();
    assert_eq!(asked_since(&scene.fake, before), due);
    ensure!(due.len() < tags.len(), "no tag has stayed where it was");
    Ok(())
}
