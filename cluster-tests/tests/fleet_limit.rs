//! A registry's rate limit is one for all nodes that it counts as one: they keep it together.

use anyhow::Result;
use futures_util::future::try_join_all;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Canned, Then, When};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::http::Request;
use serde_json::Value;

/// How the fake registry calls the address that all nodes of a test come from.
const SOURCE: &str = "192.0.2.1";

/// Seconds for which it refuses; long enough for everybody to be asked meanwhile.
const REFUSES: &str = "12";

/// Returns what a node says of the limit at the one upstream that has any.
async fn limited(scene: &Scene, node: usize) -> Result<Value> {
    let status = scene.fleet.node(node).status().await?;
    let upstreams = status["upstreams"].as_array().cloned().unwrap_or_default();
    let mut endpoints = upstreams.iter().map(|upstream| &upstream["endpoints"][0]);
    let limited = endpoints.find(|endpoint| !endpoint["limited"].is_null());
    Ok(limited.map_or(Value::Null, |endpoint| endpoint["limited"].clone()))
}

/// Lets every node ask the upstream for something, so that it knows as whom it is counted.
async fn introduce(scene: &Scene) -> Result<()> {
    let counted = Then::healthy()
        .header("docker-ratelimit-source", SOURCE)
        .header("ratelimit-remaining", "76;w=21600");
    scene.fake.on(When::get("/blobs/"), counted);
    for home in 0..scene.fleet.size() {
        let (_, content) = scene.fleet.content_of_home(home, 1_000);
        scene.pull(home, &scene.add(&content), &content).await?;
    }
    scene.fake.heal();
    Ok(())
}

fn refuse_everything(scene: &Scene) {
    let refusal = Canned::status(429).header("Retry-After", REFUSES);
    scene.fake.on(When::any("/v2/"), Then::answer(refusal));
}

#[tokio::test]
async fn who_is_refused_through_the_home_does_not_ask_the_upstream_as_well() -> Result<()> {
    let scene = Scene::start(Fleet::of(4)).await?;
    introduce(&scene).await?;
    refuse_everything(&scene);
    let asked = scene.fake.records().len();
    // The home is refused by the upstream, the others by the home: at once, before any gossip.
    let (_, refused) = scene.fleet.content_of_home(0, 2_000);
    let path = scene.add(&refused);
    let ask = async |node: usize| {
        let answer = scene.fleet.node(node).send(Request::get(&path)).await?;
        anyhow::Ok(answer.status())
    };
    assert_eq!(try_join_all((1..4).map(ask)).await?, [503; 3]);
    let records = scene.fake.records().split_off(asked);
    assert_eq!(records.len(), 1, "{records:?}");
    Ok(())
}

#[tokio::test]
async fn what_one_node_is_refused_no_other_asks_until_the_limit_ends() -> Result<()> {
    let scene = Scene::start(Fleet::of(2)).await?;
    introduce(&scene).await?;
    refuse_everything(&scene);
    let ask = async |node: usize, path: &str| {
        let answer = scene.fleet.node(node).send(Request::get(path)).await?;
        anyhow::Ok(answer.status())
    };
    let (_, refused) = scene.fleet.content_of_home(0, 2_000);
    assert_eq!(ask(0, &scene.add(&refused)).await?, 503);
    let first = scene.fleet.id(0).to_string();
    eventually("the other node knows who was refused", async || {
        limited(&scene, 1)
            .await
            .is_ok_and(|limited| limited["told"] == first.as_str())
    })
    .await;
    let asked = scene.fake.records().len();
    let (_, wanted) = scene.fleet.content_of_home(1, 3_000);
    let path = scene.add(&wanted);
    for _ in 0..3 {
        assert_eq!(ask(1, &path).await?, 503);
    }
    assert_eq!(scene.fake.records().len(), asked, "nobody asks");
    scene.fake.heal();
    eventually("the limit has ended", async || {
        scene.pull(1, &path, &wanted).await.is_ok()
    })
    .await;
    assert_eq!(limited(&scene, 1).await?, Value::Null);
    Ok(())
}
