//! Nodes that come, leave, are cut off from each other, and see different clusters: pulls go on.

use std::cell::Cell;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Fake, Then, When, noise, sha256};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::load::crowd::{all, stampede};
use millrace_cluster_tests::netns::Net;
use serde_json::json;

const MIB: usize = 1 << 20;

/// What a home may have of a blob that it has not passed on, and what is on its way to it.
const IN_HANDS: u64 = 2 << 20;

/// At which an upstream sends, so that this is what comes in half a second, which is long for a word that
/// a node leaves.
const SLOW: u64 = 2 * IN_HANDS;

/// The repository of tags.
const TAGGED: &str = "team/app";

/// Blobs of the fake, and where nodes serve them.
fn blobs(fake: &Fake, seeds: std::ops::Range<u64>, size: usize) -> Vec<(String, Bytes)> {
    let contents = seeds.map(|seed| noise(seed, size));
    contents
        .map(|content| {
            let digest = fake.add_blob("app", content.clone());
            (Scene::path(&digest), content)
        })
        .collect()
}

#[tokio::test]
async fn nodes_join_and_leave_under_load() -> Result<()> {
    // On its way for longer than half a second, so that every change meets one.
    const SIZE: usize = 3 * MIB;
    let fake = Fake::start().await?;
    fake.on(When::get("/blobs/"), Then::healthy().rate(SLOW));
    let plan = Fleet::of(4).upstream("fake", &fake.url());
    let mut fleet = plan.start().await?;
    let staying = fleet.doors(&[0, 1, 2]);
    let (made, is_over) = (Cell::new(0), Cell::new(false));
    let load = async {
        while !is_over.get() {
            let number = made.replace(made.get() + 1);
            let (path, content) = blobs(&fake, number..number + 1, SIZE).remove(0);
            let doors = (0..6).map(|client| staying[(number as usize + client) % 3]);
            all(stampede(doors, &path, &content).await).with_context(|| path.clone())?;
            // A change of the ring may cost what somebody has in hands of the blob that is on its way.
            let sent = fake.sent_bytes(&sha256(&content).to_string());
            ensure!(sent <= SIZE as u64 + IN_HANDS, "{path}: {sent}");
        }
        anyhow::Ok(())
    };
    let change = async {
        eventually("the load has begun", async || made.get() > 2).await;
        fleet.leave(3).await?;
        fleet.join(&plan).await?;
        fleet.restart(&[3]).await?;
        fleet.agree().await;
        let then = made.get();
        eventually("the load goes on", async || made.get() > then + 2).await;
        is_over.set(true);
        Ok(())
    };
    let ((), ()) = futures_util::try_join!(load, change)?;
    Ok(())
}

#[tokio::test]
async fn a_home_that_leaves_fetches_nothing_more_for_those_who_go_elsewhere() -> Result<()> {
    const HOME: usize = 3;
    let mut scene = Scene::start(Fleet::of(4)).await?;
    let (_, content) = scene.fleet.content_of_home(HOME, 8 * MIB);
    let path = scene.add(&content);
    scene
        .fake
        .on(When::get("/blobs/"), Then::healthy().rate(SLOW));
    let clients = scene.clients(&[0, 1, 2], 2);
    let pulls = async { all(stampede(clients, &path, &content).await) };
    let change = async {
        eventually("the home fetches it", async || {
            scene.fake.count("GET", "/blobs/") > 0
        })
        .await;
        scene.fleet.leave(HOME).await
    };
    futures_util::try_join!(pulls, change)?;
    let (sent, size) = (scene.fake.sent_bytes("/blobs/"), content.len() as u64);
    ensure!(sent <= size + IN_HANDS, "{sent} of {size}");
    Ok(())
}

/// Demands that everybody places by the weights that the fleet has now, and shows node `changed` with
/// `weight` and a share that fits among others of weight 1.
async fn expect_share(fleet: &Fleet, changed: usize, weight: u32) -> Result<()> {
    let placement = fleet.placement(&fleet.running());
    fleet.place_by(&fleet.running(), &placement).await;
    let share = placement.share(&fleet.id(changed));
    let fair = f64::from(weight) / (f64::from(weight) + fleet.size() as f64 - 1.0);
    ensure!((share - fair).abs() < fair / 10.0, "{share} of {fair}");
    for node in fleet.running() {
        let seen = fleet.seen(node).await?;
        let member = seen.member(fleet.id(changed)).context("a member")?;
        ensure!(member.all["weight"] == weight, "{}", member.all);
        let shown = member.all["share"].as_f64().context("a share")?;
        ensure!((shown - share).abs() < 1e-9, "{shown} of {share}");
    }
    Ok(())
}

#[tokio::test]
async fn a_node_that_comes_back_with_another_weight_gets_its_share_and_no_pull_notices()
-> Result<()> {
    const CHANGED: usize = 3;
    const NODES: [usize; 4] = [0, 1, 2, CHANGED];
    // On its way while the node leaves, and while it comes back.
    const LONG: usize = 16 * MIB;
    let mut scene = Scene::start(Fleet::of(4)).await?;
    let held = blobs(&scene.fake, 0..24, MIB / 2);
    for (number, (path, content)) in held.iter().enumerate() {
        scene.pull(number % 4, path, content).await?;
    }
    for (weight, seeds) in [(4, 100..116), (1, 200..216)] {
        let size = LONG + weight as usize;
        let (digest, long) = scene.fleet.content_of_home(CHANGED, size);
        let path = scene.add(&long);
        let digest = digest.to_string();
        let slow = Then::healthy().rate(SLOW);
        scene.fake.on(When::get(&digest), slow);
        let clients = scene.clients(&[0, 1, 2], 2);
        let pulls = async { all(stampede(clients, &path, &long).await) };
        futures_util::try_join!(pulls, scene.fleet.reweigh(CHANGED, weight))?;
        let sent = scene.fake.sent_bytes(&digest);
        ensure!(sent <= size as u64 + 3 * IN_HANDS, "{sent} of {size}");
        scene.fleet.agree().await;
        expect_share(&scene.fleet, CHANGED, weight).await?;
        let fetched = scene.fake.count("GET", "/blobs/");
        for (path, content) in &held {
            all(stampede(scene.clients(&NODES, 1), path, content).await)?;
        }
        let again = scene.fake.count("GET", "/blobs/") - fetched;
        ensure!(again == 0, "{again} requests for what the cluster holds");
        for (path, content) in blobs(&scene.fake, seeds, MIB / 2) {
            all(stampede(scene.clients(&NODES, 2), &path, &content).await)?;
            let fetched = scene.fake.count("GET", &sha256(&content).to_string());
            ensure!(fetched == 1, "{fetched} requests for a new blob");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_leaving_node_is_gone_at_once() -> Result<()> {
    let mut fleet = Fleet::of(3).start().await?;
    fleet.leave(2).await?;
    // Its process has ended, so it said that it leaves; a crash would be noticed after seconds.
    let limit = std::time::Duration::from_secs(2);
    let agreed = fleet.agree_within(limit, &[0, 1], &[0, 1]).await;
    ensure!(agreed.is_some(), "{}", fleet.seen(0).await?);
    Ok(())
}

#[tokio::test]
async fn two_nodes_that_cannot_reach_each_other_stop_no_client() -> Result<()> {
    let net = Net::of(4).await?;
    let scene = Scene::on(&net, Fleet::of(4)).await?;
    // Both still hear of each other through 2 and 3, and believe that they can be asked.
    net.split(&[0], &[1])?;
    // For nodes 2 and 3 the home is 0 or 1; those two cannot ask each other.
    for home in [0, 1] {
        let (_, content) = scene.fleet.content_of_home(home, 4 * MIB);
        let path = scene.add(&content);
        let clients = scene.clients(&[0, 1, 2, 3], 4);
        let before = scene.fake.sent_bytes("/blobs/");
        all(stampede(clients, &path, &content).await)?;
        let sent = scene.fake.sent_bytes("/blobs/") - before;
        assert!(sent <= 2 * content.len() as u64, "{sent}");
    }
    net.heal()?;
    scene.fleet.agree().await;
    Ok(())
}

#[tokio::test]
async fn a_split_cluster_serves_in_both_halves_and_heals_by_itself() -> Result<()> {
    let net = Net::of(4).await?;
    let scene = Scene::on(&net, Fleet::of(4)).await?;
    let blobs = blobs(&scene.fake, 0..6, MIB);
    net.split(&[0, 1], &[2, 3])?;
    scene.fleet.agree_on(&[0, 1], &[0, 1]).await;
    scene.fleet.agree_on(&[2, 3], &[2, 3]).await;
    for (number, (path, content)) in blobs.iter().enumerate() {
        // Half of them in one half only.
        let nodes: &[usize] = if number % 2 == 0 {
            &[0, 1, 2, 3]
        } else {
            &[number % 4 / 2 * 2]
        };
        all(stampede(scene.clients(nodes, 2), path, content).await)?;
    }
    let sent = scene.fake.sent_bytes("/blobs/");
    assert!(sent <= (2 * 3 + 3) * MIB as u64, "{sent}");
    net.heal()?;
    scene.fleet.agree().await;
    scene.fake.stop().await;
    for (path, content) in &blobs {
        all(stampede(scene.clients(&[0, 1, 2, 3], 1), path, content).await)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_tag_that_moved_while_the_cluster_was_split_is_asked_for_again_when_it_has_healed()
-> Result<()> {
    let net = Net::of(4).await?;
    // By the clock alone all that the nodes learn here is fresh until the test is long over; and
    // nothing older is given out because a check is slow.
    let plan = Fleet::of(4)
        .set(
            "upstreams/fake/tags",
            json!([{"match": "*", "policy": "ttl", "ttl": "1h"}]),
        )
        .set("cache/revalidate", "20s");
    let scene = Scene::on(&net, plan).await?;
    // Each tag has its home in the half that does not hear that it moves. The first is asked for at
    // its home before anybody else, the second at a node that has to ask the home.
    let tags = [("first", [0, 1, 2, 3]), ("second", [1, 3, 2, 0])];
    let tags = tags.map(|(name, order)| (scene.fleet.tag_of_home(0, TAGGED, name), order));
    let point_to = |tag: &str, seed| (scene.fake).add_image(TAGGED, tag, &[noise(seed, 1_000)]);
    for (tag, _) in &tags {
        let old = point_to(tag, 1);
        scene.expect_tag(&[0, 1], (TAGGED, tag), &old).await?;
    }
    net.split(&[0, 1], &[2, 3])?;
    scene.fleet.agree_on(&[0, 1], &[0, 1]).await;
    scene.fleet.agree_on(&[2, 3], &[2, 3]).await;
    for (tag, _) in &tags {
        let (old, new) = (point_to(tag, 1), point_to(tag, 2));
        scene.expect_tag(&[2, 3], (TAGGED, tag), &new).await?;
        scene.expect_tag(&[0, 1], (TAGGED, tag), &old).await?;
    }
    net.heal()?;
    scene.fleet.agree().await;
    for (tag, order) in &tags {
        let path = format!("/{TAGGED}/manifests/{tag}");
        let asked = scene.fake.count("HEAD", &path);
        let new = point_to(tag, 2);
        scene.expect_tag(order, (TAGGED, tag), &new).await?;
        assert!(scene.fake.count("HEAD", &path) > asked, "{tag}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stampede_in_both_halves_goes_on_when_they_meet_again() -> Result<()> {
    let net = Net::of(4).await?;
    let scene = Scene::on(&net, Fleet::of(4)).await?;
    net.split(&[0, 1], &[2, 3])?;
    scene.fleet.agree_on(&[0, 1], &[0, 1]).await;
    scene.fleet.agree_on(&[2, 3], &[2, 3]).await;
    let slow = Then::healthy().rate(2 << 20);
    scene.fake.on(When::get("/blobs/"), slow);
    let (path, content) = blobs(&scene.fake, 0..1, 12 * MIB).remove(0);
    let heal = async {
        eventually("both halves fetch it", async || {
            scene.fake.count("GET", "/blobs/") >= 2
        })
        .await;
        net.heal()
    };
    let clients = scene.clients(&[0, 1, 2, 3], 4);
    let (pulled, healed) =
        futures_util::future::join(stampede(clients, &path, &content), heal).await;
    healed?;
    all(pulled)?;
    // Each half had a home of its own, and neither is interrupted.
    let sent = scene.fake.sent_bytes("/blobs/");
    assert!(sent <= 2 * content.len() as u64, "{sent}");
    scene.fleet.agree().await;
    Ok(())
}

#[tokio::test]
async fn a_node_that_owns_nothing_is_a_full_member() -> Result<()> {
    let scene = Scene::start(Fleet::of(3).weights(&[1, 1, 0])).await?;
    let gate = millrace_cluster_tests::fake::Gate::default();
    scene
        .fake
        .on(When::get("/blobs/").after(8), Then::healthy().hold(&gate));
    for (number, (path, content)) in blobs(&scene.fake, 0..8, MIB).iter().enumerate() {
        assert_ne!(scene.fleet.home(&sha256(content)), 2);
        let order = if number % 2 == 0 { [2, 0] } else { [1, 2] };
        for node in order {
            scene.pull(node, path, content).await?;
        }
    }
    assert_eq!(scene.fake.count("GET", "/blobs/"), 8);
    Ok(())
}
