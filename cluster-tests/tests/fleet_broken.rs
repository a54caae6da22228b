//! A member that opens blobs rightly and breaks off what it is asked for of them: it costs clients
//! moments, and nobody a pull.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_cluster_tests::fleet::{Fleet, Plan, Scene};
use millrace_cluster_tests::load::crowd::{all, stampede};
use millrace_cluster_tests::node::Fault;

/// The last chunk is a short one.
const BLOB: usize = (6 << 20) + 12_345;

/// What a client may lose to a broken home and a broken owner: far less than it waits for headers.
const SOON: Duration = Duration::from_secs(6);

/// A node that was found out costs no time: less than a pull that waits for anybody's silence.
const AT_ONCE: Duration = Duration::from_secs(2);

fn with_broken(size: usize, broken: &'static [usize], fault: Fault) -> Plan {
    Fleet::of(size).each(move |index, node| match broken.contains(&index) {
        true => node.fault(fault),
        false => node,
    })
}

/// Pulls two blobs, one after the other, whose first hops are the broken nodes: all sound nodes at once.
async fn pulls_go_on_past(
    broken: &'static [usize],
    fault: Fault,
    limits: [Duration; 2],
) -> Result<()> {
    let size = broken.len() + 3;
    let scene = Scene::start(with_broken(size, broken, fault)).await?;
    let sound: Vec<usize> = (0..size).filter(|node| !broken.contains(node)).collect();
    for (number, limit) in limits.into_iter().enumerate() {
        let before = scene.fake.sent_bytes("/blobs/");
        let is_wanted = |walk: &[usize]| walk[..broken.len()].iter().all(|it| broken.contains(it));
        let (_, content) = scene.fleet.content_where(BLOB + number, is_wanted);
        let path = scene.add(&content);
        let pulled = stampede(scene.clients(&sound, 2), &path, &content).await;
        let last = all(pulled).with_context(|| format!("{fault:?}, blob {number}"))?;
        ensure!(last < limit, "{fault:?}, blob {number}: after {last:?}");
        // Each broken one may have fetched it before it was left, and then the others do once.
        let sent = scene.fake.sent_bytes("/blobs/") - before;
        let most = (1 + broken.len()) * content.len();
        ensure!(sent <= most as u64, "{fault:?}, blob {number}: {sent}");
    }
    Ok(())
}

#[tokio::test]
async fn a_home_whose_answers_all_break_off_costs_clients_moments() -> Result<()> {
    pulls_go_on_past(&[3], Fault::Break, [SOON, AT_ONCE]).await
}

#[tokio::test]
async fn a_home_whose_answers_break_off_behind_one_chunk_costs_clients_moments() -> Result<()> {
    // Of the first blob a node may have had all from the others, and finds out with the second. Nobody
    // waits for who waits for it, which would take 8 s.
    pulls_go_on_past(&[3], Fault::BreakLate, [SOON, SOON]).await
}

#[tokio::test]
async fn a_home_and_an_owner_whose_answers_all_break_off_cost_clients_moments() -> Result<()> {
    pulls_go_on_past(&[3, 4], Fault::Break, [SOON, AT_ONCE]).await
}
