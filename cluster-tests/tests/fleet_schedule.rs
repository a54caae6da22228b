//! Faults in an order that a seed chooses, while clients pull through all nodes: a pull through a node
//! that nothing happens to succeeds at once, any other as soon as it is tried elsewhere, and no byte is
//! ever wrong. One node's disk is too small for what is on offer, one tag moves, and what the nodes keep is read
//! at the end.
//!
//! `MILLRACE_TEST_FAULT_SEED` replays a schedule, `MILLRACE_TEST_FAULT_SECONDS` makes it longer. The seed and
//! every fault are printed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use futures_util::future::try_join;
use millrace_cluster_tests::fake::{Fake, Then, When};
use millrace_cluster_tests::fleet::{Act, Fault, Fleet, Plan, Scene, Step, schedule};
use millrace_cluster_tests::netns::Net;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

#[path = "fleet_schedule/market.rs"]
mod market;

use market::Market;

const NODES: usize = 6;
const CLIENTS: usize = 8;

/// How long it goes on without `MILLRACE_TEST_FAULT_SECONDS`: two minutes in CI.
const DEFAULT_SECONDS: u64 = 120;

/// Most bytes of one blob; what is on its way when something happens is several chunks.
const BLOB_BYTES: u64 = 6 << 20;

/// What the upstream sends per second on each connection: so little that something is on its way
/// whenever something happens.
const QUICK: u64 = 4 << 20;

/// What it sends while it is slow.
const SLOW: u64 = 1 << 20;

/// Most bytes that only a node had that died or hangs: what it was fetching for its clients and others.
const LOST_BYTES: u64 = BLOB_BYTES;

/// The tag that moves.
const MOVING: &str = "moving";

/// The node that has to evict all the time, and what it has room for.
const CRAMPED: usize = 5;
const CRAMPED_DISK: &str = "40MiB";

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test]
async fn pulls_go_on_whatever_a_seed_lets_happen() -> Result<()> {
    let fresh = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map(|now| now.as_secs())
    };
    let seed = setting("MILLRACE_TEST_FAULT_SEED").map_or_else(fresh, Ok)?;
    let seconds = setting("MILLRACE_TEST_FAULT_SECONDS").unwrap_or(DEFAULT_SECONDS);
    println!("MILLRACE_TEST_FAULT_SEED={seed} MILLRACE_TEST_FAULT_SECONDS={seconds}");
    let net = Net::of(NODES).await?;
    let Scene { fake, fleet } = Scene::on(&net, plan()).await?;
    let steps = schedule(seed, NODES, Duration::from_secs(seconds));
    let mut world = World {
        net,
        fake: &fake,
        fleet,
        start: Instant::now(),
    };
    world.send_at(QUICK);
    let market = Market::new(seed, &fake, &world.fleet);
    let load = market.run(seed);
    let happen = async {
        world.happen(&steps, &market).await?;
        market.close();
        Ok(())
    };
    try_join(load, happen).await?;
    world.fleet.agree().await;
    market.everything_everywhere().await?;
    nothing_wrong_is_kept(&world.fleet).await?;
    let (pulls, retries) = (market.pulls.get(), market.retries.get());
    let (made, sent) = (market.made.get(), fake.sent_bytes("/app/"));
    let allowed = made + market.excused.get();
    println!(
        "{pulls} pulls, {retries} elsewhere; {made} bytes, {sent} from upstream, {allowed} allowed"
    );
    ensure!(
        pulls >= seconds * CLIENTS as u64 / 2,
        "clients were kept from pulling"
    );
    ensure!(sent <= allowed, "too many bytes left the upstream");
    Ok(())
}

/// One node's disk is smaller than what is on offer, and one tag is never answered from memory.
fn plan() -> Plan {
    Fleet::of(NODES)
        .each(|index, node| match index {
            CRAMPED => node.set("cache/max_size", CRAMPED_DISK),
            _ => node,
        })
        .set(
            "upstreams/fake/tags",
            json!([{"match": format!("app:{MOVING}"), "policy": "always"}]),
        )
}

/// Where faults happen.
struct World<'a> {
    net: Net,
    fake: &'a Fake,
    fleet: Fleet,
    start: Instant,
}

impl World<'_> {
    async fn happen(&mut self, steps: &[Step], market: &Market<'_>) -> Result<()> {
        for step in steps {
            sleep_until(self.start + step.at).await;
            println!("{:?} {:?}", self.start.elapsed(), step.act);
            match &step.act {
                Act::Begin(fault) => self.begin(fault, market).await?,
                Act::End(fault) => self.end(fault, market).await?,
            }
        }
        Ok(())
    }

    async fn begin(&mut self, fault: &Fault, market: &Market<'_>) -> Result<()> {
        match fault {
            Fault::Kill(node) => {
                market.nodes[*node].set_down(true);
                market.excuse(LOST_BYTES);
                self.fleet.kill(*node);
            }
            Fault::Hang(node) => {
                market.nodes[*node].set_down(true);
                market.excuse(LOST_BYTES);
                self.fleet.hang(*node);
            }
            Fault::Leave(node) => {
                market.nodes[*node].set_down(true);
                market.excuse(LOST_BYTES);
                self.fleet.leave(*node).await?;
            }
            Fault::BlockUdp(node) => {
                market.cut(true);
                self.net.hosts()[*node].block_udp()?;
            }
            Fault::Split(side) => {
                let others: Vec<usize> = (0..NODES).filter(|node| !side.contains(node)).collect();
                market.cut(true);
                self.net.split(side, &others)?;
            }
            Fault::Slow => self.send_at(SLOW),
        }
        Ok(())
    }

    async fn end(&mut self, fault: &Fault, market: &Market<'_>) -> Result<()> {
        match fault {
            Fault::Kill(node) | Fault::Leave(node) => {
                self.fleet.restart(&[*node]).await?;
                market.nodes[*node].set_down(false);
            }
            Fault::Hang(node) => {
                self.fleet.wake(*node);
                market.nodes[*node].set_down(false);
            }
            Fault::Split(_) => {
                self.net.heal()?;
                market.cut(false);
            }
            Fault::BlockUdp(node) => {
                self.net.hosts()[*node].allow_udp()?;
                market.cut(false);
            }
            Fault::Slow => self.send_at(QUICK),
        }
        Ok(())
    }

    fn send_at(&self, rate: u64) {
        self.fake.heal();
        self.fake
            .on(When::get("/blobs/"), Then::healthy().rate(rate));
    }
}

/// Reads the stores of all nodes, and demands that each content is what its name says.
async fn nothing_wrong_is_kept(fleet: &Fleet) -> Result<()> {
    for index in 0..NODES {
        fleet.committed(index).await;
        let damaged = fleet.node(index).damaged()?;
        ensure!(damaged.is_empty(), "node {index} keeps {damaged:?}");
    }
    Ok(())
}
