//! A member whose answers are wrong, or whose disk is: nobody ends up with a wrong byte, nothing
//! wrong is kept, and the upstream gives once more at most what the member spoilt.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Gate, Image, Then, When, noise};
use millrace_cluster_tests::fleet::{Fleet, Plan, Scene};
use millrace_cluster_tests::load::crowd::{all, stampede};
use millrace_cluster_tests::node::{Fault, is_damaged};
use millrace_protocol::oci::Digest;

const MIB: usize = 1 << 20;

/// The last chunk is a short one.
const BLOB: usize = 6 * MIB + 12_345;

/// The sound nodes, and the one that is not.
const SOUND: [usize; 3] = [0, 1, 2];
const FAULTY: usize = 3;

/// A node that was found out costs no time: less than a pull that waits for anybody's silence.
const AT_ONCE: Duration = Duration::from_secs(2);

fn with_a_faulty_one(fault: Fault) -> Plan {
    Fleet::of(4).each(move |index, node| match index {
        FAULTY => node.fault(fault),
        _ => node,
    })
}

/// Bytes of content that a node has received from the faulty one.
async fn received_from_faulty(scene: &Scene, node: usize) -> Result<u64> {
    let status = scene.fleet.node(node).status().await?;
    let peers = status["peers"]["peers"].as_array();
    let id = scene.fleet.id(FAULTY).to_string();
    let mut peers = peers.context("it shows its peers")?.iter();
    let received = peers.find(|peer| peer["id"] == *id);
    Ok(received.map_or(0, |peer| peer["received_bytes"].as_u64().unwrap_or(0)))
}

/// Returns whom a node shows that it takes nothing from.
async fn distrusted(scene: &Scene, node: usize) -> Result<Vec<String>> {
    let status = scene.fleet.node(node).status().await?;
    let distrusted = status["pull"]["distrusted"].as_array();
    let distrusted = distrusted.context("it shows whom it distrusts")?.iter();
    Ok(distrusted
        .filter_map(|id| id.as_str().map(str::to_owned))
        .collect())
}

/// Demands that each sound node counts that it has found somebody out for this reason.
async fn all_have_counted(scene: &Scene, reason: &str) -> Result<()> {
    let label = format!("reason=\"{reason}\"");
    for node in SOUND {
        let name = "millrace_pull_peers_left_alone_total";
        let counted = scene.fleet.node(node).metric(name, &[&label]).await?;
        ensure!(
            counted.is_some_and(|count| count >= 1.0),
            "node {node}: {counted:?}"
        );
    }
    Ok(())
}

/// Waits until the sound nodes have stored what they were pulling, and looks at all they have.
async fn nothing_wrong_is_kept(scene: &Scene) -> Result<()> {
    for node in SOUND {
        scene.fleet.committed(node).await;
        let damaged = scene.fleet.node(node).damaged()?;
        ensure!(damaged.is_empty(), "node {node} keeps {damaged:?}");
    }
    Ok(())
}

/// Pulls blobs whose home is the faulty node: all sound nodes at once, then one after the other.
async fn pulls_go_on_past_a_home(fault: Fault) -> Result<Scene> {
    let scene = Scene::start(with_a_faulty_one(fault)).await?;
    let (_, content) = scene.fleet.content_of_home(FAULTY, BLOB);
    let path = scene.add(&content);
    let pulled = stampede(scene.clients(&SOUND, 2), &path, &content).await;
    all(pulled).with_context(|| format!("{fault:?}"))?;
    // The home had it from the upstream, and one of the others once more.
    let sent = scene.fake.sent_bytes("/blobs/");
    assert!(sent <= 2 * BLOB as u64, "{fault:?}: {sent}");
    nothing_wrong_is_kept(&scene).await?;
    Ok(scene)
}

/// Whoever has been deceived once says so, asks the faulty node no more, and loses no time.
async fn the_faulty_one_is_avoided(scene: &Scene) -> Result<()> {
    // Each finds out by itself: nobody believes what one says of another.
    for node in SOUND {
        let (_, content) = scene
            .fleet
            .content_where(BLOB + 1 + node, |walk| walk[0] == FAULTY);
        let path = scene.add(&content);
        scene.pull_right_or_not(node, &path, &content).await?;
        scene.fleet.committed(node).await;
        let distrusted = distrusted(scene, node).await?;
        ensure!(
            distrusted == [scene.fleet.id(FAULTY).to_string()],
            "node {node} distrusts {distrusted:?}"
        );
    }
    for node in SOUND {
        let before = received_from_faulty(scene, node).await?;
        let (_, content) = scene
            .fleet
            .content_where(BLOB + 10 + node, |walk| walk[0] == FAULTY);
        let path = scene.add(&content);
        let pulled = scene.pull(node, &path, &content).await?;
        assert!(pulled.last_byte < AT_ONCE, "{pulled:?}");
        assert_eq!(received_from_faulty(scene, node).await?, before);
    }
    nothing_wrong_is_kept(scene).await
}

#[tokio::test]
async fn a_home_that_flips_bits_spoils_no_pull() -> Result<()> {
    let scene = pulls_go_on_past_a_home(Fault::Flip).await?;
    let wrong = scene
        .fleet
        .sum("millrace_pull_wrong_chunks_total", &[])
        .await?;
    assert!(wrong >= 1.0, "rejected chunks are counted");
    the_faulty_one_is_avoided(&scene).await
}

#[tokio::test]
async fn a_home_that_stalls_mid_blob_spoils_no_pull() -> Result<()> {
    let scene = pulls_go_on_past_a_home(Fault::Stall).await?;
    the_faulty_one_is_avoided(&scene).await?;
    all_have_counted(&scene, "stalled").await
}

#[tokio::test]
async fn a_home_that_tells_a_wrong_chain_spoils_no_pull() -> Result<()> {
    let scene = pulls_go_on_past_a_home(Fault::Chain).await?;
    the_faulty_one_is_avoided(&scene).await?;
    all_have_counted(&scene, "wrong").await
}

#[tokio::test]
async fn a_home_that_tells_no_chain_spoils_no_pull() -> Result<()> {
    let scene = pulls_go_on_past_a_home(Fault::NoChain).await?;
    the_faulty_one_is_avoided(&scene).await
}

/// Pulls where the first bytes may be wrong, because only the digest of the whole can tell.
async fn no_pull_completes_wrongly(fault: Fault) -> Result<()> {
    let scene = Scene::start(with_a_faulty_one(fault)).await?;
    let (_, content) = scene.fleet.content_of_home(FAULTY, BLOB);
    let path = scene.add(&content);
    join_all(SOUND.map(|node| scene.pull_right_or_not(node, &path, &content)))
        .await
        .into_iter()
        .collect::<Result<Vec<()>>>()
        .with_context(|| format!("{fault:?}"))?;
    for node in SOUND {
        scene.fleet.committed(node).await;
    }
    // Clients come back; then everybody knows better.
    let pulled = stampede(scene.clients(&SOUND, 2), &path, &content).await;
    all(pulled).with_context(|| format!("{fault:?}, again"))?;
    nothing_wrong_is_kept(&scene).await?;
    the_faulty_one_is_avoided(&scene).await
}

#[tokio::test]
async fn a_home_that_gives_other_content_completes_no_pull_wrongly() -> Result<()> {
    no_pull_completes_wrongly(Fault::Content).await
}

#[tokio::test]
async fn a_home_that_states_a_greater_size_completes_no_pull_wrongly() -> Result<()> {
    no_pull_completes_wrongly(Fault::Longer).await
}

#[tokio::test]
async fn a_home_that_states_a_smaller_size_completes_no_pull_wrongly() -> Result<()> {
    no_pull_completes_wrongly(Fault::Shorter).await
}

/// The repository of images.
const IMAGES: &str = "team/app";

/// Makes an image whose manifest is at home at a node, and a tag that points to it.
fn image_of_home(scene: &Scene, home: usize, name: &str) -> (Image, String) {
    let images = (0..1_000).map(|seed| {
        let tag = format!("{name}-{seed}");
        let layers = [noise(seed, 1_000)];
        (scene.fake.add_image(IMAGES, &tag, &layers), tag)
    });
    let mut at_home = images.filter(|(image, _)| scene.fleet.home(&image.manifest) == home);
    at_home.next().expect("one of many is at home there")
}

/// Pulls the manifest of an image through the sound nodes, by its tag and by its digest: all at once.
async fn expect_manifest(scene: &Scene, (image, tag): &(Image, String)) -> Result<()> {
    let digest = image.manifest.to_string();
    let names = [tag, &digest];
    let pulls = SOUND.into_iter().flat_map(|node| {
        names.map(|name| async move {
            let nodes = [node];
            scene.expect_tag(&nodes, (IMAGES, name), image).await
        })
    });
    join_all(pulls).await.into_iter().collect()
}

#[tokio::test]
async fn a_home_that_sends_wrong_manifests_spoils_no_pull() -> Result<()> {
    let scene = Scene::start(with_a_faulty_one(Fault::Flip)).await?;
    let image = image_of_home(&scene, FAULTY, "image");
    expect_manifest(&scene, &image).await?;
    // The home had it from the upstream, and one of the others once more.
    let path = image.0.manifest.to_string();
    let fetched = scene.fake.count("GET", &path);
    ensure!(fetched <= 2, "{fetched} fetches");
    for node in SOUND {
        let distrusted = distrusted(&scene, node).await?;
        ensure!(
            distrusted == [scene.fleet.id(FAULTY).to_string()],
            "node {node} distrusts {distrusted:?}"
        );
    }
    all_have_counted(&scene, "wrong").await?;
    nothing_wrong_is_kept(&scene).await
}

#[tokio::test]
async fn a_holder_that_sends_wrong_manifests_spoils_no_pull() -> Result<()> {
    let mut scene = Scene::start(with_a_faulty_one(Fault::Flip)).await?;
    let image = image_of_home(&scene, SOUND[0], "image");
    // Pulled while nobody else is there, so its home asks the faulty one before the upstream.
    for node in SOUND {
        scene.fleet.leave(node).await?;
    }
    let digest = image.0.manifest.to_string();
    let pulled = scene.expect_tag(&[FAULTY], (IMAGES, &digest), &image.0);
    pulled.await?;
    scene.fleet.restart(&SOUND).await?;
    scene.fleet.agree().await;
    let before = scene.fake.count("GET", &digest);
    expect_manifest(&scene, &image).await?;
    let fetched = scene.fake.count("GET", &digest) - before;
    ensure!(fetched == 1, "{fetched} fetches");
    let distrusted = distrusted(&scene, SOUND[0]).await?;
    ensure!(
        distrusted == [scene.fleet.id(FAULTY).to_string()],
        "{distrusted:?}"
    );
    nothing_wrong_is_kept(&scene).await
}

#[tokio::test]
async fn a_taker_that_flips_bits_spoils_no_pull_of_who_comes_behind_it() -> Result<()> {
    let scene = Scene::start(with_a_faulty_one(Fault::Flip)).await?;
    let (_, content) = scene.fleet.content_of_home(SOUND[0], BLOB);
    let path = scene.add(&content);
    let gate = Gate::default();
    let stalled = Then::healthy().stall(MIB as u64, &gate);
    scene.fake.on(When::get("/blobs/").first(1), stalled);
    let first = scene.open(FAULTY, &path, &content).await?;
    let behind = stampede(scene.clients(&SOUND, 2), &path, &content);
    let joined = async {
        eventually("the others have opened it", async || {
            has_opened(&scene, 1).await && has_opened(&scene, 2).await
        })
        .await;
        gate.open();
    };
    let (behind, ()) = futures_util::future::join(behind, joined).await;
    all(behind)?;
    first.finish().await?;
    let sent = scene.fake.sent_bytes("/blobs/");
    assert_eq!(sent, BLOB as u64);
    let received = received_from_faulty(&scene, 1).await? + received_from_faulty(&scene, 2).await?;
    ensure!(received > 0, "nobody was sent to the first taker");
    nothing_wrong_is_kept(&scene).await
}

/// Whether a blob is on its way to a node.
async fn has_opened(scene: &Scene, node: usize) -> bool {
    let status = scene.fleet.node(node).status().await;
    status.is_ok_and(|status| status["pull"]["transfers"] != serde_json::json!([]))
}

/// Flips a bit in the middle of a blob that a node has stored.
fn damage(scene: &Scene, node: usize, digest: &Digest) -> Result<PathBuf> {
    let hex = digest.hex();
    let blobs = scene.fleet.node(node).data().join("blobs/sha256");
    let path = blobs.join(&hex[..2]).join(hex);
    let mut bytes = std::fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // In place, as a disk does it: who has the file open sees it too.
    let file = std::fs::File::options().write(true).open(&path)?;
    file.write_all_at(&bytes[middle..=middle], middle as u64)?;
    Ok(path)
}

#[tokio::test]
async fn bits_that_flip_on_the_disk_of_a_holder_reach_nobody() -> Result<()> {
    let scene = Scene::start(Fleet::of(4)).await?;
    let (digest, content) = scene.fleet.content_of_home(FAULTY, BLOB);
    let path = scene.add(&content);
    scene.pull(FAULTY, &path, &content).await?;
    scene.fleet.committed(FAULTY).await;
    damage(&scene, FAULTY, &digest)?;
    let pulled = stampede(scene.clients(&SOUND, 2), &path, &content).await;
    all(pulled)?;
    let sent = scene.fake.sent_bytes("/blobs/");
    assert!(sent <= 2 * BLOB as u64, "{sent}");
    nothing_wrong_is_kept(&scene).await
}

#[tokio::test]
async fn a_holder_finds_out_that_its_disk_has_changed_a_blob_and_drops_it() -> Result<()> {
    let mut scene = Scene::start(Fleet::of(4)).await?;
    let (digest, content) = scene.fleet.content_of_home(FAULTY, BLOB);
    let path = scene.add(&content);
    scene.pull(FAULTY, &path, &content).await?;
    scene.fleet.committed(FAULTY).await;
    // In this run it knows what the chunks must be; in the next one it reads them again.
    scene.fleet.kill(FAULTY);
    let file = damage(&scene, FAULTY, &digest)?;
    scene.fleet.restart(&[FAULTY]).await?;
    scene.fleet.agree().await;
    let pulls = SOUND.map(|node| scene.pull_right_or_not(node, &path, &content));
    for ended in join_all(pulls).await {
        ended?;
    }
    eventually("the damaged file is gone", async || !is_damaged(&file)).await;
    let pulled = stampede(scene.clients(&[0, 1, 2, FAULTY], 2), &path, &content).await;
    all(pulled)?;
    let sent = scene.fake.sent_bytes("/blobs/");
    // What fitted a wrong chain is found out by the digest only, and the rest was fetched in vain.
    assert!(sent <= 3 * BLOB as u64, "{sent}");
    nothing_wrong_is_kept(&scene).await?;
    assert!(!is_damaged(&file));
    Ok(())
}
