//! Nodes that die, hang, or wait for a slow upstream in the middle of a blob: no pull through a
//! living node fails, and only bytes that died with a node leave the upstream again.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::join_all;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Fake, Gate, Then, When, noise};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::load::crowd::{Client, all, stampede};

const MIB: usize = 1 << 20;

/// The blob on its way when something happens takes four seconds from the upstream.
const BLOB: usize = 16 * MIB;
const RATE: u64 = 4 << 20;

/// What a client has when it happens.
const BEGUN: usize = 4 * MIB;

/// What a home may have of a blob that it has not passed on, and what is on its way to it: half a second.
const IN_HANDS: usize = 2 * MIB;

/// What the system goes on taking from the upstream for a process that hangs, until its buffers are full.
const HUNG_SOCKETS: usize = 6 * MIB;

/// Reads that ended without a chunk.
const RETRIES: &str = "millrace_pull_peer_retries_total";

/// Three takers read, and each is told after 8 s that there is no chunk yet: longer than one may bring
/// nothing (10 s), shorter than an upstream may be silent (30 s).
const TOLD_TWICE: f64 = 6.0;

/// Clients wait so long for headers (CLIENT-CONTRACT): with a hung home in the way it is less.
const HEADERS_DUE: Duration = Duration::from_secs(25);

fn slow(scene: &Scene) {
    scene
        .fake
        .on(When::get("/blobs/"), Then::healthy().rate(RATE));
}

#[tokio::test]
async fn the_home_is_killed_mid_blob() -> Result<()> {
    let mut scene = Scene::start(Fleet::of(4)).await?;
    slow(&scene);
    let (_, content) = scene.fleet.content_of_home(3, BLOB);
    let path = scene.add(&content);
    let mut clients = Vec::new();
    for node in 0..3 {
        clients.push(scene.open(node, &path, &content).await?);
    }
    for client in &mut clients {
        client.until(BEGUN).await?;
    }
    scene.fleet.kill(3);
    all(join_all(clients.into_iter().map(Client::finish)).await)?;
    // What the home had and passed on is not fetched again; some was in its hands alone.
    let sent = scene.fake.sent_bytes("/blobs/");
    assert!(sent <= (BLOB + IN_HANDS) as u64, "{sent} of {BLOB}");
    Ok(())
}

#[tokio::test]
async fn what_a_taker_had_of_a_home_that_dies_late_does_not_leave_the_upstream_again() -> Result<()>
{
    // After longer than hops are tried without a byte: 8 s.
    const SLOW: u64 = 5 << 18;
    const LATE: usize = 12 * MIB;
    let mut scene = Scene::start(Fleet::of(4)).await?;
    scene
        .fake
        .on(When::get("/blobs/"), Then::healthy().rate(SLOW));
    let (digest, content) = scene.fleet.content_of_home(3, BLOB);
    let path = scene.add(&content);
    let next = scene.fleet.walk(&digest)[1];
    let taker = (0..3).find(|node| *node != next).expect("two are left");
    let mut client = scene.open(taker, &path, &content).await?;
    client.until(LATE).await?;
    scene.fleet.kill(3);
    client.finish().await?;
    let sent = scene.fake.sent_bytes("/blobs/");
    assert!(sent <= (BLOB + IN_HANDS) as u64, "{sent} of {BLOB}");
    // The next home has fetched the rest for whoever comes, and collected what was there.
    let next = scene.fleet.node(next);
    let collected = next.metric("millrace_pull_peer_received_bytes_total", &[]);
    let collected = collected.await?.unwrap_or_default();
    assert!(collected >= (LATE - MIB) as f64, "{collected} collected");
    Ok(())
}

#[tokio::test]
async fn the_owner_of_a_zone_is_killed_mid_blob() -> Result<()> {
    let plan = Fleet::of(5).zones(&["north", "north", "south", "south", "south"]);
    let mut scene = Scene::start(plan).await?;
    slow(&scene);
    let zones: Vec<String> = (0..5)
        .map(|node| scene.fleet.zone(node).to_owned())
        .collect();
    let (digest, content) = scene
        .fleet
        .content_where(BLOB, |walk| zones[walk[0]] == "north");
    let owner = scene.fleet.owners("south", &digest)[0];
    let path = scene.add(&content);
    let mut clients = Vec::new();
    for node in (2..5).filter(|node| *node != owner) {
        clients.push(scene.open(node, &path, &content).await?);
    }
    for client in &mut clients {
        client.until(BEGUN).await?;
    }
    scene.fleet.kill(owner);
    all(join_all(clients.into_iter().map(Client::finish)).await)?;
    assert_eq!(
        scene.fake.sent_bytes("/blobs/"),
        BLOB as u64,
        "the home lives"
    );
    Ok(())
}

#[tokio::test]
async fn every_second_node_is_killed_mid_blob() -> Result<()> {
    let mut scene = Scene::start(Fleet::of(6)).await?;
    slow(&scene);
    let (_, content) = scene.fleet.content_of_home(1, BLOB);
    let path = scene.add(&content);
    let mut clients = Vec::new();
    for node in 0..6 {
        let mut client = scene.open(node, &path, &content).await?;
        client.until(MIB).await?;
        // Clients of nodes that die are not asked how it ended.
        clients.extend((node % 2 == 0).then_some(client));
    }
    for node in [1, 3, 5] {
        scene.fleet.kill(node);
    }
    all(join_all(clients.into_iter().map(Client::finish)).await)?;
    let sent = scene.fake.sent_bytes("/blobs/");
    assert!(sent <= (BLOB + IN_HANDS) as u64, "{sent} of {BLOB}");
    scene.fleet.agree().await;
    Ok(())
}

#[tokio::test]
async fn a_hung_home_costs_seconds_and_no_pull() -> Result<()> {
    let scene = Scene::start(Fleet::of(4)).await?;
    let (_, content) = scene.fleet.content_of_home(3, 4 * MIB);
    let path = scene.add(&content);
    scene.fleet.hang(3);
    let start = Instant::now();
    let pulled = scene.pull(0, &path, &content).await?;
    assert!(pulled.first_byte < HEADERS_DUE / 2, "{:?}", start.elapsed());
    // Once it is suspected, it costs nothing at all.
    scene.fleet.doubted(1, 3).await;
    let (_, other) = scene.fleet.content_where(MIB, |walk| walk[0] == 3);
    let other_path = scene.add(&other);
    let pulled = scene.pull(1, &other_path, &other).await?;
    assert!(pulled.last_byte < Duration::from_secs(2), "{pulled:?}");
    scene.fleet.wake(3);
    scene.fleet.agree().await;
    Ok(())
}

#[tokio::test]
async fn a_home_that_hangs_mid_blob_stops_no_client() -> Result<()> {
    let scene = Scene::start(Fleet::of(4)).await?;
    slow(&scene);
    let (_, content) = scene.fleet.content_of_home(3, BLOB);
    let path = scene.add(&content);
    let mut clients = Vec::new();
    for node in 0..4 {
        clients.push(scene.open(node, &path, &content).await?);
    }
    for client in &mut clients {
        client.until(BEGUN).await?;
    }
    let through_home = clients.pop().expect("four clients");
    scene.fleet.hang(3);
    let hung = Instant::now();
    let pulled = join_all(clients.into_iter().map(Client::finish)).await;
    let (took, sent) = (hung.elapsed(), scene.fake.sent_bytes("/blobs/"));
    scene.fleet.wake(3);
    all(pulled)?;
    // Three seconds until it is suspect, and two for the rest.
    assert!(took < HEADERS_DUE / 2, "{took:?}");
    // The others meet at the next home, which fetches for all of them.
    let once = BLOB + IN_HANDS + HUNG_SOCKETS;
    assert!(sent <= once as u64, "{sent} of {BLOB}");
    through_home.finish().await?;
    scene.fleet.agree().await;
    let sent = scene.fake.sent_bytes("/blobs/");
    all(stampede(scene.clients(&[0, 1, 2, 3], 1), &path, &content).await)?;
    assert_eq!(scene.fake.sent_bytes("/blobs/"), sent, "everybody has it");
    Ok(())
}

#[tokio::test]
async fn a_slow_upstream_is_no_dead_home() -> Result<()> {
    let scene = Scene::start(Fleet::of(4)).await?;
    let (_, content) = scene.fleet.content_of_home(3, MIB);
    let path = scene.add(&content);
    // Longer than silence that counts as failure (3 s) and than all hops together wait for a peer
    // that says nothing (8 s).
    let slow = Then::healthy().delay(Duration::from_secs(10));
    scene.fake.on(When::get("/blobs/"), slow);
    let clients = scene.clients(&[0, 1, 2, 3], 3);
    let seen = stampede(clients, &path, &content).await;
    all(seen)?;
    assert_eq!(scene.fake.count("GET", "/blobs/"), 1);
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_stands_still_mid_blob_makes_nobody_a_stalled_peer() -> Result<()> {
    let scene = Scene::start(Fleet::of(4)).await?;
    let (_, content) = scene.fleet.content_of_home(3, 4 * MIB);
    let path = scene.add(&content);
    let gate = Gate::default();
    let still = Then::healthy().stall(2 * MIB as u64, &gate);
    scene.fake.on(When::get("/blobs/"), still);
    let clients = scene.clients(&[0, 1, 2, 3], 2);
    let pulls = stampede(clients, &path, &content);
    let pause = async {
        eventually("all were told twice that there is none yet", async || {
            let told = scene.fleet.sum(RETRIES, &["reason=\"not_yet\""]).await;
            told.is_ok_and(|told| told >= TOLD_TWICE)
        })
        .await;
        gate.open();
    };
    let (seen, ()) = tokio::join!(pulls, pause);
    all(seen)?;
    assert_eq!(scene.fake.count("GET", "/blobs/"), 1);
    let left = scene
        .fleet
        .sum("millrace_pull_peers_left_alone_total", &[])
        .await?;
    assert!(left.abs() < f64::EPSILON, "{left} were left alone");
    Ok(())
}

#[tokio::test]
async fn a_holder_serves_while_home_and_owner_are_dead() -> Result<()> {
    let mut scene = Scene::start(Fleet::of(5)).await?;
    let (digest, content) = scene.fleet.content_of_home(3, 2 * MIB);
    let path = scene.add(&content);
    let walk = scene.fleet.walk(&digest);
    // Neither home now nor after the home's death.
    let others: Vec<usize> = (0..5).filter(|node| !walk[..3].contains(node)).collect();
    scene.pull(others[0], &path, &content).await?;
    scene.fake.stop().await;
    scene.fleet.kill(walk[0]);
    scene.fleet.agree().await;
    scene.pull(others[1], &path, &content).await?;
    assert_eq!(scene.fake.count("GET", "/blobs/"), 1);
    Ok(())
}

#[tokio::test]
async fn a_crashed_node_is_asked_nothing_after_seconds_and_comes_back_with_what_it_held()
-> Result<()> {
    let mut scene = Scene::start(Fleet::of(3)).await?;
    let (_, content) = scene.fleet.content_of_home(2, 2 * MIB);
    let path = scene.add(&content);
    scene.pull(2, &path, &content).await?;
    scene.fleet.committed(2).await;
    scene.fleet.kill(2);
    let killed = Instant::now();
    scene.fleet.doubted(0, 2).await;
    scene.fleet.doubted(1, 2).await;
    assert!(
        killed.elapsed() < Duration::from_secs(4),
        "{:?}",
        killed.elapsed()
    );
    scene.fleet.agree_on(&[0, 1], &[0, 1]).await;
    assert!(
        killed.elapsed() < Duration::from_secs(15),
        "{:?}",
        killed.elapsed()
    );
    scene.fake.stop().await;
    scene.fleet.restart(&[2]).await?;
    scene.fleet.agree().await;
    scene.pull(0, &path, &content).await?;
    Ok(())
}

#[tokio::test]
async fn a_client_hardly_waits_for_a_holder_that_was_killed_just_before() -> Result<()> {
    let mut scene = Scene::start(Fleet::of(4)).await?;
    let (digest, content) = scene.fleet.content_of_home(3, MIB);
    let path = scene.add(&content);
    scene.pull(3, &path, &content).await?;
    scene.fleet.committed(3).await;
    let asker = scene.fleet.walk(&digest)[2];
    scene.fleet.kill(3);
    let pulled = scene.pull(asker, &path, &content).await?;
    // Less than the silence of a peer, which is 3 s: the end of its other connection shows sooner
    // that it is dead.
    assert!(pulled.first_byte < Duration::from_secs(2), "{pulled:?}");
    Ok(())
}

#[tokio::test]
async fn a_hung_node_is_asked_nothing_after_seconds_and_loses_its_seat() -> Result<()> {
    let fleet = Fleet::of(3).start().await?;
    fleet.hang(2);
    let hung = Instant::now();
    fleet.doubted(0, 2).await;
    fleet.doubted(1, 2).await;
    assert!(
        hung.elapsed() < Duration::from_secs(4),
        "{:?}",
        hung.elapsed()
    );
    fleet.agree_on(&[0, 1], &[0, 1]).await;
    assert!(
        hung.elapsed() < Duration::from_secs(15),
        "{:?}",
        hung.elapsed()
    );
    fleet.wake(2);
    fleet.agree().await;
    Ok(())
}

#[tokio::test]
async fn an_image_is_had_by_tag_from_the_one_node_that_is_left_of_those_that_knew_it() -> Result<()>
{
    let fake = Fake::start().await?;
    let plan = Fleet::of(3).upstream("fake", &fake.url());
    let fleet = plan.start().await?;
    let mut scene = Scene { fake, fleet };
    let layers = [noise(1, 3 * MIB), noise(2, MIB)];
    // So many that most have another home than the node that knows them.
    let tags = ["1", "2", "3", "4", "5", "6", "7", "8"];
    let images = tags.map(|tag| scene.fake.add_image("team/app", tag, &layers));
    for (tag, image) in tags.iter().zip(&images) {
        let content = (image, &layers[..]);
        scene.pull_image(0, ("team/app", tag), content).await?;
    }
    scene.fleet.committed(0).await;
    scene.fake.stop().await;
    // Homes of the tag, the manifest and the blobs are then others, which never heard of them.
    for _ in 0..3 {
        scene.fleet.join(&plan).await?;
    }
    scene.fleet.kill(1);
    scene.fleet.kill(2);
    scene.fleet.agree().await;
    for node in [3, 4, 5] {
        for (tag, image) in tags.iter().zip(&images) {
            let content = (image, &layers[..]);
            scene.pull_image(node, ("team/app", tag), content).await?;
        }
    }
    Ok(())
}
