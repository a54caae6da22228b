//! What lies between nodes: a line between two sites that each blob crosses once, one link that is slow,
//! a firewall that lets no UDP through, somebody who listens, and what does not:
//! the proxy that stands before the upstream.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use millrace_cluster_tests::component;
use millrace_cluster_tests::condition::{eventually, patience};
use millrace_cluster_tests::fake::{noise, sha256};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::image::Image;
use millrace_cluster_tests::load::crowd::{all, stampede};
use millrace_cluster_tests::netns::Net;
use millrace_cluster_tests::process;
use millrace_cluster_tests::proxy::Proxy;
use millrace_cluster_tests::repository::Repository;
use millrace_cluster_tests::upstream::Upstream;
use tempfile::TempDir;
use tokio::time::timeout;

const MIB: usize = 1 << 20;

/// The links of a fleet in which one host has a slow one, in bits per second.
const QUICK_LINK: u64 = 50_000_000;
const SLOW_LINK: u64 = 2_000_000;

#[tokio::test]
async fn each_blob_crosses_to_the_other_site_once() -> Result<()> {
    let net = Net::of_sites(&[3, 3]).await?;
    net.wan().set_round_trip(Duration::from_millis(80));
    let upstream = Upstream::start_everywhere().await?;
    let image = Image::of_sizes(&[6 << 20, 3 << 20, 1 << 20], 1)?;
    upstream.push(&image, "team/app", "1").await?;
    // Each site has its own way to the upstream, which is not the line between them.
    let urls = [0, 1].map(|site| upstream.url_at(net.upstream_address(site)));
    let fleet = Fleet::of(6)
        .on(net.hosts())
        .zones(&["north", "north", "north", "south", "south", "south"])
        .each(move |index, node| node.upstream("corp", &urls[index / 3]))
        .start()
        .await?;
    let pulls = (0..6).map(async |node| {
        let repository = Repository::at(fleet.node(node).address(), "corp/team/app");
        repository.pull(&image, "1").await
    });
    try_join_all(pulls).await?;
    let contents = image.contents();
    let size: u64 = contents.iter().map(|content| content.size).sum();
    let crossed = fleet.received_from_afar().await?;
    ensure!(
        crossed >= size && crossed * 100 <= size * 102,
        "{crossed} bytes crossed for {size}"
    );
    for content in &contents {
        let accesses = upstream.content_accesses().await?;
        let fetched = accesses.iter().filter(|access| {
            access.path.ends_with(&content.digest.to_string()) && access.body_bytes > 1
        });
        // The root is asked for by tag.
        ensure!(
            fetched.count() <= 1,
            "{} left the upstream twice",
            content.digest
        );
    }
    Ok(())
}

#[tokio::test]
async fn one_slow_link_slows_nobody_who_came_later() -> Result<()> {
    let net = Net::of(7).await?;
    for host in net.hosts() {
        host.limit(QUICK_LINK)?;
    }
    let scene = Scene::on(&net, Fleet::of(7)).await?;
    net.hosts()[1].limit(SLOW_LINK)?;
    let (_, content) = scene.fleet.content_of_home(0, 32 * MIB);
    let path = scene.add(&content);
    // It has a first chunk by now, and the home all; it needs two minutes for the rest.
    let slow = scene.open(1, &path, &content).await?;
    let alone = Duration::from_secs_f64(content.len() as f64 * 8.0 / QUICK_LINK as f64);
    let doors = scene.fleet.doors(&[2, 3, 4, 5]);
    let quick = timeout(alone * 3, stampede(doors, &path, &content)).await;
    let last = all(quick.context("those behind a slow node are as slow")?)?;
    println!("{last:?} behind a slow node, {alone:?} alone");
    let home = scene.fleet.node(0);
    let sent = home.metric("millrace_peer_sent_bytes_total", &[]).await?;
    let sent = sent.context("the home counts what it sends")?;
    ensure!(
        sent < content.len() as f64 * 1.5,
        "the home has sent {sent} bytes"
    );
    // Only the slow one is still taking it.
    let late = scene.pull(6, &path, &content).await?;
    ensure!(late.last_byte < alone * 3 / 2, "{late:?}, {alone:?} alone");
    assert_eq!(scene.fake.sent_bytes("/blobs/"), content.len() as u64);
    drop(slow);
    Ok(())
}

#[tokio::test]
async fn a_node_behind_a_firewall_without_udp_is_named_and_delays_no_blob() -> Result<()> {
    let net = Net::of(4).await?;
    let scene = Scene::on(&net, Fleet::of(4)).await?;
    net.hosts()[3].block_udp()?;
    // It stays a member, because its word comes over TCP; some blobs are its as home.
    let (_, first) = scene.fleet.content_of_home(3, MIB);
    let path = scene.add(&first);
    for node in [0, 3] {
        scene.pull(node, &path, &first).await?;
    }
    // Each finds out by itself, because it follows what the others hold; who has not yet waits for
    // the silence of the blocked node once, and whoever has asked it waits with it.
    let pairs = [(0, 3), (1, 3), (2, 3), (3, 0), (3, 1), (3, 2)];
    for (observer, member) in pairs {
        eventually("who is blocked is known to be unreachable", async || {
            let seen = is_unreachable(&scene, observer, member).await;
            seen.is_ok_and(|is_so| is_so)
        })
        .await;
    }
    let name = scene.fleet.id(3).to_string();
    let shown = status_text(&scene, 0).await?;
    ensure!(
        shown
            .lines()
            .any(|line| line.contains("NO CONTENT FROM") && mentions(line, &name)),
        "{name} is not named in\n{shown}"
    );
    // Every one of these would ask node 3 as home, if it could be asked.
    for seed in 0..12 {
        let content = (0..)
            .map(|step| noise(1000 + seed * 1000 + step, MIB))
            .find(|content| scene.fleet.home(&sha256(content)) == 3)
            .context("there is no end of numbers")?;
        let path = scene.add(&content);
        for node in [0, 3] {
            let pulled = scene.pull(node, &path, &content).await?;
            ensure!(
                pulled.last_byte < Duration::from_secs(2),
                "node {node}: {pulled:?}"
            );
        }
    }
    net.hosts()[3].allow_udp()?;
    eventually("it is asked again", async || {
        let seen = is_unreachable(&scene, 0, 3).await;
        seen.is_ok_and(|is_so| !is_so)
    })
    .await;
    Ok(())
}

/// Tells whether a node shows another one as a member that no content can be had from.
async fn is_unreachable(scene: &Scene, observer: usize, member: usize) -> Result<bool> {
    let status = scene.fleet.node(observer).status().await?;
    let peers = status["peers"]["peers"].as_array();
    let id = scene.fleet.id(member).to_string();
    let mut peers = peers.context("it shows its peers")?.iter();
    let peer = peers.find(|peer| peer["id"] == *id);
    Ok(peer.is_some_and(|peer| !peer["unreachable"].is_null()))
}

/// Returns what an operator reads.
async fn status_text(scene: &Scene, node: usize) -> Result<String> {
    let mut command = Command::new(component::millrace()?);
    let debug = scene.fleet.node(node).debug_address();
    command.args(["status", "--address", &debug.to_string()]);
    process::run(&command, patience()).await
}

/// Tells whether a line has the name of a node, or as much of it as is shown.
fn mentions(line: &str, name: &str) -> bool {
    let words = line.split(|c: char| !c.is_ascii_alphanumeric());
    let mut words = words.filter(|word| word.len() >= 8);
    words.any(|word| name.starts_with(word))
}

#[tokio::test]
async fn who_listens_between_nodes_reads_nothing() -> Result<()> {
    const MARK: &[u8] = b"this is what an image says";
    let net = Net::of(2).await?;
    let scene = Scene::on(&net, Fleet::of(2)).await?;
    let content = (0..u64::MAX)
        .map(|seed| {
            let text = MARK.repeat(2 * MIB / MARK.len());
            Bytes::from([text, noise(seed, 16).to_vec()].concat())
        })
        .find(|content| scene.fleet.home(&sha256(content)) == 0)
        .context("there is no end of numbers")?;
    let path = scene.add(&content);
    let folder = TempDir::new()?;
    // What comes from the upstream is in clear, because this one speaks no TLS.
    let others = format!("not host {}", net.upstream_address(0));
    let capture = net.hosts()[1].capture(folder.path(), &others).await?;
    scene.pull(1, &path, &content).await?;
    assert_eq!(scene.fake.count("GET", "/blobs/"), 1);
    let file = folder.path().join("capture.pcap");
    eventually("all packets are in the file", async || {
        std::fs::metadata(&file).is_ok_and(|file| file.len() > content.len() as u64)
    })
    .await;
    drop(capture);
    let packets = std::fs::read(&file)?;
    let secret = std::fs::read(scene.fleet.secret_file())?;
    for hidden in [MARK, secret.trim_ascii()] {
        ensure!(
            !packets.windows(hidden.len()).any(|window| window == hidden),
            "{:?} was read on the line",
            String::from_utf8_lossy(hidden)
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_of_the_environment_stands_before_the_upstream_and_not_between_nodes() -> Result<()>
{
    let proxy = Proxy::start().await?;
    let url = proxy.url();
    let plan = Fleet::of(3).each(move |_, node| {
        let variables = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
        variables
            .iter()
            .fold(node, |node, variable| node.environment(variable, &url))
    });
    let scene = Scene::start(plan).await?;
    let (_, content) = scene.fleet.content_of_home(0, MIB);
    let path = scene.add(&content);
    for node in [0, 1, 2] {
        scene.pull(node, &path, &content).await?;
    }
    ensure!(
        scene.fake.count("GET", "/blobs/") == 1,
        "fetched more than once"
    );
    let asked = proxy.requests();
    let upstream = scene.fake.url();
    ensure!(!asked.is_empty(), "the upstream was asked directly");
    ensure!(
        asked.iter().all(|line| line.contains(&upstream)),
        "{asked:#?}"
    );
    Ok(())
}
