//! An owner of a zone whose answers are wrong, while the home in another zone is sound: the zone's other
//! nodes go past it to the home. The upstream gives each blob once, unless it has to tell who is right.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use millrace_cluster_tests::fleet::{Fleet, Plan, Scene};
use millrace_cluster_tests::node::Fault;

/// The last chunk is a short one.
const BLOB: usize = (6 << 20) + 12_345;

/// The home of everything here, alone in its zone.
const HOME: usize = 0;

/// In the other zone, the sound nodes, and the one that is its owner of everything here.
const SOUND: [usize; 2] = [1, 2];
const FAULTY: usize = 3;

/// Where home and owner differ in the size, each sound node asks the upstream who is right.
const WHO_IS_RIGHT: usize = SOUND.len() * BLOB;

/// What its silence may cost the first client of a node, at most: less than a client waits.
const FOUND_OUT: Duration = Duration::from_secs(15);

/// A node that was found out costs no time: less than a pull that waits for anybody's silence.
const AT_ONCE: Duration = Duration::from_secs(2);

fn with_a_faulty_owner(fault: Fault) -> Plan {
    let zones = ["north", "south", "south", "south"];
    Fleet::of(zones.len())
        .zones(&zones)
        .each(move |index, node| match index {
            FAULTY => node.fault(fault),
            _ => node,
        })
}

/// Adds the next blob to the upstream.
fn add(scene: &Scene, number: usize) -> (String, Bytes) {
    let is_wanted = |walk: &[usize]| walk[..2] == [HOME, FAULTY];
    let (_, content) = scene.fleet.content_where(BLOB + number, is_wanted);
    (scene.add(&content), content)
}

/// Demands that a node takes nothing from the faulty one any more.
async fn is_left_alone(scene: &Scene, node: usize) -> Result<()> {
    let status = scene.fleet.node(node).status().await?;
    let faulty = scene.fleet.id(FAULTY).to_string();
    let distrusted = &status["pull"]["distrusted"];
    ensure!(
        *distrusted == serde_json::json!([faulty]),
        "node {node} distrusts {distrusted}"
    );
    Ok(())
}

/// Demands that the upstream gave these bytes and no more than so many besides, and that nothing wrong
/// was kept.
async fn ended_well(scene: &Scene, sizes: usize, besides: usize) -> Result<()> {
    let sent = scene.fake.sent_bytes("/blobs/");
    let range = sizes as u64..=(sizes + besides) as u64;
    ensure!(range.contains(&sent), "{sent} of {range:?} bytes");
    for node in [HOME].into_iter().chain(SOUND) {
        scene.fleet.committed(node).await;
        let damaged = scene.fleet.node(node).damaged()?;
        ensure!(damaged.is_empty(), "node {node} keeps {damaged:?}");
    }
    Ok(())
}

/// Pulls through each sound node of the zone: with the first blob it finds out, and the next one costs
/// no time.
async fn pulls_go_on_past_an_owner(fault: Fault) -> Result<()> {
    let scene = Scene::start(with_a_faulty_owner(fault)).await?;
    let mut sizes = 0;
    for (number, node) in SOUND.into_iter().enumerate() {
        let (path, content) = add(&scene, 2 * number);
        let first = scene.pull(node, &path, &content).await;
        let first = first.with_context(|| format!("{fault:?}, node {node}"))?;
        ensure!(first.last_byte < FOUND_OUT, "{fault:?}: {first:?}");
        sizes += content.len() + avoided(&scene, node, 2 * number + 1).await?;
    }
    ended_well(&scene, sizes, 0).await
}

/// Demands that a node has found out, and pulls the next blob in no time. Returns that one's size.
async fn avoided(scene: &Scene, node: usize, number: usize) -> Result<usize> {
    is_left_alone(scene, node).await?;
    let (path, content) = add(scene, number);
    let pulled = scene.pull(node, &path, &content).await?;
    ensure!(pulled.last_byte < AT_ONCE, "node {node}: {pulled:?}");
    Ok(content.len())
}

/// The same where the first bytes may be wrong, because only the digest of the whole can tell: that
/// client's pull may break, and who comes then has it right. The upstream may give so much `besides`.
async fn no_pull_completes_wrongly(fault: Fault, besides: usize) -> Result<()> {
    let scene = Scene::start(with_a_faulty_owner(fault)).await?;
    let mut sizes = 0;
    for (number, node) in SOUND.into_iter().enumerate() {
        let (path, content) = add(&scene, 2 * number);
        scene.pull_right_or_not(node, &path, &content).await?;
        let again = scene.pull(node, &path, &content).await;
        again.with_context(|| format!("{fault:?}, node {node}, again"))?;
        sizes += content.len() + avoided(&scene, node, 2 * number + 1).await?;
    }
    ended_well(&scene, sizes, besides).await
}

#[tokio::test]
async fn an_owner_that_flips_bits_spoils_no_pull() -> Result<()> {
    pulls_go_on_past_an_owner(Fault::Flip).await
}

#[tokio::test]
async fn an_owner_that_stalls_mid_blob_spoils_no_pull() -> Result<()> {
    pulls_go_on_past_an_owner(Fault::Stall).await
}

#[tokio::test]
async fn an_owner_whose_answers_break_off_spoils_no_pull() -> Result<()> {
    pulls_go_on_past_an_owner(Fault::BreakLate).await
}

#[tokio::test]
async fn an_owner_that_tells_a_wrong_chain_spoils_no_pull() -> Result<()> {
    pulls_go_on_past_an_owner(Fault::Chain).await
}

#[tokio::test]
async fn an_owner_that_tells_no_chain_spoils_no_pull() -> Result<()> {
    pulls_go_on_past_an_owner(Fault::NoChain).await
}

#[tokio::test]
async fn an_owner_that_gives_other_content_completes_no_pull_wrongly() -> Result<()> {
    no_pull_completes_wrongly(Fault::Content, 0).await
}

#[tokio::test]
async fn an_owner_that_states_a_greater_size_completes_no_pull_wrongly() -> Result<()> {
    no_pull_completes_wrongly(Fault::Longer, WHO_IS_RIGHT).await
}

#[tokio::test]
async fn an_owner_that_states_a_smaller_size_completes_no_pull_wrongly() -> Result<()> {
    no_pull_completes_wrongly(Fault::Shorter, WHO_IS_RIGHT).await
}
