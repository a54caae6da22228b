//! A whole node that takes a large blob from another one for its client, against the TLS program of
//! the benchmark `peer`.
//!
//! Ours does more: it finds out who has the blob, keeps it in a store, and gives it to a client. The
//! program reads a file, sends it, hashes it once and writes it.

use anyhow::{Result, ensure};
use millrace_cluster_tests::fleet::Fleet;
use millrace_cluster_tests::load::discard::{Plan, discard};
use millrace_cluster_tests::load::runs::{Runs, Turn};
use millrace_cluster_tests::load::table::{Figure, Target, Unit};
use millrace_cluster_tests::load::{machine, meter, seed};
use millrace_cluster_tests::upstream::Upstream;

use crate::options::{MIB, Options, SEED};
use crate::part::{self, Program};
use crate::place::Place;

/// One transfer.
struct Copy {
    bytes_per_second: f64,
    /// Of both sides.
    cpu_seconds_per_gib: f64,
}

/// Measures on loopback.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Figure>> {
    let runs = Runs::collect(options.runs(), async |turn: Turn| {
        // What is served comes from here, for both: a file that was written a moment ago.
        let upstream = Upstream::start().await?;
        let blob = seed::blob(
            &upstream,
            "bench/blobs",
            options.copy_bytes(),
            SEED + turn.number,
        )?;
        turn.pair(
            async || nodes(&upstream, &blob).await,
            async || rival(&blob).await,
        )
        .await
    })
    .await?;
    Ok(figures(options, &runs))
}

async fn nodes(upstream: &Upstream, blob: &seed::Blob) -> Result<Copy> {
    let fleet = Fleet::of(2)
        .set("proxy/remoteurl", upstream.url())
        .set("log/level", "warn")
        .start()
        .await?;
    // The home goes upstream for itself alone, so that the other one has nothing yet.
    let home = fleet.home(&blob.digest);
    let taker = 1 - home;
    discard(&Plan::once(fleet.node(home).address(), &blob.path))?;
    fleet.committed(home).await;
    let cpu_time = || -> Result<f64> {
        let times = [0, 1].map(|node| meter::cpu_time(fleet.node(node).process_id()));
        let [first, second] = times;
        Ok((first? + second?).as_secs_f64())
    };
    machine::settle(blob.size);
    let before = cpu_time()?;
    let taken = discard(&Plan::once(fleet.node(taker).address(), &blob.path))?;
    let spent = cpu_time()? - before;
    let received = fleet
        .node(taker)
        .metric("millrace_peer_received_bytes_total", &[]);
    let received = received.await?.unwrap_or_default();
    ensure!(received >= blob.size as f64, "it came from elsewhere");
    Ok(Copy {
        bytes_per_second: taken.bytes_per_second(),
        cpu_seconds_per_gib: spent * (1024 * MIB) as f64 / blob.size as f64,
    })
}

async fn rival(blob: &seed::Blob) -> Result<Copy> {
    let measured = part::measure(Program::Rival, &Place::loopback(), &blob.file).await?;
    Ok(Copy {
        bytes_per_second: measured.rate(),
        cpu_seconds_per_gib: measured.sender_cpu() + measured.receiver_cpu(),
    })
}

fn figures(options: &Options, runs: &Runs<(Copy, Copy)>) -> Vec<Figure> {
    let work = || {
        let mebibytes = options.copy_bytes() / MIB;
        format!("node to node on loopback, {mebibytes} MiB")
    };
    vec![
        Figure::ratio(
            runs,
            (work(), "rate of the second node's client / TLS program"),
            (Unit::MegabytesPerSecond, |copy: &Copy| {
                copy.bytes_per_second / 1e6
            }),
            Target::AtLeast(0.9),
        ),
        Figure::ratio(
            runs,
            (work(), "CPU time of both sides / TLS program"),
            (Unit::CpuSecondsPerGib, |copy: &Copy| {
                copy.cpu_seconds_per_gib
            }),
            Target::None,
        ),
    ]
}
