//! Redirects, fallbacks, the breaker and the cap on requests.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::try_join_all;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{
    Canned, Fake, Guard, Scene, Then, When, assert_whole, code_of, noise,
};
use millrace_cluster_tests::node::NodeBuilder;
use serde_json::json;
use tokio::time::Instant;

const MIB: usize = 1024 * 1024;

/// Lets redirects of the upstream reach `fake`.
fn reaching(node: NodeBuilder, fake: &Fake) -> NodeBuilder {
    let hosts = json!([fake.address().to_string()]);
    node.set("upstreams/fake/redirect_hosts", hosts)
}

/// A treatment that sends a request to the same path at `fake`, whose content is the same.
fn to(fake: &Fake, path: &str) -> Then {
    Then::answer(Canned::redirect(&format!("{}{path}", fake.url())))
}

#[tokio::test]
async fn blobs_and_manifests_are_followed_to_where_they_are() -> Result<()> {
    let cdn = Fake::start().await?;
    let scene = Scene::with(|node| reaching(node, &cdn)).await?;
    let layers = [noise(1, 4 * MIB), noise(2, 1_000)];
    let image = scene.fake.add_image("app", "latest", &layers);
    cdn.add_image("app", "latest", &layers);
    for digest in [&image.config, &image.layers[0], &image.layers[1]] {
        let path = format!("/v2/app/blobs/{digest}");
        scene.fake.on(When::get(&path), to(&cdn, &path));
    }
    let path = format!("/v2/app/manifests/{}", image.manifest);
    scene.fake.on(When::get(&path), to(&cdn, &path));
    // The first body breaks off: the resume asks the upstream for a fresh redirect.
    cdn.on(
        When::get(&image.layers[0].to_string()).first(1),
        Then::healthy().cut(1_500_000),
    );
    scene.pull("app", "latest", &image).await?;
    let layer = image.layers[0].to_string();
    let asked = scene.fake.requests("GET", &layer);
    let starts: Vec<_> = asked.iter().map(|fetch| fetch.range_start()).collect();
    assert_eq!(starts, [None, Some(1_500_000)]);
    assert_eq!(
        cdn.requests("GET", &layer)[1].range_start(),
        Some(1_500_000)
    );
    assert_eq!(scene.fake.sent_bytes("/blobs/"), 0);
    Ok(())
}

#[tokio::test]
async fn relative_redirects_and_chains_are_followed() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", "content");
    let path = format!("/v2/app/blobs/{digest}");
    for (from, target) in [(&*path, "/step/1"), ("/step/1", "/step/2")] {
        let step = Then::answer(Canned::redirect(target));
        scene.fake.on(When::get(from).first(1), step);
    }
    let last = Then::answer(Canned::status(200).body("content"));
    scene.fake.on(When::get("/step/2"), last);
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, b"content");
    Ok(())
}

#[tokio::test]
async fn a_loop_of_redirects_is_left() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", "content");
    let path = format!("/v2/app/blobs/{digest}");
    let round = Then::answer(Canned::redirect(&path));
    scene.fake.on(When::get("/blobs/"), round);
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert!(answer.status() >= 400, "{}", answer.status());
    assert_eq!(answer.header("location"), None);
    let asked = scene.fake.records().len();
    assert!(asked <= 40, "{asked} requests for one blob");
    Ok(())
}

#[tokio::test]
async fn redirects_to_private_addresses_are_refused() -> Result<()> {
    let inside = Fake::start().await?;
    let scene = Scene::start().await?;
    let port = inside.address().port();
    let targets = [
        inside.url(),
        format!("http://localhost:{port}"),
        format!("http://127.0.0.3:{port}"),
        format!("http://2130706433:{port}"),
        format!("http://0.0.0.0:{port}"),
        format!("http://[::1]:{port}"),
        format!("http://[::ffff:127.0.0.1]:{port}"),
        format!("http://user:pw@127.0.0.1:{port}"),
        "http://169.254.169.254".to_owned(),
        "http://10.0.0.1".to_owned(),
        "http://[fd00:ec2::254]".to_owned(),
        "file:///etc/passwd".to_owned(),
        "ftp://127.0.0.1".to_owned(),
    ];
    for (seed, target) in (1_u64..).zip(targets) {
        let digest = scene.fake.add_blob("app", noise(seed, 1_000));
        inside.add_blob("app", noise(seed, 1_000));
        let path = format!("/v2/app/blobs/{digest}");
        let away = Then::answer(Canned::redirect(&format!("{target}{path}")));
        scene.fake.on(When::get(&path), away);
        let begin = Instant::now();
        let answer = scene.send(scene.blob("app", &digest)).await?;
        assert!(answer.status() >= 400, "{target}: {}", answer.status());
        assert!(begin.elapsed() < Duration::from_secs(5), "{target}");
    }
    assert_eq!(inside.records().len(), 0);
    // It harmed nobody else: what the upstream gives itself is given.
    let digest = scene.fake.add_blob("app", "content");
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, b"content");
    Ok(())
}

#[tokio::test]
async fn a_redirect_that_gives_up_encryption_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (secure, plain) = (Fake::start_tls(folder.path()).await?, Fake::start().await?);
    let (kept, sent) = (noise(1, 1_000), noise(2, 1_000));
    let ca = secure.certificate().map(|path| path.display().to_string());
    let scene = Scene::of(secure, |node| {
        reaching(node, &plain).set("upstreams/fake/ca", ca)
    })
    .await?;
    let own = scene.fake.add_blob("app", kept.clone());
    assert_whole(&scene.send(scene.blob("app", &own)).await?, &kept);
    let digest = scene.fake.add_blob("app", sent.clone());
    plain.add_blob("app", sent);
    let path = format!("/v2/app/blobs/{digest}");
    scene.fake.on(When::get(&path), to(&plain, &path));
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert!(answer.status() >= 400, "{}", answer.status());
    assert_eq!(plain.records().len(), 0);
    Ok(())
}

#[tokio::test]
async fn an_upstream_with_an_unknown_certificate_is_not_trusted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let scene = Scene::of(Fake::start_tls(folder.path()).await?, |node| node).await?;
    let digest = scene.fake.add_blob("app", "content");
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_eq!(answer.status(), 503);
    assert_eq!(scene.fake.records().len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_redirect_back_home_carries_no_credentials() -> Result<()> {
    let stranger = Fake::start().await?;
    let fake = Fake::start().await?;
    let digest = fake.add_blob("app", "content");
    fake.protect(Guard::Basic("robot".into(), "hunter2".into()));
    let path = format!("/v2/app/blobs/{digest}");
    let admitted = When::get(&path).with("authorization", "Basic").first(1);
    fake.on(admitted, to(&stranger, &path));
    // The stranger sends the node back, to something it could not ask for itself.
    let trap = format!("{}/v2/app/manifests/secret", fake.url());
    stranger.on(When::get(&path), Then::answer(Canned::redirect(&trap)));
    let scene = Scene::of(fake, |node| {
        reaching(node, &stranger)
            .set("upstreams/fake/username", "robot")
            .set("upstreams/fake/password", "hunter2")
    })
    .await?;
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert!(answer.status() >= 400, "{}", answer.status());
    for record in scene.fake.requests("GET", "/manifests/secret") {
        assert_eq!(record.header("authorization"), None);
    }
    for record in stranger.records() {
        assert_eq!(record.header("authorization"), None);
    }
    Ok(())
}

#[tokio::test]
async fn a_fallback_stands_in_without_credentials_and_only_when_needed() -> Result<()> {
    let mirror = Fake::start().await?;
    let layers = [noise(1, 100_000)];
    let image = mirror.add_image("app", "latest", &layers);
    let fallback = json!([mirror.url()]);
    let scene = Scene::with(|node| {
        node.set("upstreams/fake/fallback", fallback)
            .set("upstreams/fake/username", "robot")
            .set("upstreams/fake/password", "hunter2")
    })
    .await?;
    let gone = scene.send(scene.manifest("app", "latest")).await?;
    assert_eq!(
        gone.status(),
        404,
        "the upstream's word on what exists is final"
    );
    assert_eq!(mirror.records().len(), 0);
    let other = mirror.add_image("other", "latest", &layers);
    scene.fake.stop().await;
    mirror.protect(Guard::Open);
    scene.pull("other", "latest", &other).await?;
    assert!(!mirror.records().is_empty());
    for record in mirror.records() {
        assert_eq!(record.header("authorization"), None);
    }
    assert_eq!(image.layers, other.layers);
    Ok(())
}

#[tokio::test]
async fn the_breaker_fails_fast_and_closes_when_the_upstream_is_back() -> Result<()> {
    let scene = Scene::start().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 1_000)]);
    scene.fake.on(When::any("/v2/"), Then::status(503));
    eventually("the breaker is open", async || {
        let asked = scene.fake.records().len();
        let answer = scene.send(scene.manifest("app", "latest")).await;
        answer.is_ok_and(|answer| answer.status() == 503) && scene.fake.records().len() == asked
    })
    .await;
    let begin = Instant::now();
    let answer = scene.send(scene.manifest("app", "other")).await?;
    assert_eq!(
        (answer.status(), code_of(&answer).as_deref()),
        (503, Some("UNAVAILABLE"))
    );
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    let status = scene.node.status().await?.to_string();
    assert!(status.contains("\"open\""), "no open breaker in {status}");
    scene.fake.heal();
    eventually("the upstream is found again", async || {
        let answer = scene.send(scene.manifest("app", "latest")).await;
        answer.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    scene.pull("app", "latest", &image).await
}

#[tokio::test]
async fn no_more_requests_run_at_the_upstream_than_it_may() -> Result<()> {
    let scene = Scene::with(|node| {
        node.set("upstreams/fake/max_requests", 2)
            .set("upstreams/fake/max_downloads", 2)
    })
    .await?;
    let blobs: Vec<_> = (0..6).map(|seed| noise(seed, 200_000)).collect();
    let add = |blob| scene.fake.add_blob("app", blob);
    let digests: Vec<_> = blobs.iter().cloned().map(add).collect();
    let gate = scene.fake.pause_blobs(100_000);
    let pulls = digests
        .iter()
        .map(|digest| scene.send(scene.blob("app", digest)));
    let open = async {
        eventually(
            "two requests run, and the node knows of six pulls",
            async || {
                let status = scene.node.status().await.ok();
                let transfers =
                    status.and_then(|status| Some(status["pull"]["transfers"].as_array()?.len()));
                scene.fake.records().len() >= 2 && transfers == Some(6)
            },
        )
        .await;
        assert_eq!(scene.fake.records().len(), 2);
        gate.open();
        Ok(())
    };
    let (answers, ()) = tokio::try_join!(try_join_all(pulls), open)?;
    for (answer, blob) in answers.iter().zip(&blobs) {
        assert_whole(answer, blob);
    }
    Ok(())
}
