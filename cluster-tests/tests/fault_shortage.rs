//! What this node itself lacks is neither its upstream's fault nor held against it.

use anyhow::Result;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::descriptors::Starved;
use millrace_cluster_tests::fake::{Scene, code_of, noise};

/// With three tries each, more failures in a row than a breaker allows.
const REQUESTS: usize = 3;

/// What the log says of it.
const LOGGED: &str = "the cause is on this node";

#[tokio::test]
async fn a_node_without_descriptors_blames_nobody_and_says_what_to_do() -> Result<()> {
    let scene = Scene::start().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 1000)]);
    let status = async || scene.node.status().await.unwrap_or_default();
    let settled = async || status().await["store"]["index_ready"] == true;
    eventually("the node has read what it reads at its start", settled).await;
    // One for the client; none is left for the upstream.
    let starved = Starved::leave(scene.node.process_id(), 1).await?;
    for _ in 0..REQUESTS {
        let answer = scene.send(scene.manifest("app", "latest")).await?;
        assert_eq!(answer.status(), 503);
        assert_eq!(code_of(&answer).as_deref(), Some("UNAVAILABLE"));
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(
            text.contains("too many open files; raise the limit"),
            "{text}"
        );
    }
    assert!(scene.fake.records().is_empty());
    drop(starved);

    let status = scene.node.status().await?;
    let upstreams = status["upstreams"].as_array().expect("a list");
    let upstream = upstreams.iter().find(|entry| entry["name"] == "fake");
    let upstream = upstream.expect("configured");
    assert_eq!(upstream["away"], false, "{upstream}");
    assert_eq!(upstream["endpoints"][0]["breaker"], "closed", "{upstream}");
    assert!(upstream["last_error"].is_null(), "{upstream}");
    assert_eq!(scene.node.log().matches(LOGGED).count(), 1);
    scene.pull("app", "latest", &image).await
}
