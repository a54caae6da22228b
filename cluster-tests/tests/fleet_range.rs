//! Ranges far ahead of a blob that another node of the fleet is still fetching.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use millrace_cluster_tests::fake::{Then, When};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::http::{End, Request};
use tokio::time::Instant;

const MIB: usize = 1 << 20;

/// Bytes of a blob that takes a single request sixteen seconds.
const SIZE: usize = 16 * MIB;

/// What one request gets of the upstream, in bytes per second.
const RATE: u64 = 1_000_000;

/// Where the far range begins: not expected for thirteen seconds. The last 64 KiB of a blob are
/// nobody's before the whole is right.
const FAR: usize = 13 * MIB + 1_000;

/// How soon the far range comes.
const SOON: Duration = Duration::from_secs(6);

/// Bytes that the sockets between upstream and node may hold when a segment is stopped.
const SOCKETS: u64 = 3 * MIB as u64;

/// Two sites, and a blob whose way from the upstream leads over three nodes.
async fn scene() -> Result<(Scene, String, Bytes, Way)> {
    let scene = Scene::start(Fleet::of(4).zones(&["a", "a", "b", "b"])).await?;
    let far_home = |walk: &[usize]| scene.fleet.zone(walk[0]) == "a";
    let (digest, content) = scene.fleet.content_where(SIZE, far_home);
    scene.fake.add_blob("app", content.clone());
    let pace = Then::healthy().rate(RATE);
    scene.fake.on(When::get("/blobs/"), pace);
    let owners = scene.fleet.owners("b", &digest);
    let way = Way {
        home: scene.fleet.home(&digest),
        node: owners[1],
    };
    Ok((scene, Scene::path(&digest), content, way))
}

struct Way {
    home: usize,
    /// Neither home nor owner.
    node: usize,
}

#[tokio::test]
async fn a_far_range_comes_over_three_nodes_while_the_beginning_is_under_way() -> Result<()> {
    let (scene, path, content, way) = scene().await?;
    let whole = scene.open(way.node, &path, &content).await?;
    let asked = Instant::now();
    let range = format!("bytes={FAR}-{}", FAR + 64 * 1024 - 1);
    let far = Request::get(&path).header("Range", &range);
    let far = far.send(scene.fleet.node(way.node).address()).await?;
    let took = asked.elapsed();
    assert_eq!((far.status(), far.end), (206, End::Complete));
    assert!(far.body == content[FAR..FAR + 64 * 1024]);
    assert!(took < SOON, "{took:?}");
    whole.finish().await?;
    let fetches = scene.fake.requests("GET", "/blobs/");
    assert_eq!(fetches.len(), 2, "one segment more, and no more");
    let sent = scene.fake.sent_bytes("/blobs/");
    let most = content.len() as u64 + SOCKETS;
    assert!(sent <= most, "{sent} bytes left the upstream");
    println!("the far range came after {took:?}; {sent} bytes left the upstream");
    Ok(())
}

#[tokio::test]
async fn clients_that_fetch_parallel_ranges_through_two_nodes_cost_each_byte_once() -> Result<()> {
    let (scene, path, content, way) = scene().await?;
    let nodes = [way.node, way.home];
    // As containerd does: a layer in three parts, all at the same time.
    let part = SIZE.div_ceil(3);
    let parts = (0..6).map(|index| {
        let (start, node) = ((index % 3) * part, nodes[index / 3]);
        let end = (start + part).min(SIZE);
        let request = Request::get(&path).header("Range", &format!("bytes={start}-{}", end - 1));
        let address = scene.fleet.node(node).address();
        let expected = &content[start..end];
        async move {
            let answer = request.send(address).await?;
            assert_eq!((answer.status(), answer.end), (206, End::Complete));
            assert!(answer.body == expected, "part {index}");
            anyhow::Ok(())
        }
    });
    futures_util::future::try_join_all(parts).await?;
    let sent = scene.fake.sent_bytes("/blobs/");
    let most = content.len() as u64 + 2 * SOCKETS;
    assert!(sent <= most, "{sent} bytes left the upstream");
    Ok(())
}

#[tokio::test]
async fn a_home_that_is_killed_with_a_far_segment_under_way_costs_no_client() -> Result<()> {
    let (mut scene, path, content, way) = scene().await?;
    let whole = scene.open(way.node, &path, &content).await?;
    let far = Request::get(&path).header("Range", &format!("bytes={FAR}-"));
    let mut far = far.open(scene.fleet.node(way.node).address()).await?;
    assert_eq!(far.head().status, 206);
    let mut came = far.read_at_least(1_000).await?.to_vec();
    scene.fleet.kill(way.home);
    while let Some(bytes) = far.next().await? {
        came.extend_from_slice(&bytes);
    }
    assert!(came == content[FAR..], "{} bytes", came.len());
    assert_eq!(far.end(), Some(End::Complete));
    whole.finish().await?;
    Ok(())
}
