//! A node that comes to a cluster full of blobs and manifests, and whose clients want all of them.
//!
//! Manifests are asked for by digest: of a tag whose home has changed the upstream is asked by right.

use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use millrace_cluster_tests::fake::{Fake, noise};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::load::crowd;
use millrace_cluster_tests::load::meter::{Moment, Shares};
use millrace_cluster_tests::load::runs::{Runs, Turn};
use millrace_cluster_tests::load::table::{Figure, Target, Unit};

use crate::options::Options;

const NODES: usize = 8;
const BLOB_BYTES: usize = 64 * 1024;

/// One content in so many is the manifest of an image, with a layer of its own.
const PER_IMAGE: u64 = 8;

/// Clients at a time.
const CLIENTS: usize = 16;

/// How it went in one run.
struct Joined {
    /// Requests of any kind that the upstream saw after the join.
    upstream_requests: usize,
    /// From the start of its process until everybody sees it.
    seconds_to_join: f64,
    /// For all of them through the new node.
    seconds_to_pull: f64,
}

/// Measures requests to an upstream that would answer.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Figure>> {
    let runs = Runs::of_fleets(options.runs(), async |turn| join(options, turn).await).await?;
    let work = format!(
        "node {} joins {NODES} that hold {} blobs and manifests",
        NODES + 1,
        options.held_blobs()
    );
    let figure = |what, value: fn(&Joined) -> f64, unit, target| {
        Figure::alone(&runs, (work.clone(), what), (unit, value), target)
    };
    Ok(vec![
        figure(
            "upstream requests for all of them",
            |run| run.upstream_requests as f64,
            Unit::Count,
            Target::AtMost(0.0),
        ),
        figure(
            "until all see it",
            |run| run.seconds_to_join,
            Unit::Seconds,
            Target::None,
        ),
        figure(
            "all of them through it",
            |run| run.seconds_to_pull,
            Unit::Seconds,
            Target::None,
        ),
    ])
}

async fn join(options: &Options, turn: Turn) -> Result<(Joined, Shares)> {
    let fake = Fake::start().await?;
    let plan = Fleet::of(NODES)
        .upstream("fake", &fake.url())
        .set("log/level", "warn");
    let mut fleet = plan.start().await?;
    let seeds = (0..options.held_blobs()).map(|number| turn.number * 1_000_000 + number);
    let held: Vec<(String, Bytes)> = seeds.map(|seed| add(&fake, seed)).collect();
    pull_all(&fleet, &held, |number| number % NODES).await?;
    let before = fake.records().len();
    let (moment, start) = (Moment::now()?, Instant::now());
    let joined = fleet.join(&plan).await?;
    fleet.agree().await;
    let seconds_to_join = start.elapsed().as_secs_f64();
    pull_all(&fleet, &held, |_| joined).await?;
    Ok((
        Joined {
            upstream_requests: fake.records().len() - before,
            seconds_to_join,
            seconds_to_pull: start.elapsed().as_secs_f64() - seconds_to_join,
        },
        moment.shares()?,
    ))
}

/// Adds a blob, or an image, and returns a path by which nodes serve what was added, and its bytes.
fn add(fake: &Fake, seed: u64) -> (String, Bytes) {
    let blob = noise(seed, BLOB_BYTES);
    if !seed.is_multiple_of(PER_IMAGE) {
        return (Scene::path(&fake.add_blob("app", blob.clone())), blob);
    }
    let image = fake.add_image("app", &seed.to_string(), &[blob]);
    let path = format!("/v2/fake/app/manifests/{}", image.manifest);
    (path, image.manifest_bytes)
}

/// Pulls each content once, through the node that `node` names for its number, and compares it.
async fn pull_all(
    fleet: &Fleet,
    held: &[(String, Bytes)],
    node: impl Fn(usize) -> usize,
) -> Result<()> {
    let pulls = held.iter().enumerate().map(|(number, (path, content))| {
        let door = fleet.node(node(number)).address();
        crowd::pull(door, path, content)
    });
    let pulls = stream::iter(pulls).buffer_unordered(CLIENTS);
    pulls.try_for_each(async |_| Ok(())).await
}
