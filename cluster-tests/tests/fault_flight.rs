//! Many clients at once: one transfer per blob, whoever asks, leaves, or reads slowly.

use anyhow::Result;
use futures_util::future::try_join_all;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Ended, Gate, Scene, Then, When, assert_whole, code_of, noise};
use millrace_cluster_tests::http::End;

const MIB: usize = 1024 * 1024;

/// Clients of the stampede, as the issue has it.
const CLIENTS: usize = 64;

#[tokio::test]
async fn a_stampede_on_a_cold_blob_is_one_transfer() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 4 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    let gate = Gate::default();
    let slow = Then::healthy().stall(MIB as u64, &gate).rate(20_000_000);
    scene.fake.on(When::get("/blobs/"), slow);
    // All have their headers while the upstream stands still: none of them waits for the whole.
    let readers = (0..CLIENTS).map(|_| scene.open(scene.blob("app", &digest)));
    let readers = try_join_all(readers).await?;
    gate.open();
    for answer in try_join_all(readers.into_iter().map(|reader| reader.finish())).await? {
        assert_whole(&answer, &content);
    }
    assert_eq!(scene.fake.count("GET", "/blobs/"), 1);
    assert_eq!(scene.fake.sent_bytes("/blobs/"), content.len() as u64);
    Ok(())
}

#[tokio::test]
async fn a_crowd_of_slow_downloads_keeps_nobody_from_an_answer() -> Result<()> {
    // Two at a time, and all of them stand still: without making room, the last of these clients
    // would wait for as long as the first ones' downloads take.
    let scene = Scene::with(|node| node.set("upstreams/fake/max_requests", 2)).await?;
    let blobs: Vec<_> = (0..8).map(|seed| noise(seed, 200_000)).collect();
    let add = |blob| scene.fake.add_blob("app", blob);
    let digests: Vec<_> = blobs.iter().cloned().map(add).collect();
    let gate = scene.fake.pause_blobs(150_000);
    let readers = digests
        .iter()
        .map(|digest| scene.open(scene.blob("app", digest)));
    let readers = try_join_all(readers).await?;
    let statuses: Vec<_> = readers.iter().map(|reader| reader.head().status).collect();
    assert_eq!(statuses, [200; 8]);
    gate.open();
    let answers = try_join_all(readers.into_iter().map(|reader| reader.finish())).await?;
    for (answer, blob) in answers.iter().zip(&blobs) {
        assert_whole(answer, blob);
    }
    assert_eq!(scene.fake.count("GET", "/blobs/"), blobs.len());
    Ok(())
}

#[tokio::test]
async fn who_was_not_served_in_time_finds_the_fetch_still_in_its_place() -> Result<()> {
    let scene = Scene::with(|node| {
        node.set("upstreams/fake/max_requests", 1)
            .set("upstreams/fake/max_downloads", 1)
    })
    .await?;
    let [first, second] = [noise(1, 200_000), noise(2, 200_000)];
    let first_digest = scene.fake.add_blob("app", first.clone());
    let second_digest = scene.fake.add_blob("app", second.clone());
    let gate = scene.fake.pause_blobs(150_000);
    let reader = scene.open(scene.blob("app", &first_digest)).await?;
    let late = scene.send(scene.blob("app", &second_digest)).await?;
    assert_eq!(late.status(), 503);
    // It is its turn before anybody asks again.
    gate.open();
    eventually("the second blob is fetched", async || {
        scene.fake.count("GET", "/blobs/") == 2
    })
    .await;
    let again = scene.send(scene.blob("app", &second_digest)).await?;
    assert_whole(&again, &second);
    assert_whole(&reader.finish().await?, &first);
    assert_eq!(scene.fake.count("GET", "/blobs/"), 2);
    Ok(())
}

#[tokio::test]
async fn a_404_is_reported_to_the_repository_that_got_it_and_to_no_other() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, MIB);
    let digest = scene.fake.add_blob("has", content.clone());
    scene.fake.add_blob("lacks", "something else");
    let gate = Gate::default();
    scene
        .fake
        .on(When::get("/lacks/"), Then::healthy().hold(&gate));
    let lacking = scene.send(scene.blob("lacks", &digest));
    let having = async {
        eventually(
            "the repository without the blob is asked first",
            async || scene.fake.count("GET", "/lacks/blobs/") == 1,
        )
        .await;
        let having = scene.open(scene.blob("has", &digest));
        let open = async {
            // The second waiter has joined when the node says that two wait.
            eventually("two clients wait for one transfer", async || {
                waiters(&scene).await == Some(2)
            })
            .await;
            gate.open();
            Ok(())
        };
        let (having, ()) = tokio::try_join!(having, open)?;
        having.finish().await
    };
    let (lacking, having) = tokio::try_join!(lacking, having)?;
    assert_whole(&having, &content);
    assert_eq!(lacking.status(), 404);
    assert_eq!(code_of(&lacking).as_deref(), Some("BLOB_UNKNOWN"));
    assert_eq!(scene.fake.count("GET", "/has/blobs/"), 1);
    Ok(())
}

/// Returns how many clients wait for the one transfer that is under way.
async fn waiters(scene: &Scene) -> Option<u64> {
    let status = scene.node.status().await.ok()?;
    status["pull"]["transfers"][0]["waiters"].as_u64()
}

#[tokio::test]
async fn a_blob_refused_in_one_repository_is_given_in_another() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("has", "content");
    let lacking = scene.send(scene.blob("lacks", &digest)).await?;
    assert_eq!(lacking.status(), 404);
    let having = scene.send(scene.blob("has", &digest)).await?;
    assert_whole(&having, b"content");
    Ok(())
}

#[tokio::test]
async fn a_fill_outlives_its_only_client() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 4 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    let gate = scene.fake.pause_blobs(MIB as u64);
    let mut reader = scene.open(scene.blob("app", &digest)).await?;
    reader.read_at_least(100_000).await?;
    drop(reader);
    gate.open();
    eventually("the upstream has sent all of it", async || {
        let fetches = scene.fake.requests("GET", "/blobs/");
        fetches.len() == 1 && fetches[0].end == Some(Ended::Sent)
    })
    .await;
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, &content);
    assert_eq!(scene.fake.count("GET", "/blobs/"), 1);
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_takes_nothing_from_the_others() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 4 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    let gate = scene.fake.pause_blobs(MIB as u64);
    // The one that began the transfer is the one that leaves.
    let leaver = scene.open(scene.blob("app", &digest)).await?;
    let stayer = scene.open(scene.blob("app", &digest)).await?;
    drop(leaver);
    gate.open();
    assert_whole(&stayer.finish().await?, &content);
    assert_eq!(scene.fake.sent_bytes("/blobs/"), content.len() as u64);
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_nobody() -> Result<()> {
    let scene = Scene::start().await?;
    // Larger than what the sockets on the way can hold.
    let content = noise(1, 48 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    let sleeper = scene.open(scene.blob("app", &digest)).await?;
    let reader = scene.open(scene.blob("app", &digest)).await?;
    let (size, end) = reader.discard().await?;
    assert_eq!((size, end), (content.len() as u64, End::Complete));
    let fetches = scene.fake.requests("GET", "/blobs/");
    assert_eq!(fetches.len(), 1);
    assert_eq!(fetches[0].end, Some(Ended::Sent));
    assert_whole(&sleeper.finish().await?, &content);
    Ok(())
}

#[tokio::test]
async fn a_fill_ends_although_its_only_client_does_not_read() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 48 * MIB);
    let digest = scene.fake.add_blob("app", content.clone());
    let sleeper = scene.open(scene.blob("app", &digest)).await?;
    eventually("the upstream has sent all of it", async || {
        scene.fake.requests("GET", "/blobs/")[0].end == Some(Ended::Sent)
    })
    .await;
    assert_whole(&sleeper.finish().await?, &content);
    Ok(())
}

#[tokio::test]
async fn who_waits_behind_long_downloads_is_told_the_setting_and_keeps_the_place() -> Result<()> {
    let scene = Scene::with(|node| {
        let node = node.set("upstreams/fake/max_requests", 1);
        node.set("upstreams/fake/max_downloads", 1)
    })
    .await?;
    let (long, queued) = (noise(1, 4 * MIB), noise(2, MIB));
    let long_digest = scene.fake.add_blob("app", long.clone());
    let queued_digest = scene.fake.add_blob("app", queued.clone());
    let gate = Gate::default();
    let stalled = Then::healthy().stall(MIB as u64, &gate);
    scene
        .fake
        .on(When::get(&format!("/blobs/{long_digest}")), stalled);
    let reader = scene.open(scene.blob("app", &long_digest)).await?;

    let answer = scene.send(scene.blob("app", &queued_digest)).await?;
    assert_eq!(answer.status(), 503);
    let seconds: u64 = answer.header("retry-after").expect("a hint").parse()?;
    assert!((1..=60).contains(&seconds), "{seconds}");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(text.contains("max_downloads"), "{text}");

    gate.open();
    assert_whole(&reader.finish().await?, &long);
    let answer = scene.send(scene.blob("app", &queued_digest)).await?;
    assert_whole(&answer, &queued);
    assert_eq!(scene.fake.count("GET", "/blobs/"), 2);
    Ok(())
}
