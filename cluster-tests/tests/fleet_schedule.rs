//! Faults in an order that a seed chooses, while clients pull through all nodes: a pull through a node
//! that nothing happens to succeeds at once, any other as soon as it is tried elsewhere, and no byte is
//! ever wrong.
//!
//! `MILLRACE_TEST_FAULT_SEED` replays a schedule, `MILLRACE_TEST_FAULT_SECONDS` makes it longer. The seed and
//! every fault are printed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::{try_join, try_join_all};
use millrace_cluster_tests::fake::{Fake, Then, When, noise};
use millrace_cluster_tests::fleet::{Act, Fault, Fleet, Scene, Step, schedule};
use millrace_cluster_tests::image::Noise;
use millrace_cluster_tests::load::crowd::{self, WrongBytes};
use millrace_cluster_tests::netns::Net;
use tokio::time::{Instant, sleep, sleep_until};

const NODES: usize = 6;
const CLIENTS: usize = 8;

/// How long it goes on without `MILLRACE_TEST_FAULT_SECONDS`: two minutes in CI.
const DEFAULT_SECONDS: u64 = 120;

/// A client without bytes after so long, wherever it tried, has failed for good.
const PULL_LIMIT: Duration = Duration::from_secs(60);

/// Most bytes of one blob; what is on its way when something happens is several chunks.
const BLOB_BYTES: u64 = 6 << 20;

/// Something new so often.
const NEW_EVERY: Duration = Duration::from_millis(750);

/// Clients choose among so many: few enough that they meet, enough that some lie about for long.
const CHOICE: usize = 24;

/// What the upstream sends per second on each connection: so little that something is on its way
/// whenever something happens.
const QUICK: u64 = 4 << 20;

/// What it sends while it is slow.
const SLOW: u64 = 1 << 20;

/// Most bytes that only a node had that died or hangs: what it was fetching for its clients and others.
const LOST_BYTES: u64 = BLOB_BYTES;

/// Between two pulls of a client, in milliseconds, at most.
const PAUSE: usize = 200;

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
    let Scene { fake, fleet } = Scene::on(&net, Fleet::of(NODES)).await?;
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

/// What a client should not find out: whether something happened to the node that it asks.
#[derive(Debug, Default)]
struct Health {
    is_down: Cell<bool>,
    /// How often that changed.
    changes: Cell<u64>,
}

impl Health {
    fn set_down(&self, is_down: bool) {
        self.is_down.set(is_down);
        self.changes.set(self.changes.get() + 1);
    }
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
                Act::Begin(fault) => self.begin(fault, market)?,
                Act::End(fault) => self.end(fault, market).await?,
            }
        }
        Ok(())
    }

    fn begin(&mut self, fault: &Fault, market: &Market<'_>) -> Result<()> {
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
            Fault::Split(side) => {
                let others: Vec<usize> = (0..NODES).filter(|node| !side.contains(node)).collect();
                market.split(true);
                self.net.split(side, &others)?;
            }
            Fault::Slow => self.send_at(SLOW),
        }
        Ok(())
    }

    async fn end(&mut self, fault: &Fault, market: &Market<'_>) -> Result<()> {
        match fault {
            Fault::Kill(node) => {
                self.fleet.restart(&[*node]).await?;
                market.nodes[*node].set_down(false);
            }
            Fault::Hang(node) => {
                self.fleet.wake(*node);
                market.nodes[*node].set_down(false);
            }
            Fault::Split(_) => {
                self.net.heal()?;
                market.split(false);
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

/// Something to pull.
#[derive(Clone, Debug)]
struct Ware {
    path: String,
    content: Bytes,
}

/// What there is to pull, through whom, and how that goes.
struct Market<'a> {
    fake: &'a Fake,
    nodes: Vec<Health>,
    doors: Vec<std::net::SocketAddr>,
    wares: RefCell<VecDeque<Ware>>,
    choices: RefCell<Noise>,
    is_closed: Cell<bool>,
    is_split: Cell<bool>,
    /// Bytes of what was offered.
    made: Cell<u64>,
    /// Bytes that may leave the upstream once more, because of what happened.
    excused: Cell<u64>,
    pulls: Cell<u64>,
    retries: Cell<u64>,
}

impl<'a> Market<'a> {
    fn new(seed: u64, fake: &'a Fake, fleet: &Fleet) -> Self {
        let all: Vec<usize> = (0..NODES).collect();
        Self {
            fake,
            nodes: all.iter().map(|_| Health::default()).collect(),
            doors: fleet.doors(&all),
            wares: RefCell::default(),
            choices: RefCell::new(Noise::new(seed)),
            is_closed: Cell::new(false),
            is_split: Cell::new(false),
            made: Cell::new(0),
            excused: Cell::new(0),
            pulls: Cell::new(0),
            retries: Cell::new(0),
        }
    }

    fn close(&self) {
        self.is_closed.set(true);
    }

    fn excuse(&self, bytes: u64) {
        self.excused.set(self.excused.get() + bytes);
    }

    /// While a split lasts, each half fetches for itself what it wants: what is on offer now, and
    /// what will be.
    fn split(&self, is_split: bool) {
        self.is_split.set(is_split);
        if is_split {
            let wares = self.wares.borrow();
            self.excuse(wares.iter().map(|ware| ware.content.len() as u64).sum());
        }
    }

    fn below(&self, limit: usize) -> usize {
        let number = self.choices.borrow_mut().below(limit as u64);
        usize::try_from(number).expect("below a usize")
    }

    async fn run(&self, seed: u64) -> Result<()> {
        let make = async {
            let mut number = seed << 20;
            while !self.is_closed.get() {
                self.make(number);
                number += 4;
                sleep(NEW_EVERY).await;
            }
            Ok(())
        };
        let clients = try_join_all((0..CLIENTS).map(|_| self.client()));
        try_join(make, clients).await?;
        Ok(())
    }

    /// Adds a blob, or an image by tag with two layers.
    fn make(&self, number: u64) {
        let size = 1 + self.below(usize::try_from(BLOB_BYTES).expect("a small number"));
        if self.below(3) > 0 {
            let content = noise(number, size);
            let digest = self.fake.add_blob("app", content.clone());
            return self.offer(Scene::path(&digest), content);
        }
        let layers = [noise(number, size / 2), noise(number + 1, size / 4)];
        let tag = format!("t{number}");
        let image = self.fake.add_image("app", &tag, &layers);
        self.offer(
            format!("/v2/fake/app/manifests/{tag}"),
            image.manifest_bytes,
        );
        for (digest, layer) in image.layers.iter().zip(layers) {
            self.offer(Scene::path(digest), layer);
        }
    }

    fn offer(&self, path: String, content: Bytes) {
        self.made.set(self.made.get() + content.len() as u64);
        if self.is_split.get() {
            self.excuse(content.len() as u64);
        }
        let mut wares = self.wares.borrow_mut();
        wares.push_back(Ware { path, content });
        if wares.len() > CHOICE {
            wares.pop_front();
        }
    }

    async fn client(&self) -> Result<()> {
        while !self.is_closed.get() {
            let ware = {
                let wares = self.wares.borrow();
                wares.get(self.below(wares.len().max(1))).cloned()
            };
            if let Some(ware) = ware {
                self.pull(&ware).await?;
            }
            sleep(Duration::from_millis(self.below(PAUSE) as u64)).await;
        }
        Ok(())
    }

    /// Pulls through nodes that run, one after the other, until one serves it whole.
    async fn pull(&self, ware: &Ware) -> Result<()> {
        let start = Instant::now();
        loop {
            let up: Vec<usize> = (0..NODES)
                .filter(|node| !self.nodes[*node].is_down.get())
                .collect();
            let node = up[self.below(up.len())];
            let health = &self.nodes[node];
            let changes = health.changes.get();
            let Err(error) = crowd::pull(self.doors[node], &ware.path, &ware.content).await else {
                self.pulls.set(self.pulls.get() + 1);
                return Ok(());
            };
            let is_untouched = health.changes.get() == changes;
            if is_untouched || error.is::<WrongBytes>() || start.elapsed() > PULL_LIMIT {
                return Err(error)
                    .with_context(|| format!("through node {node}, after {:?}", start.elapsed()));
            }
            self.retries.set(self.retries.get() + 1);
        }
    }

    /// Pulls what is on offer through every node.
    async fn everything_everywhere(&self) -> Result<()> {
        let wares = self.wares.borrow().clone();
        for ware in &wares {
            let pulls = self
                .doors
                .iter()
                .map(|door| crowd::pull(*door, &ware.path, &ware.content));
            try_join_all(pulls).await?;
        }
        Ok(())
    }
}
