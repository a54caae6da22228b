//! What this node itself lacks is neither its upstream's fault nor held against it.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::Result;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::descriptors::Starved;
use millrace_cluster_tests::fake::{Fake, Guard, Image, Scene, code_of, noise};
use millrace_cluster_tests::processes::Alone;
use tempfile::TempDir;

/// With three tries each, more failures in a row than a breaker allows.
const REQUESTS: usize = 3;

/// What the log says of it.
const LOGGED: &str = "the cause is on this node";

/// What a client is told who cannot be served for want of descriptors, and of processes.
const NO_FILES: &str = "too many open files; raise the limit";
const NO_PROCESSES: &str = "no more processes can be started; raise the limit";

/// How long a client waits that is not let in: time for several tries to accept it.
const IMPATIENT: Duration = Duration::from_millis(500);

/// Waits until the node has read what it reads at its start.
async fn settle(scene: &Scene) {
    let status = async || scene.node.status().await.unwrap_or_default();
    let settled = async || status().await["store"]["index_ready"] == true;
    eventually("the node has read what it reads at its start", settled).await;
}

/// Demands that a client is told what this node lacks.
async fn assert_told(scene: &Scene, words: &str) -> Result<()> {
    let answer = scene.send(scene.manifest("app", "latest")).await?;
    assert_eq!(answer.status(), 503);
    assert_eq!(code_of(&answer).as_deref(), Some("UNAVAILABLE"));
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(text.contains(words), "{text}");
    Ok(())
}

/// Demands that the upstream is as it was, and that the log says once what is wrong.
async fn assert_blameless(scene: &Scene) -> Result<()> {
    let status = scene.node.status().await?;
    let upstreams = status["upstreams"].as_array().expect("a list");
    let upstream = upstreams.iter().find(|entry| entry["name"] == "fake");
    let upstream = upstream.expect("configured");
    assert_eq!(upstream["away"], false, "{upstream}");
    assert_eq!(upstream["endpoints"][0]["breaker"], "closed", "{upstream}");
    assert!(upstream["last_error"].is_null(), "{upstream}");
    assert_eq!(scene.node.log().matches(LOGGED).count(), 1);
    Ok(())
}

#[tokio::test]
async fn a_node_without_descriptors_blames_nobody_and_says_what_to_do() -> Result<()> {
    let scene = Scene::start().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 1000)]);
    settle(&scene).await;
    // One for the client; none is left for the upstream.
    let starved = Starved::leave(scene.node.process_id(), 1).await?;
    for _ in 0..REQUESTS {
        assert_told(&scene, NO_FILES).await?;
    }
    assert!(scene.fake.records().is_empty());
    drop(starved);
    assert_blameless(&scene).await?;
    scene.pull("app", "latest", &image).await
}

/// A node that gets its login from a helper, before an upstream that wants it, with an image.
async fn helped(folder: &TempDir) -> Result<(Scene, Image)> {
    let helper = folder.path().join("helper");
    std::fs::write(
        &helper,
        "#!/bin/sh\necho '{\"Username\":\"ci\",\"Secret\":\"s\"}'\n",
    )?;
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755))?;
    let fake = Fake::start().await?;
    let image = fake.add_image("app", "latest", &[noise(1, 1000)]);
    fake.protect(Guard::Basic("ci".to_owned(), "s".to_owned()));
    let command = helper.display().to_string();
    let scene = Scene::of(fake, |node| {
        node.set("upstreams/fake/exec/command", command)
    })
    .await?;
    settle(&scene).await;
    Ok((scene, image))
}

#[tokio::test]
async fn a_helper_that_cannot_be_started_for_want_of_descriptors_is_held_against_nobody()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let (scene, image) = helped(&folder).await?;
    // One for the client and one for the upstream; none is left for the helper.
    let starved = Starved::leave(scene.node.process_id(), 2).await?;
    for _ in 0..REQUESTS {
        assert_told(&scene, NO_FILES).await?;
    }
    assert!(!scene.fake.records().is_empty(), "the upstream was asked");
    drop(starved);
    assert_blameless(&scene).await?;
    scene.pull("app", "latest", &image).await
}

#[tokio::test]
async fn a_helper_that_cannot_be_started_for_want_of_processes_is_held_against_nobody() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    let (scene, image) = helped(&folder).await?;
    let alone = Alone::keep(scene.node.process_id())?;
    for _ in 0..REQUESTS {
        assert_told(&scene, NO_PROCESSES).await?;
    }
    drop(alone);
    assert_blameless(&scene).await?;
    scene.pull("app", "latest", &image).await
}

#[tokio::test]
async fn a_node_that_cannot_accept_says_so_once_and_once_when_it_can_again() -> Result<()> {
    let scene = Scene::start().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 1000)]);
    settle(&scene).await;
    let starved = Starved::leave(scene.node.process_id(), 0).await?;
    for _ in 0..2 {
        let answer = scene.send(scene.manifest("app", "latest"));
        let answer = tokio::time::timeout(IMPATIENT, answer).await;
        assert!(answer.is_err(), "{answer:?}");
    }
    let said = |words: &str| scene.node.log().matches(words).count();
    let begun = async || said("cannot accept connections") == 1;
    eventually("the log says so", begun).await;
    assert_eq!(said("connections are accepted again"), 0);
    drop(starved);
    scene.pull("app", "latest", &image).await?;
    let over = async || said("connections are accepted again") == 1;
    eventually("the log says that it is over", over).await;
    assert_eq!(said("cannot accept connections"), 1);
    Ok(())
}
