//! The bounds of the disk, and content that finds no room on it or cannot be read from it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;
use millrace_cluster_tests::condition::{eventually, eventually_some};
use millrace_cluster_tests::disk::SmallDisk;
use millrace_cluster_tests::fake::{
    Gate, Scene, Then, When, assert_unfinished, assert_whole, noise,
};
use millrace_cluster_tests::http::Request;
use millrace_protocol::oci::Digest;

const MIB: usize = 1024 * 1024;

/// Sums the sizes of all files below `folder`.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        // A file that is gone meanwhile takes no room.
        _ => entry.metadata().map_or(0, |metadata| metadata.len()),
    });
    sizes.sum()
}

/// Blobs of an upstream and their content.
type Blobs = Vec<(Digest, Bytes)>;

/// A node with room for three of the blobs that its upstream has.
async fn room_for_three(blobs: u64) -> Result<(Scene, Blobs)> {
    let scene = Scene::with(|node| node.set("cache/max_size", "80MiB")).await?;
    let add = |seed| {
        let content = noise(seed, 24 * MIB);
        (scene.fake.add_blob("app", content.clone()), content)
    };
    let blobs = (0..blobs).map(add).collect();
    Ok((scene, blobs))
}

/// A node that has kept as many blobs as there is room for.
async fn full() -> Result<(Scene, Blobs)> {
    let (scene, blobs) = room_for_three(3).await?;
    for (digest, blob) in &blobs {
        assert_whole(&scene.send(scene.blob("app", digest)).await?, blob);
        is_kept(&scene, digest).await;
    }
    Ok((scene, blobs))
}

/// A node whose store is smaller than a blob of its upstream.
async fn too_large() -> Result<(Scene, Digest, Bytes)> {
    let scene = Scene::with(|node| node.set("cache/max_size", "8MiB")).await?;
    let content = noise(1, 24 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    Ok((scene, digest, content))
}

#[tokio::test]
async fn the_bound_holds_and_what_is_being_read_stays() -> Result<()> {
    let (scene, blobs) = room_for_three(8).await?;
    let (first, content) = &blobs[0];
    assert_whole(&scene.send(scene.blob("app", first)).await?, content);
    let mut slow = eventually_some("the first blob is kept", async || {
        let slow = scene.open(scene.blob("app", first)).await.ok()?;
        (slow.head().header("x-millrace-source") == Some("local")).then_some(slow)
    })
    .await;
    let begin = slow.read_at_least(MIB).await?;
    for (digest, blob) in &blobs[1..] {
        assert_whole(&scene.send(scene.blob("app", digest)).await?, blob);
    }
    eventually("the store is within its bound", async || {
        bytes_below(&scene.node.data()) <= 88 * MIB as u64
    })
    .await;
    let rest = slow.finish().await?;
    assert!(
        [begin, rest.body].concat() == *content,
        "the slow reader got other bytes"
    );
    // The first ones that nobody read had to go: they cost another fetch.
    let asked = scene.fake.records().len();
    let (second, content) = &blobs[1];
    assert_whole(&scene.send(scene.blob("app", second)).await?, content);
    assert_eq!(scene.fake.records().len(), asked + 1);
    Ok(())
}

#[tokio::test]
async fn what_is_read_since_it_was_fetched_stays() -> Result<()> {
    let (scene, blobs) = room_for_three(5).await?;
    let (first, content) = &blobs[0];
    let mut slow = scene.open(scene.blob("app", first)).await?;
    assert_ne!(slow.head().header("x-millrace-source"), Some("local"));
    let begin = slow.read_at_least(MIB).await?;
    let path = path_of(&scene, first);
    eventually("it is stored", async || path.is_file()).await;
    for (digest, blob) in &blobs[1..] {
        assert_whole(&scene.send(scene.blob("app", digest)).await?, blob);
        let path = path_of(&scene, digest);
        eventually("it is stored", async || path.is_file()).await;
    }
    assert!(path.is_file(), "it is being read");
    let rest = slow.finish().await?;
    assert!([begin, rest.body].concat() == *content, "other bytes came");
    Ok(())
}

/// Where a node keeps a blob.
fn path_of(scene: &Scene, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    let blobs = scene.node.data().join("blobs/sha256");
    blobs.join(&hex[..2]).join(hex)
}

#[tokio::test]
async fn a_blob_that_is_larger_than_the_store_is_relayed_and_not_kept() -> Result<()> {
    let (scene, digest, content) = too_large().await?;
    for fetches in 1..3 {
        assert_whole(&scene.send(scene.blob("app", &digest)).await?, &content);
        assert_eq!(scene.fake.count("GET", "/blobs/"), fetches);
    }
    eventually("nothing of it stays", async || {
        bytes_below(&scene.node.data()) <= 12 * MIB as u64
    })
    .await;
    let small = scene.fake.add_blob("app", "small");
    assert_whole(&scene.send(scene.blob("app", &small)).await?, b"small");
    Ok(())
}

#[tokio::test]
async fn a_length_that_is_a_lie_costs_others_nothing() -> Result<()> {
    let (scene, blobs) = full().await?;
    let lie = scene.fake.add_blob("app", noise(9, 79 * MIB));
    let target = lie.to_string();
    let short = Then::healthy().cut(100_000);
    scene.fake.on(When::get(&target).first(1), short);
    let rest = When::get(&target).with("Range", "bytes=");
    scene.fake.on(rest, Then::status(404));
    let answer = scene.send(scene.blob("app", &lie)).await?;
    assert_unfinished(&answer);
    for (digest, _) in &blobs {
        assert_kept(&scene, digest).await?;
    }
    Ok(())
}

/// Waits until a blob comes out of the store.
async fn is_kept(scene: &Scene, digest: &Digest) {
    eventually("the blob is kept", async || {
        let head = scene.blob("app", digest).header("Range", "bytes=0-9");
        let answer = scene.send(head).await;
        answer.is_ok_and(|answer| answer.header("x-millrace-source") == Some("local"))
    })
    .await;
}

/// Demands that a blob comes out of the store at once: asking for it would bring it back.
async fn assert_kept(scene: &Scene, digest: &Digest) -> Result<()> {
    let range = scene.blob("app", digest).header("Range", "bytes=0-9");
    let answer = scene.send(range).await?;
    assert_eq!(answer.header("x-millrace-source"), Some("local"));
    Ok(())
}

#[tokio::test]
async fn a_blob_that_finds_no_room_on_its_way_is_relayed_from_there() -> Result<()> {
    let (scene, blobs) = full().await?;
    let content = noise(9, 60 * MIB);
    let large = scene.fake.add_blob("app", content.clone());
    let gate = Gate::default();
    let stalled = Then::healthy().stall(2 * MIB as u64, &gate);
    scene.fake.on(When::get(&large.to_string()), stalled);
    let mut reader = scene.open(scene.blob("app", &large)).await?;
    let begin = reader.read_at_least(MIB).await?;
    let mut slow = Vec::new();
    for (digest, _) in &blobs {
        slow.push(scene.open(scene.blob("app", digest)).await?);
    }
    gate.open();
    let rest = reader.finish().await?;
    assert!([begin, rest.body].concat() == *content, "other bytes came");
    for (slow, (_, blob)) in slow.into_iter().zip(&blobs) {
        assert_whole(&slow.finish().await?, blob);
    }
    for (digest, _) in &blobs {
        assert_kept(&scene, digest).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_relayed_blob_is_verified_too() -> Result<()> {
    let (scene, digest, _) = too_large().await?;
    scene
        .fake
        .on(When::get("/blobs/"), Then::healthy().flip(12 * MIB));
    let wrong = scene.send(scene.blob("app", &digest)).await?;
    assert_unfinished(&wrong);
    Ok(())
}

#[tokio::test]
async fn readers_of_a_relayed_blob_share_one_fetch() -> Result<()> {
    let (scene, digest, content) = too_large().await?;
    let gate = scene.fake.pause_blobs(100_000);
    let one = scene.open(scene.blob("app", &digest)).await?;
    let two = scene.open(scene.blob("app", &digest)).await?;
    gate.open();
    let (one, two) = tokio::try_join!(one.finish(), two.finish())?;
    assert_whole(&one, &content);
    assert_whole(&two, &content);
    assert_eq!(scene.fake.count("GET", "/blobs/"), 1);
    Ok(())
}

#[tokio::test]
async fn a_far_range_of_a_relayed_blob_is_answered_with_bytes_in_hand() -> Result<()> {
    let (scene, digest, content) = too_large().await?;
    let never = Gate::default();
    let first = When::get("/blobs/").first(1);
    let whole = Then::healthy().stall(4 * MIB as u64, &never);
    scene.fake.on(first, whole);
    let ranged = When::get("/blobs/").with("Range", "bytes=");
    scene.fake.on(ranged, Then::healthy().cut(0));
    let mut reader = scene.open(scene.blob("app", &digest)).await?;
    reader.read_at_least(MIB).await?;
    let start = 20 * MIB;
    let far = || {
        let range = format!("bytes={start}-{}", start + 999);
        scene.blob("app", &digest).header("Range", &range)
    };
    let answer = scene.send(far()).await?;
    assert_eq!(answer.status(), 503);
    assert_eq!(scene.fake.count("GET", "/blobs/"), 2);
    scene.fake.heal();
    eventually("the far range is there", async || {
        let answer = scene.send(far()).await;
        answer.is_ok_and(|answer| {
            answer.status() == 206 && answer.body == content[start..start + 1_000]
        })
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_full_disk_is_survived_and_blobs_are_relayed() -> Result<()> {
    let disk = SmallDisk::mount("32m").await?;
    let data = disk.path().join("data").display().to_string();
    let scene = Scene::with(|node| {
        node.environment("MILLRACE_STORAGE_FILESYSTEM_ROOTDIRECTORY", &data)
            .set("cache/max_size", "1GiB")
            .set("cache/min_free", "0B")
    })
    .await?;
    let filler = disk.path().join("filler");
    std::fs::write(&filler, vec![0; 24 * MIB])?;
    let content = noise(1, 16 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    assert_whole(&scene.send(scene.blob("app", &digest)).await?, &content);
    let image = scene
        .fake
        .add_image("app", "latest", &[noise(2, 12 * MIB), noise(3, 1_000)]);
    scene.pull("app", "latest", &image).await?;
    let healthy = Request::get("/healthz").send(scene.node.debug_address());
    assert_eq!(healthy.await?.status(), 200);
    std::fs::remove_file(&filler)?;
    eventually("the blob is kept again", async || {
        let answer = scene.send(scene.blob("app", &digest)).await;
        answer.is_ok_and(|answer| {
            answer.body == content && answer.header("x-millrace-source") == Some("local")
        })
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_read_any_more_is_fetched_again() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 2 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    assert_whole(&scene.send(scene.blob("app", &digest)).await?, &content);
    is_kept(&scene, &digest).await;
    let path = path_of(&scene, &digest);
    std::fs::remove_file(&path)?;
    std::os::unix::fs::symlink(&path, &path)?;
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, &content);
    assert_eq!(answer.header("x-millrace-source"), Some("upstream"));
    is_kept(&scene, &digest).await;
    assert!(path.symlink_metadata()?.is_file(), "it is stored again");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_stored_is_given_to_every_client_all_the_same() -> Result<()> {
    let scene = Scene::start().await?;
    let add = |seed| {
        let content = noise(seed, 2 * MIB);
        (scene.fake.add_blob("app", content.clone()), content)
    };
    let [without_place, without_part] = [add(1), add(2)];
    let place = path_of(&scene, &without_place.0);
    let part = format!("parts/sha256-{}", without_part.0.hex());
    let part = scene.node.data().join(part);
    for path in [&place, &part] {
        std::fs::create_dir_all(path.join("somebody's"))?;
    }
    for (digest, content) in [&without_place, &without_part, &without_place, &without_part] {
        assert_whole(&scene.send(scene.blob("app", digest)).await?, content);
    }
    for path in [place, part] {
        let path = path.display().to_string();
        let told = async || scene.node.log().contains(&path);
        eventually("the log says which place is taken", told).await;
    }
    Ok(())
}
