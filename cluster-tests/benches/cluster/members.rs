//! Many real nodes: how soon all of them agree after a crash, and what being a member costs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use millrace_cluster_tests::fleet::Fleet;
use millrace_cluster_tests::load::meter::{self, Moment, Shares};
use millrace_cluster_tests::load::runs::Runs;
use millrace_cluster_tests::load::table::{Figure, Target, Unit};
use millrace_cluster_tests::netns::Net;

use crate::options::Options;

/// When a crash that nobody notices is an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at everybody.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How it went in one run; times since the crash.
struct Crash {
    first_doubt: Duration,
    all_doubt: Duration,
    first_without: Duration,
    /// When all have the same placement, without the dead node.
    all_agree: Duration,
    cost: Cost,
}

/// What an idle member costs.
struct Cost {
    /// Bytes per second that came in and went out, of the mean node.
    traffic: f64,
    /// Of one CPU, in percent, of the mean node.
    cpu: f64,
    /// The same of the node that needs most.
    most_cpu: f64,
}

/// Measures nodes that nobody asks anything.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Figure>> {
    let runs = Runs::of_fleets(options.runs(), async |_| crash(options).await).await?;
    let seconds = |what, value: fn(&Crash) -> Duration, target| {
        let work = format!("{} nodes", options.members());
        let value = |run: &Crash| value(run).as_secs_f64();
        Figure::alone(&runs, (work, what), (Unit::Seconds, value), target)
    };
    let cost = |what, value: fn(&Cost) -> f64, unit| {
        let work = format!("{} idle nodes", options.members());
        let value = |run: &Crash| value(&run.cost);
        Figure::alone(&runs, (work, what), (unit, value), Target::None)
    };
    Ok(vec![
        seconds(
            "crash until nobody asks it",
            |run| run.all_doubt,
            Target::AtMost(4.0),
        ),
        seconds(
            "first doubt until all doubt",
            |run| run.all_doubt - run.first_doubt,
            Target::AtMost(5.0),
        ),
        seconds(
            "crash until its seat is gone",
            |run| run.all_agree,
            Target::AtMost(15.0),
        ),
        seconds(
            "first without it until all views are equal",
            |run| run.all_agree - run.first_without,
            Target::AtMost(5.0),
        ),
        cost(
            "control traffic of a node, both ways",
            |cost| cost.traffic / 1e3,
            Unit::KilobytesPerSecond,
        ),
        cost("CPU time of a node", |cost| cost.cpu, Unit::Percent),
        cost(
            "CPU time of the busiest node",
            |cost| cost.most_cpu,
            Unit::Percent,
        ),
    ])
}

async fn crash(options: &Options) -> Result<(Crash, Shares)> {
    let net = Net::of(options.members()).await?;
    let mut fleet = Fleet::of(options.members())
        .on(net.hosts())
        .set("log/level", "warn")
        .start()
        .await?;
    let moment = Moment::now()?;
    let cost = idle(&fleet, options.idle_duration()).await?;
    // Not one that the others joined by.
    let victim = fleet.size() - 1;
    fleet.kill(victim);
    let crash = watch(&fleet, victim, cost).await?;
    Ok((crash, moment.shares()?))
}

/// Watches nodes for a while without asking them anything.
async fn idle(fleet: &Fleet, duration: Duration) -> Result<Cost> {
    let ids: Vec<u32> = (0..fleet.size())
        .map(|node| fleet.node(node).process_id())
        .collect();
    let look = || -> Result<Vec<(u64, Duration)>> {
        let nodes = ids.iter().map(|id| {
            let (received, sent) = meter::link_bytes(*id, "data0")?;
            Ok((received + sent, meter::cpu_time(*id)?))
        });
        nodes.collect()
    };
    let (before, start) = (look()?, Instant::now());
    tokio::time::sleep(duration).await;
    let (after, seconds) = (look()?, start.elapsed().as_secs_f64());
    let spent = before.iter().zip(&after);
    let cpu: Vec<f64> = spent
        .clone()
        .map(|(before, after)| (after.1 - before.1).as_secs_f64() / seconds * 100.0)
        .collect();
    let bytes: u64 = spent.map(|(before, after)| after.0 - before.0).sum();
    let count = ids.len() as f64;
    Ok(Cost {
        traffic: bytes as f64 / seconds / count,
        cpu: cpu.iter().sum::<f64>() / count,
        most_cpu: cpu.into_iter().fold(0.0, f64::max),
    })
}

/// What one look at all survivors shows.
struct Look {
    doubters: usize,
    without: usize,
    placements: usize,
}

/// Watches what the others make of the victim's death until all agree.
async fn watch(fleet: &Fleet, victim: usize, cost: Cost) -> Result<Crash> {
    let start = Instant::now();
    let survivors = fleet.running();
    let (mut first_doubt, mut all_doubt, mut first_without) = (None, None, None);
    loop {
        let look = look(fleet, &survivors, victim).await?;
        let at = start.elapsed();
        ensure!(at < PATIENCE, "the survivors do not agree");
        if look.doubters > 0 {
            first_doubt.get_or_insert(at);
        }
        if look.doubters == survivors.len() {
            all_doubt.get_or_insert(at);
        }
        if look.without > 0 {
            first_without.get_or_insert(at);
        }
        if look.without == survivors.len() && look.placements == 1 {
            return Ok(Crash {
                first_doubt: first_doubt.unwrap_or(at),
                all_doubt: all_doubt.unwrap_or(at),
                first_without: first_without.unwrap_or(at),
                all_agree: at,
                cost,
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(fleet: &Fleet, survivors: &[usize], victim: usize) -> Result<Look> {
    let id = fleet.id(victim);
    let seen = try_join_all(survivors.iter().map(|node| fleet.seen(*node))).await?;
    let placements: BTreeSet<&str> = seen.iter().map(|seen| seen.placement.as_str()).collect();
    let count = |is_so: &dyn Fn(usize) -> bool| (0..seen.len()).filter(|at| is_so(*at)).count();
    Ok(Look {
        doubters: count(&|at| !seen[at].alive().contains(&id)),
        without: count(&|at| seen[at].member(id).is_none()),
        placements: placements.len(),
    })
}
