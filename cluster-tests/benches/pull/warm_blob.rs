//! A blob that is here already, served to one client and to many: against nginx and sendfile.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use millrace_cluster_tests::load::discard::{Plan, discard};
use millrace_cluster_tests::load::nginx::Nginx;
use millrace_cluster_tests::load::{meter, seed};
use millrace_cluster_tests::upstream::Upstream;

use crate::options::{MIB, Options, SEED};
use crate::subject::{REPOSITORY, Subject};
use millrace_cluster_tests::load::runs::Runs;
use millrace_cluster_tests::load::table::{Figure, Target, Unit};

/// How often one client fetches the blob in a run: CPU time is counted in hundredths of a second,
/// so a run should take a whole one. Many clients fetch it once each.
const REQUESTS_OF_ONE: usize = 8;

/// The name of the blob below nginx's root.
const FILE: &str = "blob";

/// A server under load.
struct Server {
    address: SocketAddr,
    path: String,
    process_id: u32,
}

/// What serving cost.
struct Cost {
    bytes_per_second: f64,
    cpu_seconds_per_gib: f64,
}

/// Measures rate and CPU time with `connections` clients.
pub(crate) async fn measure(options: &Options, connections: usize) -> Result<Vec<Figure>> {
    let upstream = Upstream::start().await?;
    let blob = seed::blob(&upstream, REPOSITORY, options.blob_bytes(), SEED)?;
    let files = tempfile::tempdir()?;
    std::fs::hard_link(&blob.file, files.path().join(FILE)).context("giving nginx its file")?;
    let nginx = Nginx::of_files(files.path()).await?;
    let subject = Subject::start(options.subject, upstream.address()).await?;
    discard(&Plan::once(subject.address(), &blob.path)).context("the pull that fills the cache")?;

    let ours = Server {
        address: subject.address(),
        path: blob.path,
        process_id: subject.process_id(),
    };
    let rival = Server {
        address: nginx.address(),
        path: format!("/{FILE}"),
        process_id: nginx.process_id(),
    };
    let runs = Runs::collect(options.runs(), async |turn| {
        turn.pair(
            async || ours.serve(connections),
            async || rival.serve(connections),
        )
        .await
    })
    .await?;
    let work = format!(
        "warm blob {} MiB, {connections} connection(s)",
        blob.size / MIB
    );
    Ok(figures(&work, &runs))
}

impl Server {
    fn serve(&self, connections: usize) -> Result<Cost> {
        let requests = if connections == 1 { REQUESTS_OF_ONE } else { 1 };
        let plan = Plan {
            connections,
            requests,
            ..Plan::once(self.address, &self.path)
        };
        let before = meter::cpu_time(self.process_id)?;
        let discarded = discard(&plan)?;
        let cpu_time = meter::cpu_time(self.process_id)?.saturating_sub(before);
        let gibibytes = discarded.bytes() as f64 / (1024 * MIB) as f64;
        Ok(Cost {
            bytes_per_second: discarded.bytes_per_second(),
            cpu_seconds_per_gib: cpu_time.as_secs_f64() / gibibytes,
        })
    }
}

fn figures(work: &str, runs: &Runs<(Cost, Cost)>) -> Vec<Figure> {
    let rate = |cost: &Cost| cost.bytes_per_second / 1e6;
    let cpu = |cost: &Cost| cost.cpu_seconds_per_gib;
    vec![
        Figure::ratio(
            runs,
            (work.to_owned(), "rate / nginx static"),
            (Unit::MegabytesPerSecond, rate),
            Target::AtLeast(1.0),
        ),
        Figure::ratio(
            runs,
            (work.to_owned(), "CPU time / nginx static"),
            (Unit::CpuSecondsPerGib, cpu),
            Target::AtMost(1.2),
        ),
    ]
}
