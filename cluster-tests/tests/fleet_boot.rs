//! Nodes that are all started at once, with clients from the first moment, as after a power cut or on a
//! new rack: the first to meet are not the whole cluster. Needs root: each node has a host of its own,
//! and all have the same configuration, as README shows it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::{join, join_all, try_join_all};
use millrace_cluster_tests::condition::within;
use millrace_cluster_tests::fake::{Fake, Then, When, noise};
use millrace_cluster_tests::fleet::{Fleet, Plan, Scene};
use millrace_cluster_tests::load::crowd::{self, all, stampede};
use millrace_cluster_tests::netns::Net;

const NODES: [usize; 6] = [0, 1, 2, 3, 4, 5];

const MIB: usize = 1 << 20;

/// Slow enough that everybody asks while the blob is on its way.
const SLOW: u64 = 8 << 20;

/// Within it a client must have its first byte: 5 s until a node goes on without the others, and what
/// comes then; clients allow 25 s.
const FIRST_VIEW: Duration = Duration::from_secs(15);

/// Within it a node has written down whom it met.
const WRITTEN: Duration = Duration::from_secs(3);

/// Nodes that listen everywhere and are all told to join the first one; that one itself as well.
fn one_configuration(net: &Net) -> Plan {
    let first = format!("{}:5050", net.hosts()[0].data());
    Fleet::of(NODES.len()).on(net.hosts()).each(move |_, node| {
        node.set("cluster/listen", "0.0.0.0:5050")
            .set("cluster/join", vec![first.clone()])
            .unset("cluster/advertise")
    })
}

#[tokio::test]
async fn a_fleet_that_boots_at_once_fetches_once_and_keeps_no_client_waiting() -> Result<()> {
    let net = Net::of(NODES.len()).await?;
    let fake = Fake::start_at(net.upstream_address(0)).await?;
    let content = noise(1, 8 * MIB);
    let layers = [noise(2, MIB)];
    let path = Scene::path(&fake.add_blob("app", content.clone()));
    let image = fake.add_image("team/app", "1", &layers);
    fake.on(When::get("/blobs/"), Then::healthy().rate(SLOW));
    let plan = one_configuration(&net).upstream("fake", &fake.url());
    let blobs = plan.doors().into_iter().map(async |door| {
        crowd::opened(door).await;
        crowd::pull(door, &path, &content).await
    });
    let images = async {
        let fleet = plan.launch().await?;
        let scene = Scene { fake, fleet };
        let pull = |node| scene.pull_image(node, ("team/app", "1"), (&image, &layers));
        try_join_all(NODES.map(pull)).await?;
        anyhow::Ok(scene)
    };
    let (blobs, scene) = join(join_all(blobs), images).await;
    let scene = scene?;
    for pulled in blobs {
        let first_byte = pulled?.first_byte;
        ensure!(first_byte < FIRST_VIEW, "{first_byte:?}");
    }
    scene.fleet.agree().await;
    let bodies = scene.fake.requests("GET", "/blobs/");
    let expected = 1 + image.layers.len() + 1;
    ensure!(bodies.len() == expected, "{bodies:#?}");
    let manifests = scene.fake.requests("GET", "/manifests/");
    ensure!(manifests.len() == 1, "{manifests:#?}");
    // Who resolves a tag asks nobody first: while views differ, two may. It costs no body.
    let heads = scene.fake.count("HEAD", "/manifests/1");
    ensure!(heads <= 2, "the tag was asked for {heads} times");
    Ok(())
}

/// Waits until each of `nodes` has written down all others, for its next start.
async fn written(fleet: &Fleet, nodes: &[usize]) -> Result<()> {
    let knows_all = |node: &usize| {
        let file = fleet.node(*node).data().join("contacts.json");
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let mut others = NODES.iter().filter(|other| *other != node);
        others.all(|other| text.contains(&fleet.id(*other).to_string()))
    };
    let done = within(WRITTEN, async || nodes.iter().all(knows_all).then_some(())).await;
    done.with_context(|| format!("not all have written down whom they know within {WRITTEN:?}"))
}

/// Fills the nodes of a fleet with blobs, each with others; returns their paths and contents.
async fn fill(scene: &Scene) -> Result<Vec<(String, Bytes)>> {
    let contents = (0..24).map(|seed| noise(seed, 64 * 1024));
    let blobs: Vec<(String, Bytes)> = contents.map(|blob| (scene.add(&blob), blob)).collect();
    for (number, (path, content)) in blobs.iter().enumerate() {
        let node = NODES[number % NODES.len()];
        scene.pull(node, path, content).await?;
    }
    Ok(blobs)
}

#[tokio::test]
async fn a_fleet_that_is_restarted_at_once_asks_for_nothing_that_it_holds() -> Result<()> {
    let net = Net::of(NODES.len()).await?;
    let mut scene = Scene::on(&net, one_configuration(&net)).await?;
    let blobs = fill(&scene).await?;
    written(&scene.fleet, &NODES).await?;
    for node in NODES {
        scene.fleet.committed(node).await;
        scene.fleet.kill(node);
    }
    let before = scene.fake.records().len();
    scene.fleet.relaunch(&NODES).await?;
    let pulls = blobs.iter().enumerate().map(|(number, (path, content))| {
        // Never the node that fetched it, nor the same one for all blobs of that.
        let node = (number + 1 + number / NODES.len()) % NODES.len();
        stampede(scene.fleet.doors(&[node]), path, content)
    });
    for pulled in join_all(pulls).await {
        all(pulled)?;
    }
    let asked = &scene.fake.records()[before..];
    ensure!(asked.is_empty(), "{asked:#?}");
    Ok(())
}

#[tokio::test]
async fn a_node_that_was_the_first_finds_the_others_when_it_comes_back_at_once() -> Result<()> {
    let net = Net::of(NODES.len()).await?;
    let mut scene = Scene::on(&net, one_configuration(&net)).await?;
    let (_, content) = scene.fleet.content_of_home(1, MIB);
    let path = scene.add(&content);
    scene.pull(1, &path, &content).await?;
    // Nobody was configured for it but itself.
    written(&scene.fleet, &[0]).await?;
    scene.fleet.kill(0);
    scene.fleet.relaunch(&[0]).await?;
    let node = scene.fleet.node(0);
    crowd::pull(node.address(), &path, &content)
        .await
        .context("through the node that came back")?;
    let bodies = scene.fake.requests("GET", "/blobs/");
    ensure!(bodies.len() == 1, "{bodies:#?}");
    Ok(())
}
