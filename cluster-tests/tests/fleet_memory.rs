//! What a node takes of its host's memory while blobs come from another node, or go to it.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use millrace_cluster_tests::fake::noise;
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::load::meter;
use millrace_cluster_tests::load::trickle::Trickle;

const MIB: usize = 1 << 20;

/// Blobs that come at once: without a bound for all takes together they would have up to 400 MiB in memory.
const BLOBS: u64 = 128;
const SIZE: usize = 4 * MIB;

/// How much memory each of two nodes may take for them: twice what was measured.
const MOST: u64 = 160 * MIB as u64;

/// Of two nodes, the one that owns everything, and the one that takes it from there.
const HOME: usize = 0;
const TAKER: usize = 1;

#[tokio::test(flavor = "multi_thread")]
async fn many_blobs_from_a_peer_cost_bounded_memory_however_slowly_clients_read() -> Result<()> {
    let scene = Scene::start(Fleet::of(2).weights(&[1, 0])).await?;
    let contents = (0..BLOBS).map(|seed| noise(seed, SIZE));
    let paths: Vec<String> = stream::iter(contents)
        .map(async |content| {
            let path = scene.add(&content);
            scene.pull(HOME, &path, &content).await?;
            anyhow::Ok(path)
        })
        .buffered(4)
        .try_collect()
        .await?;
    let nodes = [HOME, TAKER].map(|node| scene.fleet.node(node).process_id());
    let mut before = Vec::new();
    for node in nodes {
        meter::forget_peak(node)?;
        before.push(meter::resident_bytes(node)?);
    }
    let address = scene.fleet.node(TAKER).address();
    let streaming = tokio::task::spawn_blocking(move || {
        let mut trickle = Trickle::open(address, paths.iter().map(String::as_str))?;
        trickle.until_all_stream(Duration::from_secs(60))?;
        trickle.read_for(Duration::from_secs(1))
    });
    let progress = streaming.await??;
    ensure!(progress.streaming == BLOBS as usize, "{progress:?}");
    for (node, before) in nodes.into_iter().zip(before) {
        let taken = meter::peak_resident_bytes(node)?.saturating_sub(before);
        ensure!(taken <= MOST, "{taken} bytes of memory");
    }
    assert_eq!(scene.fake.sent_bytes("/blobs/"), BLOBS * SIZE as u64);
    Ok(())
}
