//! What there is to pull in a schedule, through whom, and how that goes.
//!
//! Faults are the schedule's; the market is told what they excuse.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::{try_join, try_join_all};
use millrace_cluster_tests::fake::{Fake, noise};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::http::{End, Request};
use millrace_cluster_tests::image::Noise;
use millrace_cluster_tests::load::crowd::{self, WrongBytes};
use tokio::time::{Instant, sleep};

use super::{BLOB_BYTES, CLIENTS, MOVING, NODES};

/// A client without bytes after so long, wherever it tried, has failed for good.
const PULL_LIMIT: Duration = Duration::from_secs(60);

/// Something new so often.
const NEW_EVERY: Duration = Duration::from_millis(750);

/// Clients choose among so many: few enough that they meet, enough that some lie about for long.
const CHOICE: usize = 24;

/// Between two pulls of a client, in milliseconds, at most.
const PAUSE: usize = 200;

/// New things between two moves of the tag.
const MOVE_EVERY: u64 = 4;

/// One of so many pulls is followed by a question for that tag.
const RESOLVE_EVERY: usize = 8;

/// What a client should not find out: whether something happened to the node that it asks.
#[derive(Debug, Default)]
pub(super) struct Health {
    is_down: Cell<bool>,
    /// How often that changed.
    changes: Cell<u64>,
}

impl Health {
    pub(super) fn set_down(&self, is_down: bool) {
        self.is_down.set(is_down);
        self.changes.set(self.changes.get() + 1);
    }
}

/// Something to pull.
#[derive(Clone, Debug)]
struct Ware {
    path: String,
    content: Bytes,
}

/// A tag was answered as it was long before it was asked for.
#[derive(Debug)]
struct Stale;

impl fmt::Display for Stale {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an old answer")
    }
}

impl std::error::Error for Stale {}

/// What there is to pull, through whom, and how that goes.
pub(super) struct Market<'a> {
    fake: &'a Fake,
    pub(super) nodes: Vec<Health>,
    doors: Vec<SocketAddr>,
    wares: RefCell<VecDeque<Ware>>,
    choices: RefCell<Noise>,
    is_closed: Cell<bool>,
    /// Faults that last and keep nodes from giving each other content.
    cuts: Cell<u64>,
    /// Bytes of what was offered.
    pub(super) made: Cell<u64>,
    /// Bytes that may leave the upstream once more, because of what happened.
    pub(super) excused: Cell<u64>,
    pub(super) pulls: Cell<u64>,
    pub(super) retries: Cell<u64>,
    /// What the moving tag has pointed to and since when, the newest last.
    moved: RefCell<Vec<(Instant, Bytes)>>,
}

impl<'a> Market<'a> {
    pub(super) fn new(seed: u64, fake: &'a Fake, fleet: &Fleet) -> Self {
        let all: Vec<usize> = (0..NODES).collect();
        Self {
            fake,
            nodes: all.iter().map(|_| Health::default()).collect(),
            doors: fleet.doors(&all),
            wares: RefCell::default(),
            choices: RefCell::new(Noise::new(seed)),
            is_closed: Cell::new(false),
            cuts: Cell::new(0),
            moved: RefCell::default(),
            made: Cell::new(0),
            excused: Cell::new(0),
            pulls: Cell::new(0),
            retries: Cell::new(0),
        }
    }

    pub(super) fn close(&self) {
        self.is_closed.set(true);
    }

    pub(super) fn excuse(&self, bytes: u64) {
        self.excused.set(self.excused.get() + bytes);
    }

    /// While such a fault lasts, each side fetches for itself what it wants: what is on offer now,
    /// and what will be.
    pub(super) fn cut(&self, begins: bool) {
        let cuts = self.cuts.get();
        self.cuts.set(if begins { cuts + 1 } else { cuts - 1 });
        if begins {
            let wares = self.wares.borrow();
            self.excuse(wares.iter().map(|ware| ware.content.len() as u64).sum());
        }
    }

    fn below(&self, limit: usize) -> usize {
        let number = self.choices.borrow_mut().below(limit as u64);
        usize::try_from(number).expect("below a usize")
    }

    pub(super) async fn run(&self, seed: u64) -> Result<()> {
        let make = async {
            let mut number = seed << 20;
            while !self.is_closed.get() {
                if number.is_multiple_of(4 * MOVE_EVERY) {
                    self.move_tag(number + 3);
                }
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

    /// Lets the moving tag point to another image.
    fn move_tag(&self, number: u64) {
        let image = self.fake.add_image("app", MOVING, &[noise(number, 1000)]);
        let size = image.manifest_bytes.len() as u64;
        self.made.set(self.made.get() + size);
        self.excuse(self.cuts.get() * size);
        let moved = (Instant::now(), image.manifest_bytes);
        self.moved.borrow_mut().push(moved);
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
        self.excuse(self.cuts.get() * content.len() as u64);
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
                self.until_it_is_had(async |door| {
                    crowd::pull(door, &ware.path, &ware.content).await.map(drop)
                })
                .await
                .with_context(|| ware.path.clone())?;
            }
            if self.below(RESOLVE_EVERY) == 0 {
                self.until_it_is_had(async |door| self.resolve(door).await)
                    .await
                    .context(MOVING)?;
            }
            sleep(Duration::from_millis(self.below(PAUSE) as u64)).await;
        }
        Ok(())
    }

    /// Asks a node for the moving tag, which must not point to what it had left before the question.
    async fn resolve(&self, door: SocketAddr) -> Result<()> {
        let asked = Instant::now();
        let path = format!("/v2/fake/app/manifests/{MOVING}");
        let answer = Request::get(&path).send(door).await?;
        ensure!(
            answer.status() == 200 && answer.end == End::Complete,
            "{answer:?}"
        );
        let moved = self.moved.borrow();
        let is_current = |number: usize| {
            let left = moved.get(number + 1);
            left.is_none_or(|(at, _)| *at > asked)
        };
        let mut all = moved.iter().enumerate();
        let is_known =
            all.any(|(number, (_, manifest))| *manifest == answer.body && is_current(number));
        ensure!(is_known, Stale);
        Ok(())
    }

    /// Lets a client ask nodes that run, one after the other, until one gives it what it wants.
    async fn until_it_is_had(&self, ask: impl AsyncFn(SocketAddr) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        loop {
            let up: Vec<usize> = (0..NODES)
                .filter(|node| !self.nodes[*node].is_down.get())
                .collect();
            let node = up[self.below(up.len())];
            let health = &self.nodes[node];
            let changes = health.changes.get();
            let Err(error) = ask(self.doors[node]).await else {
                self.pulls.set(self.pulls.get() + 1);
                return Ok(());
            };
            let is_untouched = health.changes.get() == changes;
            let is_wrong = error.is::<WrongBytes>() || error.is::<Stale>();
            if is_untouched || is_wrong || start.elapsed() > PULL_LIMIT {
                return Err(error)
                    .with_context(|| format!("through node {node}, after {:?}", start.elapsed()));
            }
            self.retries.set(self.retries.get() + 1);
        }
    }

    /// Pulls what is on offer through every node.
    pub(super) async fn everything_everywhere(&self) -> Result<()> {
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
