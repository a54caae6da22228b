//! Who belongs to a cluster, while clients pull: secrets are replaced, a member is removed, somebody
//! comes with an old secret.

use std::time::Duration;

use anyhow::{Result, ensure};
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Then, When, noise};
use millrace_cluster_tests::fleet::{Fleet, Plan, Scene, write_secret};
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::load::crowd::{all, stampede};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// Slow enough that a blob is on its way while members change.
const SLOW: u64 = 4 << 20;

/// How long a node may be a member after its removal: the file is read every two seconds, the others are
/// told at once. One that only falls silent is a member for twelve.
const AT_ONCE: Duration = Duration::from_secs(6);

/// The secret that a fleet begins with is in its file; these come after it.
const NEW: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

#[tokio::test]
async fn a_secret_is_replaced_while_clients_pull_and_the_old_one_opens_nothing() -> Result<()> {
    let plan = Fleet::of(3);
    let mut scene = Scene::start(plan).await?;
    let secrets = scene.fleet.secret_file();
    let old = std::fs::read_to_string(&secrets)?.trim().to_owned();
    let held = noise(1, 2 * MIB);
    let path = scene.add(&held);
    scene.pull(0, &path, &held).await?;
    for (seed, accepted) in [(2, &[NEW, &old][..]), (3, &[NEW])] {
        scene
            .fake
            .on(When::get("/blobs/"), Then::healthy().rate(SLOW));
        let content = noise(seed, 8 * MIB);
        let path = scene.add(&content);
        let clients = scene.clients(&[0, 1, 2], 2);
        let (pulled, written) =
            futures_util::future::join(stampede(clients, &path, &content), async {
                write_secret(&secrets, accepted)
            })
            .await;
        written?;
        all(pulled)?;
        scene.fake.heal();
        scene.fleet.agree().await;
    }
    let folder = TempDir::new()?;
    let late = folder.path().join("secret");
    write_secret(&late, &[&old])?;
    let stranger = plan_before(&scene).set("cluster/secret_file", late.display().to_string());
    let stranger = scene.fleet.join(&stranger).await?;
    eventually("it is told why nobody lets it in", async || {
        let status = scene.fleet.node(stranger).status().await;
        status.is_ok_and(|status| status["cluster"]["join"].to_string().contains("secret"))
    })
    .await;
    scene.fleet.agree_on(&[0, 1, 2], &[0, 1, 2]).await;
    scene.fake.stop().await;
    let refused = Request::get(&path).send(scene.fleet.node(stranger).address());
    let refused = refused.await?;
    ensure!(refused.status() != 200, "it has what the members hold");
    scene.pull(2, &path, &held).await?;
    Ok(())
}

#[tokio::test]
async fn a_secret_file_that_goes_bad_is_named_for_each_reason_and_stops_nobody() -> Result<()> {
    let mut scene = Scene::start(Fleet::of(2)).await?;
    let secrets = scene.fleet.secret_file();
    let old = std::fs::read_to_string(&secrets)?.trim().to_owned();
    let (_, held) = scene.fleet.content_of_home(0, MIB);
    let path = scene.add(&held);
    let named = |scene: &Scene| {
        let log = scene.fleet.node(0).log();
        log.lines()
            .filter(|line| line.contains("stays in force"))
            .count()
    };
    for (number, content) in ["", "short"].into_iter().enumerate() {
        std::fs::write(&secrets, content)?;
        eventually("it is named", async || named(&scene) > number).await;
        scene.fleet.agree().await;
        scene.pull(1, &path, &held).await?;
        assert_eq!(named(&scene), number + 1, "once");
    }
    write_secret(&secrets, &[&old])?;
    let late = scene.fleet.join(&plan_before(&scene)).await?;
    scene.fleet.agree().await;
    scene.pull(late, &path, &held).await?;
    Ok(())
}

/// The plan of nodes that come later.
fn plan_before(scene: &Scene) -> Plan {
    Fleet::of(scene.fleet.size() + 1).upstream("fake", &scene.fake.url())
}

#[tokio::test]
async fn a_member_that_is_removed_gets_no_byte_more_and_no_client_of_others_notices() -> Result<()>
{
    let folder = TempDir::new()?;
    let denied = folder.path().join("denied");
    std::fs::write(&denied, "")?;
    let path = denied.display().to_string();
    // One node is told; the others hear it from that one.
    let plan = Fleet::of(4).each(move |index, node| match index {
        0 => node.set("cluster/deny_file", path.clone()),
        _ => node,
    });
    let scene = Scene::start(plan).await?;
    let removed = 3;
    let (_, held) = scene.fleet.content_of_home(1, 2 * MIB);
    let held_path = scene.add(&held);
    scene.pull(1, &held_path, &held).await?;
    scene
        .fake
        .on(When::get("/blobs/"), Then::healthy().rate(SLOW));
    let (_, content) = scene.fleet.content_of_home(0, 16 * MIB);
    let path = scene.add(&content);
    let mut through_removed = scene.open(removed, &path, &content).await?;
    through_removed.until(MIB).await?;
    let mut staying = Vec::new();
    for node in 0..3 {
        staying.push(scene.open(node, &path, &content).await?);
    }
    std::fs::write(&denied, scene.fleet.id(removed).to_string())?;
    let agreed = scene.fleet.agree_within(AT_ONCE, &[0, 1, 2], &[0, 1, 2]);
    ensure!(agreed.await.is_some(), "a member after {AT_ONCE:?}");
    let received = || async {
        let name = "millrace_peer_received_bytes_total";
        let received = scene.fleet.node(removed).metric(name, &[]).await?;
        anyhow::Ok(received.unwrap_or_default())
    };
    let before = received().await?;
    for client in staying {
        client.finish().await?;
    }
    // It goes on by itself: what its own client began is not cut.
    through_removed.finish().await?;
    scene.fake.stop().await;
    let node = scene.fleet.node(removed);
    let refused = tokio::time::timeout(
        Duration::from_secs(60),
        Request::get(&held_path).send(node.address()),
    );
    let refused = refused.await??;
    ensure!(refused.status() != 200, "it has what the members hold");
    assert_eq!(received().await?, before, "bytes after the removal");
    Ok(())
}
