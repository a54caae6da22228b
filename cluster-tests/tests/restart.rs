//! What a node still knows after its end, with the upstream away: all it has pulled.

use anyhow::{Context, Result, ensure};
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::corp::{REPOSITORY, node_before, repository};
use millrace_cluster_tests::fake::{Scene, assert_whole, noise};
use millrace_cluster_tests::image::Image;
use millrace_cluster_tests::node::Node;
use millrace_cluster_tests::upstream::Upstream;
use rustix::fs::{CWD, FileType, Mode};

#[tokio::test]
async fn a_restart_keeps_content_and_tags() -> Result<()> {
    let (mut upstream, mut node, images) = pulled().await?;
    upstream.stop();
    node.stop().await?;
    node.restart().await?;
    for (tag, image) in &images {
        repository(&node).pull(image, tag).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_node_without_its_index_serves_from_its_files() -> Result<()> {
    let (mut upstream, mut node, images) = pulled().await?;
    upstream.stop();
    node.stop().await?;
    std::fs::remove_dir_all(node.data().join("index"))
        .context("the index is a folder of the store")?;
    node.restart().await?;
    serves_again(&node, &images).await
}

#[tokio::test]
async fn a_node_with_a_damaged_index_serves_from_its_files() -> Result<()> {
    let (mut upstream, mut node, images) = pulled().await?;
    upstream.stop();
    node.stop().await?;
    let mut damaged = 0;
    for entry in std::fs::read_dir(node.data().join("index"))? {
        let path = entry?.path();
        if path.is_file() {
            std::fs::write(&path, b"this is no index")?;
            damaged += 1;
        }
    }
    ensure!(damaged > 0, "the index has no files");
    node.restart().await?;
    serves_again(&node, &images).await
}

#[tokio::test]
async fn a_node_whose_index_is_long_in_the_making_serves_at_once() -> Result<()> {
    let mut scene = Scene::start().await?;
    let contents = [1, 2, 3].map(|seed| noise(seed, 100_000));
    let digests = (contents.clone()).map(|content| scene.fake.add_blob("app", content));
    for number in [0, 1] {
        let answer = scene.send(scene.blob("app", &digests[number])).await?;
        assert_whole(&answer, &contents[number]);
    }
    scene.settle().await;
    scene.node.stop().await?;
    std::fs::remove_dir_all(scene.node.data().join("index"))?;
    // Reading what the content was fetched as does not end before the test says so.
    let hex = digests[0].hex();
    let folder = scene.node.data().join("blobs/sha256").join(&hex[..2]);
    let sidecar = folder.join(hex).with_extension("json");
    std::fs::remove_file(&sidecar)?;
    rustix::fs::mknodat(CWD, &sidecar, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    // It is ready when this returns.
    scene.node.restart().await?;
    for (number, source) in [(1, "local"), (2, "upstream")] {
        let answer = scene.send(scene.blob("app", &digests[number])).await?;
        assert_whole(&answer, &contents[number]);
        assert_eq!(answer.header("x-millrace-source"), Some(source));
    }
    let is_indexed = async || -> Result<bool> {
        let status = scene.node.status().await?;
        Ok(status["store"]["index_ready"] == true)
    };
    ensure!(!is_indexed().await?, "the index did not wait");
    std::fs::write(&sidecar, "")?;
    eventually("the index is there", async || {
        is_indexed().await.is_ok_and(|ready| ready)
    })
    .await;
    Ok(())
}

/// Pulls the images from a node that is building its index anew.
///
/// Content by digest is there at once; a tag is known again when the index is.
async fn serves_again(node: &Node, images: &[(&'static str, Image)]) -> Result<()> {
    for (tag, image) in images {
        repository(node)
            .pull(image, &image.root().digest.to_string())
            .await?;
        eventually("the tag is known again", async || {
            repository(node).pull(image, tag).await.is_ok()
        })
        .await;
    }
    Ok(())
}

/// A node that has pulled two images, its upstream, and the images by tag.
async fn pulled() -> Result<(Upstream, Node, Vec<(&'static str, Image)>)> {
    let upstream = Upstream::start().await?;
    let images = vec![
        ("platforms", Image::of_two_platforms("kept")?),
        ("layers", Image::of_layers(5)?),
    ];
    let node = node_before(&upstream).start().await?;
    for (tag, image) in &images {
        upstream.push(image, REPOSITORY, tag).await?;
        repository(&node).pull(image, tag).await?;
    }
    Ok((upstream, node, images))
}
