//! Upstreams that break off in the middle of a blob: clients get each byte once, or a short body
//! that ends by FIN and that a request with `Range` continues.

use anyhow::Result;
use bytes::Bytes;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Ended, Gate, Scene, Then, When, assert_whole, noise};
use millrace_cluster_tests::http::End;

const MIB: usize = 1024 * 1024;

fn blob() -> Bytes {
    noise(1, 4 * MIB)
}

#[tokio::test]
async fn a_blob_cut_by_fin_is_resumed_at_the_byte_where_it_broke() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", blob());
    let cut = When::get("/blobs/").first(1);
    scene.fake.on(cut, Then::healthy().cut(1_500_000));
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, &blob());
    let fetches = scene.fake.requests("GET", "/blobs/");
    let starts: Vec<_> = fetches.iter().map(|fetch| fetch.range_start()).collect();
    assert_eq!(starts, [None, Some(1_500_000)]);
    assert_eq!(scene.fake.sent_bytes("/blobs/"), blob().len() as u64);
    Ok(())
}

#[tokio::test]
async fn a_blob_cut_by_reset_is_resumed() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", blob());
    let cut = When::get("/blobs/").first(1);
    scene.fake.on(cut, Then::healthy().reset(1_500_000));
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, &blob());
    let fetches = scene.fake.requests("GET", "/blobs/");
    assert_eq!(fetches.len(), 2);
    // A reset may take bytes along that were still in the system; what was read is not read again.
    let start = fetches[1].range_start().expect("a resume by Range");
    assert!((1..=1_500_000).contains(&start), "{start}");
    assert_eq!(fetches[1].sent_bytes, blob().len() as u64 - start);
    Ok(())
}

#[tokio::test]
async fn a_resume_that_is_answered_with_everything_is_still_right() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", blob());
    scene.fake.on(
        When::get("/blobs/").first(1),
        Then::healthy().cut(1_500_000),
    );
    scene
        .fake
        .on(When::get("/blobs/"), Then::healthy().ignore_range());
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, &blob());
    assert_eq!(scene.fake.count("GET", "/blobs/"), 2);
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_cuts_every_answer_is_worn_down() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", blob());
    scene
        .fake
        .on(When::get("/blobs/"), Then::healthy().cut(700_000));
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, &blob());
    assert_eq!(scene.fake.sent_bytes("/blobs/"), blob().len() as u64);
    Ok(())
}

#[tokio::test]
async fn a_cut_within_the_last_bytes_is_resumed_too() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", blob());
    let almost = blob().len() as u64 - 1;
    let cut = When::get("/blobs/").first(1);
    scene.fake.on(cut, Then::healthy().cut(almost));
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, &blob());
    assert_eq!(scene.fake.sent_bytes("/blobs/"), blob().len() as u64);
    Ok(())
}

#[tokio::test]
async fn headers_without_a_single_byte_are_no_source() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", blob());
    scene.fake.on(When::get("/blobs/"), Then::healthy().cut(0));
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_eq!(answer.status(), 503);
    scene.fake.heal();
    eventually("the upstream is asked again", async || {
        let answer = scene.send(scene.blob("app", &digest)).await;
        answer.is_ok_and(|answer| answer.status() == 200 && answer.body == blob())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_body_that_hangs_is_given_up_and_resumed_and_nobody_else_waits() -> Result<()> {
    let scene = Scene::with(|node| node.set("upstreams/fake/timeouts/idle", "5s")).await?;
    let digest = scene.fake.add_blob("app", blob());
    let other = scene.fake.add_blob("app", "another blob");
    let hanging = When::get(&digest.to_string()).first(1);
    let never = Gate::default();
    scene
        .fake
        .on(hanging, Then::healthy().stall(1_500_000, &never));
    let mut reader = scene.open(scene.blob("app", &digest)).await?;
    assert_eq!(reader.head().status, 200);
    let begin = reader.read_at_least(1_000_000).await?;
    let neighbour = scene.send(scene.blob("app", &other)).await?;
    assert_whole(&neighbour, b"another blob");
    assert_eq!(
        scene.fake.count("GET", &digest.to_string()),
        1,
        "the other blob had to wait for the one that hangs"
    );
    let rest = reader.finish().await?;
    assert_eq!(rest.end, End::Complete);
    assert!([begin, rest.body].concat() == blob());
    let fetches = scene.fake.requests("GET", &digest.to_string());
    let starts: Vec<_> = fetches.iter().map(|fetch| fetch.range_start()).collect();
    assert_eq!(starts, [None, Some(1_500_000)]);
    eventually("the upstream sees that the node has left", async || {
        let fetches = scene.fake.requests("GET", &digest.to_string());
        fetches[0].end == Some(Ended::Left)
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_dies_for_good_ends_the_body_by_fin_and_range_continues_it() -> Result<()>
{
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", blob());
    let gate = Gate::default();
    let dying = Then::healthy().stall(1_500_000, &gate);
    scene.fake.on(When::get("/blobs/").first(1), dying);
    let mut reader = scene.open(scene.blob("app", &digest)).await?;
    assert_eq!(reader.head().status, 200);
    let begin = reader.read_at_least(500_000).await?;
    scene.fake.stop().await;
    let rest = reader.finish().await?;
    assert_eq!(rest.end, End::Short);
    let received = [begin, rest.body].concat();
    assert!(blob().starts_with(&received) && received.len() < blob().len());

    let range = format!("bytes={}-", received.len());
    let next = || scene.blob("app", &digest).header("Range", &range);
    let answer = scene.send(next()).await?;
    assert!(
        [206, 404, 503].contains(&answer.status()),
        "{}",
        answer.status()
    );
    assert!(
        answer.status() != 206 || !answer.body.is_empty(),
        "206 without a byte"
    );

    scene.fake.resume().await?;
    eventually("the rest comes when the upstream is back", async || {
        let Ok(answer) = scene.send(next()).await else {
            return false;
        };
        answer.status() == 206
            && answer.end == End::Complete
            && answer.body == blob()[received.len()..]
    })
    .await;
    // What the upstream gave before it died is not asked for again.
    let fetches = scene.fake.requests("GET", "/blobs/");
    let last = fetches.last().and_then(|fetch| fetch.range_start());
    assert_eq!(last, Some(1_500_000));
    Ok(())
}
