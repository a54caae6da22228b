//! Copies beyond the first (`cluster.replicas`): what was pulled once is kept by as many owners of a zone
//! as are configured, at no further cost to the upstream, and is there when the first of them is not.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::noise;
use millrace_cluster_tests::fleet::{Fleet, Plan, Scene};
use millrace_protocol::oci::Digest;

/// Some chunks, the last of them a short one.
const BLOB: usize = (3 << 20) + 12_345;

/// Owners of a zone that keep a copy.
const COPIES: usize = 2;

/// The repository of images.
const TEAM: &str = "team/app";

fn with_copies(size: usize) -> Plan {
    Fleet::of(size).set("cluster/replicas", COPIES)
}

/// Returns who keeps a content that was pulled through `puller`: itself, and the first owners of its zone
/// and of the home's.
fn keepers(fleet: &Fleet, digest: &Digest, puller: usize) -> BTreeSet<usize> {
    let nodes = [puller, fleet.home(digest)];
    let owners = nodes.map(|node| fleet.owners(fleet.zone(node), digest));
    let first = owners.iter().flat_map(|owners| owners.iter().take(COPIES));
    first.copied().chain([puller]).collect()
}

/// Waits until each node has what it is to keep of these contents, and nothing else.
async fn settled(fleet: &Fleet, contents: &BTreeSet<Digest>, puller: usize) {
    for node in fleet.running() {
        let is_here = |digest: &&Digest| keepers(fleet, digest, puller).contains(&node);
        let expected = contents.iter().filter(is_here).count();
        let what = format!("node {node} keeps {expected} contents");
        eventually(&what, async || {
            let status = fleet.node(node).status().await;
            status.is_ok_and(|status| status["store"]["blobs"] == expected)
        })
        .await;
    }
}

/// Returns a running node that does not keep the content.
fn stranger_to(fleet: &Fleet, keepers: &BTreeSet<usize>) -> Result<usize> {
    let mut nodes = fleet.running().into_iter();
    let stranger = nodes.find(|node| !keepers.contains(node));
    stranger.context("everybody keeps it")
}

#[tokio::test]
async fn a_blob_that_was_pulled_once_is_at_two_owners_and_outlives_its_home() -> Result<()> {
    let mut scene = Scene::start(with_copies(4)).await?;
    let home = 0;
    let (digest, content) = scene.fleet.content_of_home(home, BLOB);
    let path = scene.add(&content);
    scene.pull(home, &path, &content).await?;
    settled(&scene.fleet, &[digest].into(), home).await;
    assert_eq!(scene.fake.sent_bytes("/blobs/"), content.len() as u64);
    let keepers = keepers(&scene.fleet, &digest, home);
    ensure!(keepers.len() == COPIES, "{keepers:?}");
    scene.fleet.kill(home);
    let before = scene.fake.records().len();
    let other = stranger_to(&scene.fleet, &keepers)?;
    scene.pull(other, &path, &content).await?;
    assert_eq!(scene.fake.records().len(), before);
    Ok(())
}

#[tokio::test]
async fn no_image_is_lost_with_one_node() -> Result<()> {
    let mut scene = Scene::start(with_copies(4)).await?;
    let puller = 0;
    let layers: Vec<[Bytes; 1]> = (0..6).map(|seed| [noise(seed, 100_000)]).collect();
    let images = layers.iter().enumerate().map(|(number, layers)| {
        let image = scene.fake.add_image(TEAM, &number.to_string(), layers);
        (image, layers)
    });
    let images: Vec<_> = images.collect();
    let mut contents = BTreeSet::new();
    for (number, (image, layers)) in images.iter().enumerate() {
        let tag = number.to_string();
        scene
            .pull_image(puller, (TEAM, &tag), (image, &layers[..]))
            .await?;
        contents.extend(image.layers.iter().copied());
        contents.extend([image.manifest, image.config]);
    }
    settled(&scene.fleet, &contents, puller).await;
    scene.fleet.kill(puller);
    let before = scene.fake.records().len();
    for node in scene.fleet.running() {
        for (image, layers) in &images {
            let digest = image.manifest.to_string();
            scene
                .pull_image(node, (TEAM, &digest), (image, &layers[..]))
                .await?;
        }
    }
    assert_eq!(scene.fake.records().len(), before);
    Ok(())
}

#[tokio::test]
async fn each_zone_that_a_blob_was_pulled_in_has_two_copies_and_it_crosses_once() -> Result<()> {
    let zones = ["north", "north", "north", "south", "south", "south"];
    let mut scene = Scene::start(with_copies(zones.len()).zones(&zones)).await?;
    let home = 0;
    let (digest, content) = scene.fleet.content_of_home(home, BLOB);
    let path = scene.add(&content);
    let southern = scene.fleet.owners("south", &digest);
    let puller = southern[COPIES];
    scene.pull(puller, &path, &content).await?;
    settled(&scene.fleet, &[digest].into(), puller).await;
    let size = content.len() as u64;
    assert_eq!(scene.fake.sent_bytes("/blobs/"), size);
    let crossed = scene.fleet.received_from_afar().await?;
    ensure!(
        crossed * 100 <= size * 102,
        "{crossed} bytes crossed for {size}"
    );
    let keepers = keepers(&scene.fleet, &digest, puller);
    ensure!(keepers.len() == 2 * COPIES + 1, "{keepers:?}");
    for gone in [home, southern[0]] {
        scene.fleet.kill(gone);
    }
    let before = scene.fake.records().len();
    let other = stranger_to(&scene.fleet, &keepers)?;
    scene.pull(other, &path, &content).await?;
    assert_eq!(scene.fake.records().len(), before);
    Ok(())
}
