//! Memory of the server: idle, and with many slow clients at once.
//!
//! Half of the clients want blobs of their own, half want the same one. Clients that read slowly
//! leave bytes with the server, and the sum of what it holds for each of them is what can grow.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_cluster_tests::load::discard::{Plan, discard};
use millrace_cluster_tests::load::meter;
use millrace_cluster_tests::load::seed::{self, Blob};
use millrace_cluster_tests::load::trickle::Trickle;
use millrace_cluster_tests::upstream::Upstream;

use crate::options::{MIB, Options, SEED};
use crate::subject::{REPOSITORY, Subject};
use millrace_cluster_tests::load::runs::{Runs, Turn};
use millrace_cluster_tests::load::table::{Figure, Target, Unit};

/// More than the kernel takes into its own buffers for one slow connection (4 MiB by
/// `net.ipv4.tcp_wmem`), so that the server cannot be done with a stream.
const OWN_BYTES: u64 = 6 * MIB;
const SHARED_BYTES: u64 = 64 * MIB;

/// What a server that has just started still does is over by then.
const SETTLE: Duration = Duration::from_secs(2);

/// How long the streams go on once all of them have bytes.
const STREAMING: Duration = Duration::from_secs(5);

/// When the last of the cold streams must have bytes.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Filling and emptying gigabytes takes long and a peak needs no median: fewer runs do.
const MOST_RUNS: usize = 3;

/// Measures memory of a server that nobody has asked anything yet.
pub(crate) async fn idle(options: &Options) -> Result<Vec<Figure>> {
    let upstream = Upstream::start().await?;
    let runs = Runs::collect(options.runs(), async |_| {
        let subject = Subject::start(options.subject, upstream.address()).await?;
        tokio::time::sleep(SETTLE).await;
        meter::resident_bytes(subject.process_id())
    })
    .await?;
    Ok(vec![figure("idle", "RSS", &runs, 40.0)])
}

/// Measures the peak while the streams come from the server's disk.
pub(crate) async fn warm_streams(options: &Options) -> Result<Vec<Figure>> {
    let content = Content::create(options).await?;
    let subject = Subject::start(options.subject, content.upstream.address()).await?;
    for blob in content.blobs() {
        discard(&Plan::once(subject.address(), &blob.path)).context("filling the cache")?;
    }
    let runs = Runs::collect(options.runs().min(MOST_RUNS), async |_: Turn| {
        meter::forget_peak(subject.process_id())?;
        content.stream(&subject)
    })
    .await?;
    Ok(vec![content.figure("from disk", &runs)])
}

/// Measures the peak of a server that has nothing and must fetch all of it.
pub(crate) async fn cold_streams(options: &Options) -> Result<Vec<Figure>> {
    let content = Content::create(options).await?;
    let runs = Runs::collect(options.runs().min(MOST_RUNS), async |_: Turn| {
        let subject = Subject::start(options.subject, content.upstream.address()).await?;
        content.stream(&subject)
    })
    .await?;
    Ok(vec![content.figure("from upstream", &runs)])
}

/// What the clients stream.
struct Content {
    upstream: Upstream,
    own: Vec<Blob>,
    shared: Blob,
}

impl Content {
    async fn create(options: &Options) -> Result<Self> {
        let upstream = Upstream::start().await?;
        let own = (0..options.streams() / 2)
            .map(|number| seed::blob(&upstream, REPOSITORY, OWN_BYTES, SEED + number as u64))
            .collect::<Result<_>>()?;
        let shared = seed::blob(&upstream, REPOSITORY, SHARED_BYTES, SEED)?;
        Ok(Self {
            upstream,
            own,
            shared,
        })
    }

    fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.own.iter().chain([&self.shared])
    }

    /// Streams everything at once and returns the peak of the server's memory, in bytes.
    fn stream(&self, subject: &Subject) -> Result<u64> {
        let shared = std::iter::repeat_n(&self.shared, self.own.len());
        let paths = self.own.iter().chain(shared).map(|blob| &*blob.path);
        let mut trickle = Trickle::open(subject.address(), paths)?;
        trickle.until_all_stream(START_LIMIT)?;
        let progress = trickle.read_for(STREAMING)?;
        ensure!(
            progress.streaming == 2 * self.own.len(),
            "not all streams were there at once: {progress:?}"
        );
        meter::peak_resident_bytes(subject.process_id())
    }

    fn figure(&self, from: &str, runs: &Runs<u64>) -> Figure {
        let work = format!(
            "{} slow streams {from}, half of one blob",
            2 * self.own.len()
        );
        figure(&work, "peak RSS", runs, 200.0)
    }
}

fn figure(work: &str, what: &'static str, runs: &Runs<u64>, limit_mebibytes: f64) -> Figure {
    let value = |bytes: &u64| *bytes as f64 / MIB as f64;
    let work = format!("memory: {work}");
    let target = Target::AtMost(limit_mebibytes);
    Figure::alone(runs, (work, what), (Unit::Mebibytes, value), target)
}
