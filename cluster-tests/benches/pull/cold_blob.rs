//! A blob that is not here yet, pulled through the node: against the same client at the upstream.
//!
//! Twice: over loopback, where the upstream costs nothing and the node's own work is the bound, and
//! over a link of 1 Gbit/s, as upstreams are. Nobody has the end of a blob before all of it is hashed, so
//! no rate is above that of hashing alone, which is shown beside it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millrace_cluster_tests::load::discard::{Plan, discard};
use millrace_cluster_tests::load::relay::Relay;
use millrace_cluster_tests::load::seed::{self, Blob};
use millrace_cluster_tests::load::{machine, meter};
use millrace_cluster_tests::upstream::Upstream;
use millrace_protocol::oci::Digest;

use crate::options::{MIB, Options, SEED};
use crate::subject::{REPOSITORY, Subject};
use millrace_cluster_tests::load::runs::{Runs, Turn};
use millrace_cluster_tests::load::table::{Figure, Target, Unit, sides};

/// 1 Gbit/s.
const LINK_BYTES_PER_SECOND: u64 = 125_000_000;

/// What one client saw.
struct Seen {
    first_byte: Duration,
    bytes_per_second: f64,
}

/// One run: through the node, and directly.
struct Pair {
    ours: Seen,
    /// What the node spent on it.
    cpu_seconds_per_gib: f64,
    direct: Seen,
    /// What one processor hashes of the same blob, from memory and with nothing else to do.
    hashed_bytes_per_second: f64,
}

/// Measures with the upstream on loopback.
pub(crate) async fn over_loopback(options: &Options) -> Result<Vec<Figure>> {
    let upstream = Upstream::start().await?;
    let runs = measure(options, &upstream, upstream.address()).await?;
    Ok(figures(options, "loopback", &runs))
}

/// Measures with a link between the upstream and whoever asks it.
pub(crate) async fn over_a_link(options: &Options) -> Result<Vec<Figure>> {
    let upstream = Upstream::start().await?;
    let link = Relay::start(upstream.address(), LINK_BYTES_PER_SECOND)?;
    let runs = measure(options, &upstream, link.address()).await?;
    Ok(figures(options, "1 Gbit/s", &runs))
}

async fn measure(options: &Options, upstream: &Upstream, door: SocketAddr) -> Result<Runs<Pair>> {
    let subject = Subject::start(options.subject, door).await?;
    Runs::collect(options.runs(), async |turn: Turn| {
        let seed = SEED + turn.number;
        let blob = seed::blob(upstream, REPOSITORY, options.blob_bytes(), seed)?;
        let ours = async || {
            machine::settle(blob.size);
            let before = meter::cpu_time(subject.process_id())?;
            let seen = pull(subject.address(), &blob.path)?;
            let spent = meter::cpu_time(subject.process_id())?.saturating_sub(before);
            let gibibytes = blob.size as f64 / (1024 * MIB) as f64;
            Ok((seen, spent.as_secs_f64() / gibibytes))
        };
        let direct = async || {
            machine::settle(blob.size);
            pull(door, &blob.path)
        };
        let ((ours, cpu_seconds_per_gib), direct) = turn.pair(ours, direct).await?;
        Ok(Pair {
            ours,
            cpu_seconds_per_gib,
            direct,
            hashed_bytes_per_second: hash(&blob)?,
        })
    })
    .await
}

fn pull(address: SocketAddr, path: &str) -> Result<Seen> {
    let discarded = discard(&Plan::once(address, path))?;
    Ok(Seen {
        first_byte: discarded.first_byte(),
        bytes_per_second: discarded.bytes_per_second(),
    })
}

/// Hashes a blob as whoever verifies it has to, one byte after the other.
fn hash(blob: &Blob) -> Result<f64> {
    let content = std::fs::read(&blob.file)?;
    let began = Instant::now();
    let digest = Digest::of(blob.digest.algorithm(), &content);
    let seconds = began.elapsed().as_secs_f64();
    ensure!(digest == blob.digest, "{} is {digest}", blob.file.display());
    Ok(content.len() as f64 / seconds)
}

fn figures(options: &Options, line: &str, runs: &Runs<Pair>) -> Vec<Figure> {
    let work = format!("cold blob {} MiB, {line}", options.blob_bytes() / MIB);
    let rate = |seen: &Seen| seen.bytes_per_second / 1e6;
    let first_byte = |seen: &Seen| seen.first_byte.as_secs_f64() * 1e3;
    vec![
        Figure {
            work: work.clone(),
            what: "first byte - direct",
            sides: sides(
                Unit::Milliseconds,
                runs.spread(|pair| first_byte(&pair.ours)),
                runs.spread(|pair| first_byte(&pair.direct)),
            ),
            result: runs.spread(|pair| first_byte(&pair.ours) - first_byte(&pair.direct)),
            unit: Unit::Milliseconds,
            target: Target::AtMost(5.0),
            quality: runs.quality(),
        },
        Figure {
            work: work.clone(),
            what: "rate / direct",
            sides: sides(
                Unit::MegabytesPerSecond,
                runs.spread(|pair| rate(&pair.ours)),
                runs.spread(|pair| rate(&pair.direct)),
            ),
            result: runs.spread(|pair| rate(&pair.ours) / rate(&pair.direct)),
            unit: Unit::Times,
            target: Target::AtLeast(0.95),
            quality: runs.quality(),
        },
        Figure {
            sides: sides(
                Unit::MegabytesPerSecond,
                runs.spread(|pair| pair.hashed_bytes_per_second / 1e6),
                runs.spread(|pair| rate(&pair.direct)),
            ),
            ..Figure::alone(
                runs,
                (work.clone(), "hashing alone / direct"),
                (Unit::Times, |pair| {
                    pair.hashed_bytes_per_second / pair.direct.bytes_per_second
                }),
                Target::None,
            )
        },
        Figure::alone(
            runs,
            (work, "CPU time of the node"),
            (Unit::CpuSecondsPerGib, |pair| pair.cpu_seconds_per_gib),
            Target::None,
        ),
    ]
}
