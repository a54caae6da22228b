//! A manifest that is here already, by a fresh tag and by digest: against a cache of nginx and
//! against the Docker registry in proxy mode.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::image::{Image, MANIFEST};
use millrace_cluster_tests::load::nginx::Nginx;
use millrace_cluster_tests::load::rate::requests_per_second;
use millrace_cluster_tests::upstream::Upstream;

use crate::options::Options;
use crate::subject::Subject;
use millrace_cluster_tests::load::runs::{Runs, Turn};
use millrace_cluster_tests::load::table::{Figure, Target, Unit, sides};

const REPOSITORY: &str = "bench/image";
const TAG: &str = "1";
const CONNECTIONS: usize = 32;

/// Requests per second of one run.
struct Rates {
    ours: f64,
    nginx: f64,
    registry: f64,
}

/// Measures requests by tag.
pub(crate) async fn by_tag(options: &Options) -> Result<Vec<Figure>> {
    let image = Image::runnable("benchmark")?;
    let runs = measure(options, &image, TAG).await?;
    Ok(figures(
        "warm manifest by tag",
        &runs,
        Target::AtLeast(50.0),
    ))
}

/// Measures requests by digest.
pub(crate) async fn by_digest(options: &Options) -> Result<Vec<Figure>> {
    let image = Image::runnable("benchmark")?;
    let digest = image.root().digest.to_string();
    let runs = measure(options, &image, &digest).await?;
    Ok(figures("warm manifest by digest", &runs, Target::None))
}

async fn measure(options: &Options, image: &Image, reference: &str) -> Result<Runs<Rates>> {
    let upstream = Upstream::start().await?;
    upstream.push(image, REPOSITORY, TAG).await?;
    let nginx = Nginx::cache_of(upstream.address()).await?;
    let registry = Upstream::start_mirror_of(&upstream.url()).await?;
    let subject = Subject::start(options.subject, upstream.address()).await?;
    let path = format!("/v2/{REPOSITORY}/manifests/{reference}");
    for address in [subject.address(), nginx.address(), registry.address()] {
        warm_up(address, &path, image).await?;
    }
    let rate = async |address: SocketAddr| {
        let duration = options.rate_duration();
        requests_per_second(address, &path, MANIFEST, CONNECTIONS, duration).await
    };
    Runs::collect(options.runs(), async |turn: Turn| {
        let ours = async || rate(subject.address()).await;
        let rivals = async || {
            Ok((
                rate(nginx.address()).await?,
                rate(registry.address()).await?,
            ))
        };
        let (ours, (nginx, registry)) = turn.pair(ours, rivals).await?;
        Ok(Rates {
            ours,
            nginx,
            registry,
        })
    })
    .await
}

/// Asks once, so that the answer is in the cache, and checks that it is the right one.
async fn warm_up(address: SocketAddr, path: &str, image: &Image) -> Result<()> {
    let request = Request::get(path).header("Accept", MANIFEST);
    let answer = request.send(address).await.context("the first request")?;
    ensure!(
        answer.body == image.read(&image.root().digest)?,
        "{address}{path} answered {} and other bytes than were pushed",
        answer.status()
    );
    Ok(())
}

fn figures(work: &str, runs: &Runs<Rates>, registry_target: Target) -> Vec<Figure> {
    let figure = |what, target, rival: fn(&Rates) -> f64| Figure {
        work: format!("{work}, {CONNECTIONS} connections"),
        what,
        sides: sides(
            Unit::RequestsPerSecond,
            runs.spread(|rates| rates.ours),
            runs.spread(rival),
        ),
        result: runs.spread(|rates| rates.ours / rival(rates)),
        unit: Unit::Times,
        target,
        quality: runs.quality(),
    };
    vec![
        figure(
            "requests / nginx proxy_cache",
            Target::AtLeast(1.0),
            |rates| rates.nginx,
        ),
        figure("requests / docker-registry", registry_target, |rates| {
            rates.registry
        }),
    ]
}
