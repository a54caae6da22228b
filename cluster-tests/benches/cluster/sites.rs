//! Two sites that are far from each other want one cold image: what crosses the line between them.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::try_join_all;
use millrace_cluster_tests::fleet::Fleet;
use millrace_cluster_tests::image::Image;
use millrace_cluster_tests::load::meter::{Moment, Shares};
use millrace_cluster_tests::load::runs::{Runs, Turn};
use millrace_cluster_tests::load::table::{Figure, Target, Unit};
use millrace_cluster_tests::netns::Net;
use millrace_cluster_tests::repository::Repository;
use millrace_cluster_tests::upstream::Upstream;

use crate::options::{MIB, Options, SEED};

const NODES_OF_A_SITE: usize = 4;
const ROUND_TRIP: Duration = Duration::from_millis(80);
const ZONES: [&str; 8] = [
    "north", "north", "north", "north", "south", "south", "south", "south",
];

/// How it went in one run.
struct Crossing {
    /// Bytes of content that nodes took from the other site, in sizes of the image.
    content: f64,
    /// Everything that the line carried meanwhile: headers of packets, acknowledgements, the
    /// nodes' talk; in sizes of the image.
    carried: f64,
    /// Bytes that left the upstream, in sizes of the image.
    left_upstream: f64,
    seconds: f64,
}

/// Measures with all nodes of both sites pulling at once.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Figure>> {
    let runs = Runs::of_fleets(options.runs(), async |turn| cross(options, turn).await).await?;
    Ok(figures(options, &runs))
}

async fn cross(options: &Options, turn: Turn) -> Result<(Crossing, Shares)> {
    let net = Net::of_sites(&[NODES_OF_A_SITE; 2]).await?;
    net.wan().set_round_trip(ROUND_TRIP);
    let upstream = Upstream::start_everywhere().await?;
    let image = Image::of_sizes(&options.layer_bytes(), SEED + turn.number)?;
    upstream.push(&image, "team/app", "1").await?;
    let before = left(&upstream).await?;
    // Each site has its own way to the upstream, which is not the line between them.
    let urls = [0, 1].map(|site| upstream.url_at(net.upstream_address(site)));
    let fleet = Fleet::of(2 * NODES_OF_A_SITE)
        .on(net.hosts())
        .zones(&ZONES)
        .each(move |index, node| node.upstream("bench", &urls[index / NODES_OF_A_SITE]))
        .set("log/level", "warn")
        .start()
        .await?;
    let (moment, start) = (Moment::now()?, Instant::now());
    let carried = net.wan().carried_bytes();
    let pulls = (0..fleet.size()).map(async |node| {
        let repository = Repository::at(fleet.node(node).address(), "bench/team/app");
        repository.pull(&image, "1").await
    });
    try_join_all(pulls).await?;
    let (seconds, shares) = (start.elapsed().as_secs_f64(), moment.shares()?);
    let carried = net.wan().carried_bytes() - carried;
    let size = image_bytes(&image);
    Ok((
        Crossing {
            content: fleet.received_from_afar().await? as f64 / size,
            carried: carried as f64 / size,
            left_upstream: (left(&upstream).await? - before) as f64 / size,
            seconds,
        },
        shares,
    ))
}

fn image_bytes(image: &Image) -> f64 {
    let sizes = image.contents();
    sizes.iter().map(|content| content.size as f64).sum()
}

/// Returns bytes of content that have left the upstream.
async fn left(upstream: &Upstream) -> Result<u64> {
    let accesses = upstream.content_accesses().await?;
    let given = accesses
        .iter()
        .filter(|access| matches!(access.status, 200 | 206));
    Ok(given.map(|access| access.body_bytes).sum())
}

fn figures(options: &Options, runs: &Runs<Crossing>) -> Vec<Figure> {
    let mebibytes = options.layer_bytes().iter().sum::<u64>() / MIB;
    let work = || format!("two zones at 80 ms, 4 nodes each, cold image {mebibytes} MiB");
    let figure = |what, value: fn(&Crossing) -> f64, unit, target| {
        Figure::alone(runs, (work(), what), (unit, value), target)
    };
    vec![
        figure(
            "content over the WAN / image",
            |run| run.content,
            Unit::Times,
            Target::AtMost(1.02),
        ),
        figure(
            "all packets over the WAN / image",
            |run| run.carried,
            Unit::Times,
            Target::None,
        ),
        figure(
            "bytes from upstream / image",
            |run| run.left_upstream,
            Unit::Times,
            Target::AtMost(1.0),
        ),
        figure("last node", |run| run.seconds, Unit::Seconds, Target::None),
    ]
}
