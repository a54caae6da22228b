//! A whole node that takes a large blob from another one for its client, against the TLS program of
//! the benchmark `peer`.
//!
//! Ours does more: it finds out who has the blob, keeps it in a store, and gives it to a client. The
//! program reads a file, sends it, hashes it once and writes it. So it is measured twice: with a
//! client that reads all of it, and with one that asks for the last byte, which nobody has before
//! the second node has everything and found the digest right.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, ensure};
use millrace_cluster_tests::fleet::Fleet;
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::load::discard::{Plan, discard};
use millrace_cluster_tests::load::runs::{Runs, Turn};
use millrace_cluster_tests::load::table::{Figure, Target, Unit};
use millrace_cluster_tests::load::{machine, meter, seed};
use millrace_cluster_tests::upstream::Upstream;

use crate::options::{MIB, Options, SEED};
use crate::part::{self, Program};
use crate::place::Place;

/// What the second node's client asks for.
#[derive(Clone, Copy)]
enum Wanted {
    Everything,
    LastByte,
}

/// One transfer.
#[derive(Clone, Copy)]
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
        let both = async || {
            let read = nodes(&upstream, &blob, Wanted::Everything).await?;
            anyhow::Ok((read, nodes(&upstream, &blob, Wanted::LastByte).await?))
        };
        let ((read, alone), rival) = turn.pair(both, async || rival(&blob).await).await?;
        Ok(((read, rival), (alone, rival)))
    })
    .await?;
    let (read, alone) = runs.unzip();
    Ok(figures(options, &read, &alone))
}

async fn nodes(upstream: &Upstream, blob: &seed::Blob, wanted: Wanted) -> Result<Copy> {
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
    let start = Instant::now();
    take(fleet.node(taker).address(), blob, wanted).await?;
    let elapsed = start.elapsed();
    let spent = cpu_time()? - before;
    let received = fleet
        .node(taker)
        .metric("millrace_peer_received_bytes_total", &[]);
    let received = received.await?.unwrap_or_default();
    ensure!(received >= blob.size as f64, "it came from elsewhere");
    Ok(Copy {
        bytes_per_second: blob.size as f64 / elapsed.as_secs_f64(),
        cpu_seconds_per_gib: spent * (1024 * MIB) as f64 / blob.size as f64,
    })
}

/// Has a node take the blob, and waits for what is wanted of it.
async fn take(node: SocketAddr, blob: &seed::Blob, wanted: Wanted) -> Result<()> {
    match wanted {
        Wanted::Everything => {
            discard(&Plan::once(node, &blob.path))?;
        }
        Wanted::LastByte => {
            let request = Request::get(&blob.path).header("Range", "bytes=-1");
            let answer = request.send(node).await?;
            ensure!(answer.status() == 206, "answered {}", answer.status());
        }
    }
    Ok(())
}

async fn rival(blob: &seed::Blob) -> Result<Copy> {
    let measured = part::measure(Program::Rival, &Place::loopback(), &blob.file).await?;
    Ok(Copy {
        bytes_per_second: measured.rate(),
        cpu_seconds_per_gib: measured.sender_cpu() + measured.receiver_cpu(),
    })
}

fn figures(
    options: &Options,
    read: &Runs<(Copy, Copy)>,
    alone: &Runs<(Copy, Copy)>,
) -> Vec<Figure> {
    let work = || {
        let mebibytes = options.copy_bytes() / MIB;
        format!("node to node on loopback, {mebibytes} MiB")
    };
    let rate = |runs, what| {
        let rate = |copy: &Copy| copy.bytes_per_second / 1e6;
        let target = Target::AtLeast(0.9);
        Figure::ratio(
            runs,
            (work(), what),
            (Unit::MegabytesPerSecond, rate),
            target,
        )
    };
    let cpu = |runs, what| {
        let cpu = |copy: &Copy| copy.cpu_seconds_per_gib;
        Figure::ratio(
            runs,
            (work(), what),
            (Unit::CpuSecondsPerGib, cpu),
            Target::None,
        )
    };
    vec![
        rate(alone, "rate, nothing read before the end / TLS program"),
        cpu(alone, "CPU time of both sides, nothing read / TLS program"),
        rate(read, "rate of a client that reads all / TLS program"),
        cpu(read, "CPU time of both sides, all read / TLS program"),
    ]
}
