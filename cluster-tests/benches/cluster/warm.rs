//! What a node has already, served by a member of a cluster and by a node that is alone.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use millrace_cluster_tests::fleet::Fleet;
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::image::{Image, MANIFEST};
use millrace_cluster_tests::load::discard::{Plan, discard};
use millrace_cluster_tests::load::rate::requests_per_second;
use millrace_cluster_tests::load::runs::{Runs, Turn};
use millrace_cluster_tests::load::seed::{self, Blob};
use millrace_cluster_tests::load::table::{Figure, Target, Unit};
use millrace_cluster_tests::node::Node;
use millrace_cluster_tests::upstream::Upstream;

use crate::options::{MIB, Options, SEED};

const REPOSITORY: &str = "bench/image";
const NODES: usize = 3;
const CONNECTIONS: usize = 32;

/// Clients of the blob: more than the machine has cores, so that none is idle.
const STREAMS: usize = 4;

/// As fast as without a cluster, but for what two measurements of the same differ by.
const AS_FAST: Target = Target::AtLeast(0.97);

/// One run.
struct Rates {
    requests: f64,
    bytes: f64,
}

/// Measures requests per second and bytes per second.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Figure>> {
    let upstream = Upstream::start().await?;
    let image = Image::runnable("benchmark")?;
    upstream.push(&image, REPOSITORY, "1").await?;
    let blob = seed::blob(&upstream, REPOSITORY, options.warm_bytes(), SEED)?;
    let fleet = Fleet::of(NODES)
        .set("proxy/remoteurl", upstream.url())
        .set("log/level", "warn")
        .start()
        .await?;
    let alone = Node::builder()
        .set("proxy/remoteurl", upstream.url())
        .set("log/level", "warn")
        .start()
        .await?;
    let doors = [fleet.node(0).address(), alone.address()];
    for door in doors {
        warm_up(door, &image, &blob).await?;
    }
    let runs = Runs::collect(options.runs(), async |turn: Turn| {
        turn.pair(
            async || rates(options, doors[0], &blob).await,
            async || rates(options, doors[1], &blob).await,
        )
        .await
    })
    .await?;
    Ok(figures(options, &runs))
}

fn manifest() -> String {
    format!("/v2/{REPOSITORY}/manifests/1")
}

/// Asks once for everything, so that it is here.
async fn warm_up(door: SocketAddr, image: &Image, blob: &Blob) -> Result<()> {
    let request = Request::get(&manifest()).header("Accept", MANIFEST);
    let answer = request.send(door).await.context("the first request")?;
    ensure!(answer.body == image.read(&image.root().digest)?);
    discard(&Plan::once(door, &blob.path)).map(drop)
}

async fn rates(options: &Options, door: SocketAddr, blob: &Blob) -> Result<Rates> {
    let duration = options.rate_duration();
    let manifest = manifest();
    let requests = requests_per_second(door, &manifest, MANIFEST, CONNECTIONS, duration).await?;
    let streams = Plan {
        connections: STREAMS,
        ..Plan::once(door, &blob.path)
    };
    Ok(Rates {
        requests,
        bytes: discard(&streams)?.bytes_per_second(),
    })
}

fn figures(options: &Options, runs: &Runs<(Rates, Rates)>) -> Vec<Figure> {
    let figure = |work, what, unit, value: fn(&Rates) -> f64| {
        Figure::ratio(runs, (work, what), (unit, value), AS_FAST)
    };
    let mebibytes = options.warm_bytes() / MIB;
    vec![
        figure(
            format!("warm manifest by tag, {CONNECTIONS} connections"),
            "requests, one of three nodes / alone",
            Unit::RequestsPerSecond,
            |rates| rates.requests,
        ),
        figure(
            format!("warm blob {mebibytes} MiB, {STREAMS} connections"),
            "rate, one of three nodes / alone",
            Unit::MegabytesPerSecond,
            |rates| rates.bytes / 1e6,
        ),
    ]
}
