//! Many clients want one blob at once that is not here yet, and the upstream's line is slow.

use std::time::Duration;

use anyhow::Result;
use millrace_cluster_tests::load::discard::{Plan, discard};
use millrace_cluster_tests::load::relay::Relay;
use millrace_cluster_tests::load::seed::{self, Blob};
use millrace_cluster_tests::upstream::Upstream;

use crate::options::{MIB, Options, SEED};
use crate::subject::{REPOSITORY, Subject};
use millrace_cluster_tests::load::runs::{Runs, Turn};
use millrace_cluster_tests::load::table::{Figure, Target, Unit, sides};

const CLIENTS: usize = 64;
const LINE_BYTES_PER_SECOND: u64 = 15_000_000;

/// One run.
struct Stampede {
    last_client: Duration,
    /// Answers of the upstream that carried the blob or a part of it.
    body_transfers: usize,
    /// Bytes over the line, in sizes of the blob.
    carried: f64,
}

/// Measures transfers, bytes and time.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Figure>> {
    let upstream = Upstream::start().await?;
    let line = Relay::start(upstream.address(), LINE_BYTES_PER_SECOND)?;
    let subject = Subject::start(options.subject, line.address()).await?;
    let runs = Runs::collect(options.runs(), async |turn: Turn| {
        let seed = SEED + turn.number;
        let blob = seed::blob(&upstream, REPOSITORY, options.stampede_bytes(), seed)?;
        turn.pair(
            async || stampede(&subject, &upstream, &line, &blob).await,
            async || {
                let direct = discard(&Plan::once(line.address(), &blob.path))?;
                Ok(direct.elapsed())
            },
        )
        .await
    })
    .await?;
    Ok(figures(options, &runs))
}

async fn stampede(
    subject: &Subject,
    upstream: &Upstream,
    line: &Relay,
    blob: &Blob,
) -> Result<Stampede> {
    let carried_before = line.carried_bytes();
    let transfers_before = body_transfers(upstream, blob).await?;
    let discarded = discard(&Plan {
        connections: CLIENTS,
        ..Plan::once(subject.address(), &blob.path)
    })?;
    let carried = line.carried_bytes() - carried_before;
    Ok(Stampede {
        last_client: discarded.elapsed(),
        body_transfers: body_transfers(upstream, blob).await? - transfers_before,
        carried: carried as f64 / blob.size as f64,
    })
}

/// Counts answers with more than one byte of the blob: a probe for its size asks for one.
async fn body_transfers(upstream: &Upstream, blob: &Blob) -> Result<usize> {
    let accesses = upstream.content_accesses().await?;
    let of_the_blob = accesses
        .iter()
        .filter(|access| access.path == blob.path && matches!(access.status, 200 | 206));
    Ok(of_the_blob.filter(|access| access.body_bytes > 1).count())
}

fn figures(options: &Options, runs: &Runs<(Stampede, Duration)>) -> Vec<Figure> {
    let work = format!(
        "{CLIENTS} clients, one cold blob {} MiB, 15 MB/s",
        options.stampede_bytes() / MIB
    );
    let figure = |what, sides, result, unit, target| Figure {
        work: work.clone(),
        what,
        sides,
        result,
        unit,
        target,
        quality: runs.quality(),
    };
    let last = |(ours, _): &(Stampede, Duration)| ours.last_client.as_secs_f64();
    let direct = |(_, direct): &(Stampede, Duration)| direct.as_secs_f64();
    vec![
        figure(
            "body transfers from upstream",
            String::new(),
            runs.spread(|(ours, _)| ours.body_transfers as f64),
            Unit::Count,
            Target::AtMost(1.0),
        ),
        figure(
            "bytes from upstream / size",
            String::new(),
            runs.spread(|(ours, _)| ours.carried),
            Unit::Times,
            // Heads of answers, and of what else is asked, travel as well.
            Target::AtMost(1.01),
        ),
        figure(
            "last client / one direct download",
            sides(Unit::Seconds, runs.spread(last), runs.spread(direct)),
            runs.spread(|run| last(run) / direct(run)),
            Unit::Times,
            Target::AtMost(1.2),
        ),
    ]
}
