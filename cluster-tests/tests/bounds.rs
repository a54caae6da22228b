//! What a node takes of its host stays within bounds, however much is asked of it at once: the disk's
//! reserve, and memory.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_cluster_tests::disk::SmallDisk;
use millrace_cluster_tests::fake::{Scene, assert_whole, noise};
use millrace_cluster_tests::load::meter;
use millrace_cluster_tests::load::trickle::Trickle;

const MIB: usize = 1 << 20;

#[tokio::test]
async fn the_file_system_keeps_its_reserve_while_blobs_come_and_go() -> Result<()> {
    const RESERVE: u64 = 16 * MIB as u64;
    /// What the index and the small files may take unseen.
    const UNSEEN: u64 = MIB as u64;
    let disk = SmallDisk::mount("64m").await?;
    let data = disk.path().join("data").display().to_string();
    let scene = Scene::with(|node| {
        node.environment("MILLRACE_STORAGE_FILESYSTEM_ROOTDIRECTORY", &data)
            .set("cache/max_size", "1GiB")
            .set("cache/min_free", "16MiB")
    })
    .await?;
    let mut lowest = u64::MAX;
    for seed in 0..12 {
        let content = noise(seed, 7 * MIB);
        let digest = scene.fake.add_blob("app", content.clone());
        let mut client = scene.open(scene.blob("app", &digest)).await?;
        let mut received = Vec::new();
        while let Some(bytes) = client.next().await? {
            received.extend_from_slice(&bytes);
            lowest = lowest.min(disk.free()?);
        }
        ensure!(received == content, "blob {seed} is not whole");
        scene.settle().await;
        lowest = lowest.min(disk.free()?);
    }
    ensure!(lowest >= RESERVE - UNSEEN, "{lowest} bytes were left");
    // It was not kept by keeping nothing.
    let status = scene.node.status().await?;
    let kept = status["store"]["blobs"].as_u64().context("blobs")?;
    ensure!(kept >= 4, "{kept} blobs are kept");
    Ok(())
}

/// How much memory a node may take for the streams below, beyond what it has when it is idle: twice what
/// was measured. What their clients do not take is ten times as much.
const FOR_STREAMS: u64 = 64 * MIB as u64;

/// More than the kernel takes for one slow connection.
const OWN: usize = 6 * MIB;
const SHARED: usize = 48 * MIB;

/// Streams of each kind.
const STREAMS: usize = 64;

/// Streams half from the store and half from the upstream, to clients that take little, and demands
/// that little memory is used.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_cost_little_memory_whether_blobs_are_here_or_come() -> Result<()> {
    let scene = Scene::start().await?;
    let shared = scene.fake.add_blob("app", noise(0, SHARED));
    let path = |digest| format!("/v2/fake/app/blobs/{digest}");
    let mut paths = vec![path(shared); STREAMS];
    for seed in 1..=STREAMS as u64 {
        let content = noise(seed, OWN);
        let digest = scene.fake.add_blob("app", content.clone());
        if seed % 2 == 0 {
            assert_whole(&scene.send(scene.blob("app", &digest)).await?, &content);
        }
        paths.push(path(digest));
    }
    scene.settle().await;
    let node = scene.node.process_id();
    let address = scene.node.address();
    meter::forget_peak(node)?;
    let before = meter::resident_bytes(node)?;
    let streaming = tokio::task::spawn_blocking(move || {
        let mut trickle = Trickle::open(address, paths.iter().map(String::as_str))?;
        trickle.until_all_stream(Duration::from_secs(60))?;
        trickle.read_for(Duration::from_secs(1))
    });
    let progress = streaming.await??;
    ensure!(progress.streaming == 2 * STREAMS, "{progress:?}");
    let taken = meter::peak_resident_bytes(node)?.saturating_sub(before);
    ensure!(taken <= FOR_STREAMS, "{taken} bytes of memory");
    Ok(())
}
