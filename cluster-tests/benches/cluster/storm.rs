//! A storm: every node of a cluster on slow links wants one cold blob at once, for several clients.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::future;
use millrace_cluster_tests::fleet::Fleet;
use millrace_cluster_tests::load::crowd::{Client, Pulled, all, stampede};
use millrace_cluster_tests::load::meter::{Moment, Shares};
use millrace_cluster_tests::load::runs::{Runs, Spread, Turn};
use millrace_cluster_tests::load::seed::{self, Blob};
use millrace_cluster_tests::load::table::{Figure, Target, Unit};
use millrace_cluster_tests::netns::Net;
use millrace_cluster_tests::upstream::Upstream;
use tokio::sync::oneshot;

use crate::options::{MIB, Options, SEED};

const CLIENTS_OF_A_NODE: usize = 4;
const LINK_BITS_PER_SECOND: u64 = 20_000_000;

/// Of the nodes in the order of the blob's walk, the home first, every third dies: the home, which
/// alone talks to the upstream, and others that are read from.
const EVERY_THIRD: usize = 3;

/// How it went in one run.
struct Storm {
    /// About when the home had everything from the upstream.
    first_client: Duration,
    last_client: Duration,
    last_first_byte: Duration,
    /// What the node that sent most has sent to others, in sizes of the blob.
    most_sent: f64,
    /// Bytes that left the upstream, in sizes of the blob.
    left_upstream: f64,
}

/// Measures with nobody dying.
pub(crate) async fn whole(options: &Options) -> Result<Vec<Figure>> {
    let runs = Runs::of_fleets(options.runs(), async |turn| {
        let scene = Scene::start(options, turn).await?;
        let everywhere = scene.doors(|_| true);
        let moment = Moment::now()?;
        let clients = stampede(everywhere, &scene.path, &scene.content).await;
        let shares = moment.shares()?;
        Ok((scene.storm(clients).await?, shares))
    })
    .await?;
    let upstream = Target::AtMost(1.0);
    Ok(figures(options, "", &runs, (upstream, Target::AtMost(1.3))))
}

/// Measures with a third of the nodes killed when the blob is half there; only clients of the
/// others count.
pub(crate) async fn with_deaths(options: &Options) -> Result<Vec<Figure>> {
    let runs = Runs::of_fleets(options.runs(), async |turn| {
        die(Scene::start(options, turn).await?).await
    })
    .await?;
    // What the dead alone had, and what was on its way to them.
    let targets = (Target::AtMost(1.1), Target::AtMost(2.0));
    Ok(figures(options, ", a third dies half-way", &runs, targets))
}

async fn die(mut scene: Scene) -> Result<(Storm, Shares)> {
    let walk = scene.fleet.walk(&scene.blob.digest);
    let victims: Vec<usize> = walk
        .into_iter()
        .step_by(EVERY_THIRD)
        .take(scene.fleet.size() / 3)
        .collect();
    let dying = scene.doors(|node| victims.contains(&node));
    let mut surviving = scene.doors(|node| !victims.contains(&node));
    let witness = surviving.pop().context("a survivor")?;
    let (path, content) = (scene.path.clone(), scene.content.clone());
    let (half_way, is_half_way) = oneshot::channel();
    let moment = Moment::now()?;
    let killing = async {
        // Without a word the witness has failed, and says so itself.
        if is_half_way.await.is_ok() {
            victims.iter().for_each(|node| scene.fleet.kill(*node));
        }
    };
    let (witness, mut clients, _, ()) = future::join4(
        watch(witness, &path, &content, half_way),
        stampede(surviving, &path, &content),
        stampede(dying, &path, &content),
        killing,
    )
    .await;
    let shares = moment.shares()?;
    clients.push(witness);
    Ok((scene.storm(clients).await?, shares))
}

/// Pulls, and says when half of it is there.
async fn watch(
    door: SocketAddr,
    path: &str,
    content: &Bytes,
    half_way: oneshot::Sender<()>,
) -> Result<Pulled> {
    let mut client = Client::open(door, path, content).await?;
    client.until(content.len() / 2).await?;
    // The other end waits for nothing else.
    let _ = half_way.send(());
    client.finish().await
}

/// A fleet on slow links, and a blob that nobody has yet. The network goes last.
struct Scene {
    fleet: Fleet,
    upstream: Upstream,
    blob: Blob,
    content: Bytes,
    /// Where nodes serve the blob.
    path: String,
    _net: Net,
}

impl Scene {
    async fn start(options: &Options, turn: Turn) -> Result<Self> {
        let net = Net::of(options.storm_nodes()).await?;
        let hosts = net.hosts();
        hosts
            .iter()
            .try_for_each(|host| host.limit(LINK_BITS_PER_SECOND))?;
        let upstream = Upstream::start_everywhere().await?;
        let fleet = Fleet::of(options.storm_nodes())
            .on(hosts)
            .upstream("bench", &upstream.url_at(net.upstream_address(0)))
            .set("log/level", "warn")
            .start()
            .await?;
        let seed = SEED + turn.number;
        let blob = seed::blob(&upstream, "storm", options.storm_bytes(), seed)?;
        Ok(Self {
            fleet,
            content: std::fs::read(&blob.file)?.into(),
            path: format!("/v2/bench/storm/blobs/{}", blob.digest),
            upstream,
            blob,
            _net: net,
        })
    }

    /// Returns a door for each client of the nodes that are wanted.
    fn doors(&self, is_wanted: impl Fn(usize) -> bool) -> Vec<SocketAddr> {
        let nodes: Vec<usize> = (0..self.fleet.size())
            .filter(|node| is_wanted(*node))
            .collect();
        self.fleet.doors(&nodes.repeat(CLIENTS_OF_A_NODE))
    }

    async fn storm(&self, clients: Vec<Result<Pulled>>) -> Result<Storm> {
        let first_bytes = clients.iter().flatten().map(|client| client.first_byte);
        let last_first_byte = first_bytes.max().unwrap_or_default();
        let last_bytes = clients.iter().flatten().map(|client| client.last_byte);
        let first_client = last_bytes.min().unwrap_or_default();
        let last_client = all(clients)?;
        let mut most_sent = 0_f64;
        for node in self.fleet.running() {
            let sent = self.fleet.node(node);
            let sent = sent.metric("millrace_peer_sent_bytes_total", &[]).await?;
            most_sent = most_sent.max(sent.unwrap_or_default());
        }
        let accesses = self.upstream.content_accesses().await?;
        let of_the_blob = accesses
            .iter()
            .filter(|access| access.path == self.blob.path && matches!(access.status, 200 | 206));
        let left: u64 = of_the_blob.map(|access| access.body_bytes).sum();
        Ok(Storm {
            first_client,
            last_client,
            last_first_byte,
            most_sent: most_sent / self.blob.size as f64,
            left_upstream: left as f64 / self.blob.size as f64,
        })
    }
}

fn figures(
    options: &Options,
    deaths: &str,
    runs: &Runs<Storm>,
    (upstream, last_client): (Target, Target),
) -> Vec<Figure> {
    let nodes = options.storm_nodes();
    let clients = nodes * CLIENTS_OF_A_NODE;
    let size = options.storm_bytes();
    let work = format!(
        "storm: {nodes} nodes at 20 Mbit/s, {clients} clients, {} MiB{deaths}",
        size / MIB
    );
    // What one link needs for it, without headers of packets.
    let link_seconds = size as f64 * 8.0 / LINK_BITS_PER_SECOND as f64;
    let last = |storm: &Storm| storm.last_client.as_secs_f64();
    let figure = |what, result: Spread, unit, target| Figure {
        work: work.clone(),
        what,
        sides: String::new(),
        result,
        unit,
        target,
        quality: runs.quality(),
    };
    let left = runs.spread(|storm| storm.left_upstream);
    let first = runs.spread(|storm| storm.first_client.as_secs_f64());
    let late = runs.spread(|storm| storm.last_first_byte.as_secs_f64());
    let sent = runs.spread(|storm| storm.most_sent);
    let mut slowness = figure(
        "last client / (size / link rate)",
        runs.spread(|storm| last(storm) / link_seconds),
        Unit::Times,
        last_client,
    );
    slowness.sides = format!("{:.2} s : {link_seconds:.2} s", runs.spread(last).median);
    vec![
        figure("bytes from upstream / size", left, Unit::Times, upstream),
        slowness,
        figure("first client", first, Unit::Seconds, Target::None),
        figure("last first byte", late, Unit::Seconds, Target::None),
        figure(
            "most sent by one node / size",
            sent,
            Unit::Times,
            Target::None,
        ),
    ]
}
