//! How long the answer for a tag is used, and what happens when the upstream does not give another.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::{join, try_join_all};
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{
    Canned, Gate, Image, Scene, Then, When, assert_whole, code_of, noise,
};
use millrace_cluster_tests::node::NodeBuilder;
use serde_json::json;
use tokio::time::{Instant, timeout};

/// A rule for all tags of the fake.
fn policy(node: NodeBuilder, rule: &serde_json::Value) -> NodeBuilder {
    node.set("upstreams/fake/tags", json!([rule]))
}

fn ttl(node: NodeBuilder, ttl: &str) -> NodeBuilder {
    policy(node, &json!({"match": "*", "policy": "ttl", "ttl": ttl}))
}

/// A check is waited for: what is had by it is kept first, and a busy disk takes its time.
async fn with_ttl(time: &str) -> Result<Scene> {
    Scene::with(|node| ttl(node, time).set("cache/revalidate", "15s")).await
}

fn image(scene: &Scene, seed: u64) -> Image {
    let layers = [noise(seed, 1_000), noise(seed + 1_000, 2_000)];
    scene.fake.add_image("app", "latest", &layers)
}

/// Asks for the tag and demands that it points to `image`.
async fn expect(scene: &Scene, image: &Image) -> Result<()> {
    let answer = scene.send(scene.manifest("app", "latest")).await?;
    assert_whole(&answer, &image.manifest_bytes);
    let digest = image.manifest.to_string();
    assert_eq!(
        answer.header("docker-content-digest"),
        Some(digest.as_str())
    );
    Ok(())
}

/// Counts `HEAD` and `GET` of manifests at the upstream.
fn asked(scene: &Scene) -> (usize, usize) {
    let count = |method| scene.fake.count(method, "/manifests/");
    (count("HEAD"), count("GET"))
}

#[tokio::test]
async fn a_fresh_tag_asks_nobody() -> Result<()> {
    let scene = with_ttl("1h").await?;
    let image = image(&scene, 1);
    expect(&scene, &image).await?;
    assert_eq!(
        asked(&scene),
        (1, 1),
        "a HEAD, and a GET of the unknown digest"
    );
    let get = &scene.fake.requests("GET", "/manifests/")[0];
    assert!(
        get.target.ends_with(&image.manifest.to_string()),
        "{}",
        get.target
    );
    for _ in 0..3 {
        expect(&scene, &image).await?;
    }
    assert_eq!(asked(&scene), (1, 1));
    Ok(())
}

#[tokio::test]
async fn an_expired_tag_costs_a_head_and_nothing_that_counts() -> Result<()> {
    let scene = with_ttl("0s").await?;
    let image = image(&scene, 1);
    for heads in 1..4 {
        expect(&scene, &image).await?;
        assert_eq!(asked(&scene), (heads, 1));
    }
    Ok(())
}

#[tokio::test]
async fn a_moved_tag_costs_one_get_of_the_new_digest() -> Result<()> {
    let scene = with_ttl("0s").await?;
    let old = image(&scene, 1);
    expect(&scene, &old).await?;
    let new = image(&scene, 2);
    expect(&scene, &new).await?;
    assert_eq!(asked(&scene), (2, 2));
    let get = &scene.fake.requests("GET", "/manifests/")[1];
    assert!(
        get.target.ends_with(&new.manifest.to_string()),
        "{}",
        get.target
    );
    // Moved back to what is here: no GET at all.
    scene.fake.set_tag("app", "latest", &old.manifest);
    expect(&scene, &old).await?;
    assert_eq!(asked(&scene), (3, 2));
    Ok(())
}

#[tokio::test]
async fn a_head_that_says_no_digest_is_followed_by_a_get() -> Result<()> {
    for head in [
        Then::healthy().without("Docker-Content-Digest"),
        Then::status(405),
    ] {
        let scene = with_ttl("0s").await?;
        scene.fake.on(When::head("/manifests/"), head);
        let old = image(&scene, 1);
        expect(&scene, &old).await?;
        let new = image(&scene, 2);
        expect(&scene, &new).await?;
        assert_eq!(scene.fake.count("GET", "/manifests/latest"), 2);
    }
    Ok(())
}

#[tokio::test]
async fn the_upstream_is_offered_every_manifest_type_whatever_the_client_takes() -> Result<()> {
    let scene = with_ttl("1h").await?;
    let image = image(&scene, 1);
    let request = scene.manifest("app", "latest");
    let schema1 = "application/vnd.docker.distribution.manifest.v1+json";
    let answer = scene.send(request.header("Accept", schema1)).await?;
    assert_whole(&answer, &image.manifest_bytes);
    for record in scene.fake.records() {
        let accept = record.header("accept").unwrap_or_default();
        for wanted in [
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
        ] {
            assert!(accept.contains(wanted), "{}: {accept}", record.target);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_slow_check_lets_the_known_answer_out_and_goes_on_behind_it() -> Result<()> {
    let scene = Scene::with(|node| ttl(node, "0s")).await?;
    let old = image(&scene, 1);
    scene.pull("app", "latest", &old).await?;
    let gate = Gate::default();
    let slow = When::head("/manifests/");
    scene.fake.on(slow, Then::healthy().hold(&gate));
    let new = image(&scene, 2);
    let begin = Instant::now();
    expect(&scene, &old).await?;
    let took = begin.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(5)).contains(&took),
        "{took:?}"
    );
    assert_eq!(scene.fake.count("GET", &new.manifest.to_string()), 0);
    gate.open();
    eventually("the check fetches the new manifest by itself", async || {
        scene.fake.count("GET", &new.manifest.to_string()) == 1
    })
    .await;
    scene.fake.heal();
    eventually("the new manifest is handed out", async || {
        let answer = scene.send(scene.manifest("app", "latest")).await;
        answer.is_ok_and(|answer| answer.body == new.manifest_bytes)
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_known_answer_goes_out_while_the_upstream_is_away() -> Result<()> {
    let mut scene = with_ttl("0s").await?;
    let image = image(&scene, 1);
    scene.pull("app", "latest", &image).await?;
    scene.settle().await;
    scene.fake.stop().await;
    scene.pull("app", "latest", &image).await?;
    scene.node.stop().await?;
    scene.node.restart().await?;
    scene.pull("app", "latest", &image).await?;
    Ok(())
}

#[tokio::test]
async fn a_known_answer_goes_out_while_the_upstream_limits_or_fails() -> Result<()> {
    for status in [429, 500, 503] {
        let scene = with_ttl("0s").await?;
        let image = image(&scene, 1);
        scene.pull("app", "latest", &image).await?;
        scene.settle().await;
        scene.fake.on(When::any("/v2/"), Then::status(status));
        scene.pull("app", "latest", &image).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_known_answer_never_goes_out_after_a_refusal() -> Result<()> {
    for status in [401, 403, 404] {
        let scene = with_ttl("0s").await?;
        let image = image(&scene, 1);
        scene.pull("app", "latest", &image).await?;
        let refusal = When::any("/manifests/latest");
        scene.fake.on(refusal, Then::status(status));
        let answer = scene.send(scene.manifest("app", "latest")).await?;
        assert_eq!(answer.status(), 404, "the upstream said {status}");
        let code = code_of(&answer).unwrap_or_default();
        let expected: &[&str] = match status {
            404 => &["MANIFEST_UNKNOWN", "NAME_UNKNOWN"],
            _ => &["NAME_UNKNOWN"],
        };
        assert!(expected.contains(&code.as_str()), "{status}: {code}");
    }
    Ok(())
}

#[tokio::test]
async fn a_known_answer_goes_out_after_a_refusal_where_that_is_configured() -> Result<()> {
    for status in [401, 403, 404] {
        let scene = Scene::with(|node| {
            let rule = json!({"match": "*", "policy": "ttl", "ttl": "0s"});
            policy(node, &rule).set("cache/stale_denied", true)
        })
        .await?;
        let image = image(&scene, 1);
        scene.pull("app", "latest", &image).await?;
        let refusal = When::any("/manifests/latest");
        scene.fake.on(refusal, Then::status(status));
        expect(&scene, &image).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_immutable_tag_is_never_checked() -> Result<()> {
    let rule = json!({"match": "*", "policy": "immutable"});
    let mut scene = Scene::with(|node| policy(node, &rule)).await?;
    let first = image(&scene, 1);
    expect(&scene, &first).await?;
    image(&scene, 2);
    expect(&scene, &first).await?;
    assert_eq!(asked(&scene), (1, 1));
    scene.node.stop().await?;
    scene.node.restart().await?;
    expect(&scene, &first).await?;
    assert_eq!(asked(&scene), (1, 1), "the restart made it forget");
    Ok(())
}

#[tokio::test]
async fn a_tag_that_is_always_checked_waits_and_is_never_stale() -> Result<()> {
    let rule = json!({"match": "*", "policy": "always"});
    let scene = Scene::with(|node| policy(node, &rule)).await?;
    let old = image(&scene, 1);
    scene.pull("app", "latest", &old).await?;
    let new = image(&scene, 2);
    let gate = Gate::default();
    let slow = When::head("/manifests/").first(1);
    scene.fake.on(slow, Then::healthy().hold(&gate));
    {
        let waiting = expect(&scene, &new);
        tokio::pin!(waiting);
        let early = timeout(Duration::from_secs(3), &mut waiting).await;
        assert!(early.is_err(), "answered before the upstream did");
        gate.open();
        waiting.await?;
    }
    scene.fake.stop().await;
    let away = scene.send(scene.manifest("app", "latest")).await?;
    assert_eq!(away.status(), 503);
    Ok(())
}

#[tokio::test]
async fn a_missing_tag_is_remembered_for_its_repository() -> Result<()> {
    let scene = with_ttl("1h").await?;
    image(&scene, 1);
    for _ in 0..3 {
        let answer = scene.send(scene.manifest("app", "absent")).await?;
        assert_eq!(
            (answer.status(), code_of(&answer).as_deref()),
            (404, Some("MANIFEST_UNKNOWN"))
        );
    }
    let app = scene.fake.records().len();
    assert!((1..=2).contains(&app), "{app} requests for one answer");
    for _ in 0..3 {
        let answer = scene.send(scene.manifest("other", "absent")).await?;
        assert_eq!(answer.status(), 404);
    }
    let other = scene.fake.records().len() - app;
    assert!(
        (1..=2).contains(&other),
        "{other} requests in the other repository"
    );
    Ok(())
}

#[tokio::test]
async fn a_tag_that_appears_is_found_when_the_refusal_is_forgotten() -> Result<()> {
    let scene = Scene::with(|node| node.set("cache/negative_ttl", "1s")).await?;
    let answer = scene.send(scene.manifest("app", "latest")).await?;
    assert_eq!(answer.status(), 404);
    let image = image(&scene, 1);
    eventually("the new tag is found", async || {
        let answer = scene.send(scene.manifest("app", "latest")).await;
        answer.is_ok_and(|answer| answer.body == image.manifest_bytes)
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_stampede_by_tag_and_by_digest_is_one_head_and_one_get() -> Result<()> {
    let scene = with_ttl("1h").await?;
    let image = image(&scene, 1);
    // Long enough that all clients have asked before the first answer.
    let slow = Then::healthy().delay(Duration::from_millis(700));
    scene.fake.on(When::any("/manifests/"), slow);
    let by_tag = (0..32).map(|_| scene.send(scene.manifest("app", "latest")));
    let by_digest = (0..32).map(|_| scene.send(scene.manifest("app", image.manifest)));
    let (by_tag, by_digest) = join(try_join_all(by_tag), try_join_all(by_digest)).await;
    for answer in by_tag?.into_iter().chain(by_digest?) {
        assert_whole(&answer, &image.manifest_bytes);
    }
    assert_eq!(asked(&scene), (1, 1));
    Ok(())
}

#[tokio::test]
async fn a_pull_limit_stops_what_counts_and_nothing_else() -> Result<()> {
    let scene = with_ttl("0s").await?;
    let known = image(&scene, 1);
    expect(&scene, &known).await?;
    let fresh = scene.fake.add_image("app", "fresh", &[noise(9, 1_000)]);
    let limit = Canned::status(429)
        .header("Content-Type", "application/json")
        .body(r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#);
    scene.fake.on(When::get("/manifests/"), Then::answer(limit));
    for _ in 0..3 {
        let answer = scene.send(scene.manifest("app", "fresh")).await?;
        assert_eq!((answer.status(), answer.header("retry-after")), (503, None));
    }
    assert_eq!(
        scene.fake.count("GET", &fresh.manifest.to_string()),
        1,
        "asked again at once"
    );
    expect(&scene, &known).await?;
    let layer = scene.send(scene.blob("app", &fresh.layers[0])).await?;
    assert_whole(&layer, &noise(9, 1_000));
    Ok(())
}

#[tokio::test]
async fn a_request_limit_stops_everything_for_as_long_as_it_says() -> Result<()> {
    let scene = with_ttl("1h").await?;
    let image = image(&scene, 1);
    let limit = Canned::status(429)
        .header("Retry-After", "6")
        .body("Too Many Requests");
    let limited = When::any("/v2/").first(1);
    scene.fake.on(limited, Then::answer(limit));
    let limited_at = Instant::now();
    for reference in ["latest", "other"] {
        let answer = scene.send(scene.manifest("app", reference)).await?;
        assert_eq!((answer.status(), answer.header("retry-after")), (503, None));
    }
    let blob = scene.send(scene.blob("app", &image.layers[0])).await?;
    assert_eq!(blob.status(), 503);
    if limited_at.elapsed() < Duration::from_secs(6) {
        assert_eq!(
            scene.fake.records().len(),
            1,
            "asked again before the time that was named"
        );
    }
    eventually("the upstream is asked again after that", async || {
        let answer = scene.send(scene.manifest("app", "latest")).await;
        answer.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn what_the_upstream_says_about_its_limit_is_in_status_and_metrics() -> Result<()> {
    let scene = with_ttl("1h").await?;
    let image = image(&scene, 1);
    let counted = Then::healthy()
        .header("ratelimit-limit", "100;w=21600")
        .header("ratelimit-remaining", "76;w=21600")
        .header("docker-ratelimit-source", "192.0.2.77");
    scene.fake.on(When::any("/manifests/"), counted);
    expect(&scene, &image).await?;
    let status = scene.node.status().await?.to_string();
    for part in ["\"limit\":100", "\"remaining\":76", "21600", "192.0.2.77"] {
        assert!(status.contains(part), "{part} is not in {status}");
    }
    let label = ["upstream=\"fake\""];
    let remaining = scene
        .node
        .metric("millrace_upstream_rate_limit_remaining", &label)
        .await?;
    assert_eq!(remaining, Some(76.0));
    Ok(())
}
