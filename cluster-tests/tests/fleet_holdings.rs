//! Nodes that have told each other what they hold: nobody is asked, everybody's copies are found.

use anyhow::Result;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Gate, Then, When, noise};
use millrace_cluster_tests::fleet::{Fleet, Scene};

const MIB: usize = 1 << 20;

/// Waits until all have told all what they hold.
async fn in_sync(fleet: &Fleet) {
    let others = fleet.running().len() as f64 - 1.0;
    for index in fleet.running() {
        eventually("all others have told what they hold", async || {
            let told = fleet
                .node(index)
                .metric("millrace_pull_in_sync_members", &[]);
            told.await.is_ok_and(|told| told == Some(others))
        })
        .await;
    }
}

/// How many questions who holds something were asked.
async fn questions(fleet: &Fleet) -> Result<f64> {
    let kind = ["kind=\"holds\""];
    fleet.sum("millrace_peer_questions_sent_total", &kind).await
}

#[tokio::test]
async fn what_is_cold_and_what_another_node_has_cost_no_question() -> Result<()> {
    let mut scene = Scene::start(Fleet::of(5)).await?;
    in_sync(&scene.fleet).await;
    let before = questions(&scene.fleet).await?;
    for node in 0..5 {
        let content = noise(node as u64, MIB);
        let path = scene.add(&content);
        scene.pull(node, &path, &content).await?;
        scene.pull((node + 1) % 5, &path, &content).await?;
    }
    assert_eq!(scene.fake.count("GET", "/blobs/"), 5);
    assert_eq!(questions(&scene.fleet).await?, before);
    // A home that is gone leaves a copy with who pulled; the next home has been told of it.
    let (digest, content) = scene.fleet.content_of_home(4, MIB);
    let path = scene.add(&content);
    let walk = scene.fleet.walk(&digest);
    scene.pull(walk[3], &path, &content).await?;
    scene.fleet.committed(walk[3]).await;
    scene.fleet.kill(4);
    scene.fleet.agree().await;
    in_sync(&scene.fleet).await;
    let before = questions(&scene.fleet).await?;
    let asked = scene.fake.records().len();
    scene.pull(walk[1], &path, &content).await?;
    assert_eq!(questions(&scene.fleet).await?, before);
    assert_eq!(scene.fake.records().len(), asked, "the upstream is asked");
    Ok(())
}

#[tokio::test]
async fn a_node_that_pulls_is_seen_to_be_busy() -> Result<()> {
    let scene = Scene::start(Fleet::of(2)).await?;
    let gate = Gate::default();
    let held = Then::healthy().hold(&gate);
    scene.fake.on(When::get("/blobs/"), held);
    let (_, content) = scene.fleet.content_of_home(1, MIB);
    let path = scene.add(&content);
    let busy = scene.fleet.id(1);
    let load = async || -> Option<u64> {
        let seen = scene.fleet.seen(0).await.ok()?;
        seen.member(busy)?.all["load"].as_u64()
    };
    assert_eq!(load().await, Some(0));
    let pull = scene.pull(1, &path, &content);
    let watch = async {
        eventually("the pull is announced", async || load().await == Some(1)).await;
        gate.open();
        anyhow::Ok(())
    };
    futures_util::try_join!(pull, watch)?;
    eventually("its end is announced", async || load().await == Some(0)).await;
    Ok(())
}
