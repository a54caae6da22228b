//! Ranges of blobs that are not here yet, and how soon something comes.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::try_join_all;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Ended, Scene, Then, When, assert_whole, noise};
use millrace_cluster_tests::http::{End, Request};
use tokio::time::Instant;

const MIB: usize = 1024 * 1024;

/// Bytes that the sockets between upstream and node may hold when a segment is stopped.
const SOCKETS: u64 = 3 * MIB as u64;

#[tokio::test]
async fn a_near_range_is_served_as_soon_as_its_bytes_are_there() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 4 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    let _never = scene.fake.pause_blobs(MIB as u64);
    let near = scene
        .blob("app", &digest)
        .header("Range", "bytes=1000-9999");
    let near = scene.send(near).await?;
    assert_eq!((near.status(), near.end), (206, End::Complete));
    assert!(near.body == content[1_000..10_000]);
    let size = content.len();
    let expected = format!("bytes 1000-9999/{size}");
    assert_eq!(near.header("content-range"), Some(expected.as_str()));
    assert_eq!(scene.fake.count("GET", "/blobs/"), 1);
    Ok(())
}

#[tokio::test]
async fn a_far_range_comes_by_a_second_segment_and_no_byte_twice() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 16 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    // The whole takes eleven seconds, so the far end is not expected soon.
    scene
        .fake
        .on(When::get("/blobs/"), Then::healthy().rate(1_500_000));
    let whole = scene.open(scene.blob("app", &digest)).await?;
    let asked = Instant::now();
    let start = 15 * MIB;
    let far = scene.blob("app", &digest);
    let far = far.header("Range", &format!("bytes={start}-{}", start + 999));
    let far = scene.send(far).await?;
    assert_eq!((far.status(), far.end), (206, End::Complete));
    assert!(far.body == content[start..start + 1_000]);
    assert!(
        asked.elapsed() < Duration::from_secs(8),
        "{:?}",
        asked.elapsed()
    );
    assert_whole(&whole.finish().await?, &content);
    let fetches = scene.fake.requests("GET", "/blobs/");
    assert_eq!(fetches.len(), 2, "one segment more, and no more");
    let sent = scene.fake.sent_bytes("/blobs/");
    assert!(
        sent <= content.len() as u64 + SOCKETS,
        "{sent} bytes left the upstream"
    );
    let again = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&again, &content);
    assert_eq!(scene.fake.count("GET", "/blobs/"), 2);
    Ok(())
}

#[tokio::test]
async fn a_suffix_of_a_cold_blob_is_its_end() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 4 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    let suffix = scene.blob("app", &digest).header("Range", "bytes=-1000");
    let suffix = scene.send(suffix).await?;
    assert_eq!((suffix.status(), suffix.end), (206, End::Complete));
    let size = content.len();
    assert!(suffix.body == content[size - 1_000..]);
    let expected = format!("bytes {}-{}/{size}", size - 1_000, size - 1);
    assert_eq!(suffix.header("content-range"), Some(expected.as_str()));
    Ok(())
}

#[tokio::test]
async fn ranges_of_a_cold_blob_follow_the_contract() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 100_000);
    let empty = scene.fake.add_blob("app", "");
    for (seed, range, status) in [
        (1, "bytes=0-", &[206][..]),
        (2, "bytes=99999-", &[206]),
        (3, "bytes=50000-999999", &[206]),
        (4, "bytes=100000-", &[416]),
        (5, "bytes=0-99,200-299", &[200, 206, 400]),
        (6, "bytes=5-3", &[200, 400, 416]),
        (7, "lines=0-3", &[200]),
    ] {
        let digest = scene
            .fake
            .add_blob("app", [content.as_ref(), &[seed]].concat().split_off(1));
        let answer = scene.blob("app", &digest).header("Range", range);
        let answer = scene.send(answer).await?;
        assert!(
            status.contains(&answer.status()),
            "{range}: {}",
            answer.status()
        );
        assert_eq!(answer.end, End::Complete);
        if answer.status() == 416 {
            assert_eq!(answer.header("content-range"), Some("bytes */100000"));
        }
        let media_type = answer.header("content-type").unwrap_or_default();
        assert!(!media_type.is_empty(), "{range}");
        let multipart = media_type.starts_with("multipart/byteranges");
        assert!(
            seed != 5 || answer.status() != 206 || multipart,
            "only the first of two ranges"
        );
    }
    let answer = scene.blob("app", &empty).header("Range", "bytes=0-");
    let answer = scene.send(answer).await?;
    assert_whole(&answer, b"");
    Ok(())
}

#[tokio::test]
async fn clients_that_fetch_in_parallel_and_abort_cost_one_transfer() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 8 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    // As containerd does: open-ended ranges, each dropped after its own megabyte.
    let chunks = (0..8).map(async |index| {
        let start = index * MIB;
        let request = scene.blob("app", &digest);
        let request = request.header("Range", &format!("bytes={start}-"));
        let mut reader = scene.open(request).await?;
        assert_eq!(reader.head().status, 206);
        let chunk = reader.read_at_least(MIB).await?;
        assert!(chunk[..MIB] == content[start..start + MIB], "chunk {index}");
        anyhow::Ok(())
    });
    try_join_all(chunks).await?;
    let sent = scene.fake.sent_bytes("/blobs/");
    assert!(
        sent <= content.len() as u64 + SOCKETS,
        "{sent} bytes left the upstream"
    );
    assert!(
        scene.fake.count("GET", "/blobs/") <= 2,
        "a request per range"
    );
    Ok(())
}

/// Bytes of one client's connection that the kernel takes although nobody reads them: twice what was
/// measured.
const KERNEL: usize = 8 * MIB;

#[tokio::test]
async fn what_clients_abort_is_not_written_to_them() -> Result<()> {
    const CLIENTS: usize = 8;
    let scene = Scene::start().await?;
    let content = noise(1, 64 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    // First while it comes, then from the store.
    for source in ["upstream", "local"] {
        let chunks = (0..CLIENTS).map(async |index| {
            let start = index * MIB;
            let request = scene.blob("app", &digest);
            let request = request.header("Range", &format!("bytes={start}-"));
            let mut reader = scene.open(request).await?;
            let head = reader.head();
            assert_eq!(head.header("x-millrace-source"), Some(source));
            let chunk = reader.read_at_least(MIB).await?;
            assert!(chunk[..MIB] == content[start..start + MIB], "chunk {index}");
            anyhow::Ok(())
        });
        let before = written(&scene).await?;
        try_join_all(chunks).await?;
        scene.settle().await;
        let taken = written(&scene).await? - before;
        let most = (CLIENTS * (MIB + KERNEL)) as f64;
        assert!(taken <= most, "{source}: {taken} bytes");
    }
    Ok(())
}

/// Returns the bytes that a node has written to clients.
async fn written(scene: &Scene) -> Result<f64> {
    let bytes = scene.node.metric("millrace_registry_sent_bytes_total", &[]);
    Ok(bytes.await?.unwrap_or(0.0))
}

#[tokio::test]
async fn a_head_of_a_cold_blob_does_not_become_a_head_upstream() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 8 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    scene.fake.on(When::head("/blobs/"), Then::status(401));
    let head = Request::head(&format!("/v2/fake/app/blobs/{digest}"));
    let head = scene.send(head).await?;
    assert_eq!(head.status(), 200);
    let length = content.len().to_string();
    assert_eq!(head.header("content-length"), Some(length.as_str()));
    assert_eq!(head.header("accept-ranges"), Some("bytes"));
    assert_eq!(scene.fake.count("HEAD", "/blobs/"), 0);
    Ok(())
}

#[tokio::test]
async fn headers_and_first_bytes_do_not_wait_for_a_large_blob() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 64 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    // The whole takes over a minute.
    scene
        .fake
        .on(When::get("/blobs/"), Then::healthy().rate(1_000_000));
    let asked = Instant::now();
    let mut reader = scene.open(scene.blob("app", &digest)).await?;
    assert_eq!(reader.head().status, 200);
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    let length = content.len().to_string();
    assert_eq!(
        reader.head().header("content-length"),
        Some(length.as_str())
    );
    let begin = reader.read_at_least(100_000).await?;
    assert!(content.starts_with(&begin));
    let fetch = &scene.fake.requests("GET", "/blobs/")[0];
    assert_eq!(fetch.end, None, "the upstream had sent everything already");
    Ok(())
}

#[tokio::test]
async fn headers_that_trickle_from_the_upstream_are_waited_for() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", "content");
    let trickle = Then::healthy().head_rate(150);
    scene.fake.on(When::get("/blobs/"), trickle);
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, b"content");
    eventually("the answer is recorded", async || {
        scene.fake.requests("GET", "/blobs/")[0].end == Some(Ended::Sent)
    })
    .await;
    Ok(())
}
