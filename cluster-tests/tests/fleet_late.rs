//! A node that hears the others late, because its control traffic takes its time while content does
//! not: for seconds it believes what is so no more, and it and the others ask each other for content
//! of which each believes that it is another's. That may cost a second fetch, never a client's time.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Fake, Then, When, noise, sha256};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::link::Late;
use millrace_cluster_tests::load::crowd::{all, stampede};
use millrace_cluster_tests::netns::Net;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::{Key, Placement, Seat};

/// The node through which the late one hears everybody.
const FIRST: usize = 0;

/// The node whose weight changes.
const CHANGING: usize = 2;

/// The node that hears of it late.
const LATE: usize = 3;

/// Those who hear of it at once.
const PROMPT: [usize; 3] = [FIRST, 1, CHANGING];

const ALL: [usize; 4] = [FIRST, 1, CHANGING, LATE];

/// How late it is, made in so many steps: each is a silence, and one of 12 s ends a membership.
const STEP: Duration = Duration::from_secs(6);
const STEPS: u32 = 2;

/// Between the late node and the others: both have begun before a question of either arrives.
const ROUND_TRIP: Duration = Duration::from_millis(60);

/// Five chunks.
const SIZE: usize = 1_300_000;

/// Blobs are on their way for more than half a second.
const SLOW: u64 = 2 << 20;

/// Longest that a client may take: nodes that wait for each other hold their clients up for 10 s.
const SOON: Duration = Duration::from_secs(5);

/// Weights of the changing node.
const HEAVY: u32 = 4;
const LIGHT: u32 = 1;

/// What nodes ask each other for a blob.
const OPENED: &str = "millrace_peer_questions_sent_total";

struct Blob {
    digest: Digest,
    path: String,
    content: Bytes,
}

/// A fleet of which one node is late; the network goes last.
struct Apart {
    scene: Scene,
    words: Late,
    next_seed: u64,
    _net: Net,
}

impl Apart {
    /// Starts a fleet in which the node that is to change has this weight.
    async fn start(weight: u32) -> Result<Self> {
        let net = Net::of_sites(&[PROMPT.len(), 1]).await?;
        net.wan().set_round_trip(ROUND_TRIP);
        net.refuse_tcp(&PROMPT, &[LATE])?;
        let first = SocketAddr::from((net.hosts()[FIRST].data(), 5050));
        let words = Late::to(first, net.upstream_address(1).into()).await?;
        let fake = Fake::start_at(Ipv4Addr::UNSPECIFIED).await?;
        fake.on(When::get("/blobs/"), Then::healthy().rate(SLOW));
        let port = fake.address().port();
        let urls = [0, 1].map(|site| format!("http://{}:{port}", net.upstream_address(site)));
        let join = words.address().to_string();
        let plan = Fleet::of(ALL.len()).on(net.hosts());
        let plan =
            plan.weights(&[LIGHT, LIGHT, weight, LIGHT])
                .each(move |index, node| match index {
                    LATE => node
                        .upstream("fake", &urls[1])
                        .set("cluster/join", vec![join.clone()]),
                    _ => node.upstream("fake", &urls[0]),
                });
        let fleet = plan.start().await?;
        Ok(Self {
            scene: Scene { fake, fleet },
            words,
            next_seed: 0,
            _net: net,
        })
    }

    /// Lets the late node be late, until everybody is used to it.
    async fn begin(&self) {
        for step in 1..=STEPS {
            self.words.delay(STEP * step);
            self.scene.fleet.doubted(LATE, FIRST).await;
            self.scene.fleet.agree().await;
        }
    }

    /// Returns the placement of now, and the one when the changing node weighs `weight`.
    fn placements(&self, weight: u32) -> [Placement; 2] {
        let before = self.scene.fleet.placement(&ALL);
        let changing = self.scene.fleet.id(CHANGING);
        let seats = before.seats().iter().cloned();
        let after = Placement::new(seats.map(|seat| match seat.id == changing {
            true => Seat { weight, ..seat },
            false => seat,
        }));
        [before, after]
    }

    /// Makes blobs whose home by the one placement is `homes[0]`, and by the other `homes[1]`.
    fn blobs(&mut self, count: usize, homes: [usize; 2], by: [&Placement; 2]) -> Vec<Blob> {
        let fleet = &self.scene.fleet;
        let is_wanted = |content: &Bytes| {
            let key = Key::of_digest(&sha256(content));
            let found = by.map(|placement| placement.walk(key).next());
            found == homes.map(|home| Some(fleet.id(home)))
        };
        let contents = (self.next_seed..).map(|seed| (seed, noise(seed, SIZE)));
        let contents = contents.filter(|(_, content)| is_wanted(content));
        let chosen: Vec<(u64, Bytes)> = contents.take(count).collect();
        self.next_seed = chosen.last().map_or(self.next_seed, |(seed, _)| seed + 1);
        let added = chosen.into_iter().map(|(_, content)| Blob {
            digest: sha256(&content),
            path: self.scene.add(&content),
            content,
        });
        added.collect()
    }

    /// Changes the weight and waits until all know of it but the late node, and that one can have
    /// content of the changed node again.
    async fn change(&mut self, weight: u32, [before, after]: [&Placement; 2]) -> Result<()> {
        self.scene.fleet.reweigh(CHANGING, weight).await?;
        self.scene.fleet.place_by(&PROMPT, after).await;
        for (observer, member) in [(LATE, CHANGING), (CHANGING, LATE)] {
            eventually("they exchange content", async || {
                let connected = self.is_connected(observer, member).await;
                connected.unwrap_or(false)
            })
            .await;
        }
        self.expect_apart([before, after]).await
    }

    async fn is_connected(&self, observer: usize, member: usize) -> Result<bool> {
        let status = self.scene.fleet.node(observer).status().await?;
        let peers = status["peers"]["peers"].as_array();
        let id = self.scene.fleet.id(member).to_string();
        let mut peers = peers.context("it shows its peers")?.iter();
        let peer = peers.find(|peer| peer["id"] == *id);
        Ok(peer.is_some_and(|peer| peer["connected"] == true && peer["unreachable"].is_null()))
    }

    /// Demands that the late node places content by the one and all others by the other placement.
    async fn expect_apart(&self, [before, after]: [&Placement; 2]) -> Result<()> {
        let fleet = &self.scene.fleet;
        ensure!(
            fleet.places_by(LATE, before).await?,
            "it is not late any more"
        );
        for node in PROMPT {
            ensure!(fleet.places_by(node, after).await?, "node {node} is late");
        }
        for node in ALL {
            let seen = fleet.seen(node).await?;
            ensure!(seen.alive().len() == ALL.len(), "{seen}");
        }
        Ok(())
    }

    /// Pulls all blobs at the same time, each by several clients of every node.
    async fn pull(&self, blobs: &[Blob]) -> Result<()> {
        let doors = self.scene.clients(&ALL, 2);
        let pulls = blobs.iter().map(async |blob| {
            let pulled = stampede(doors.clone(), &blob.path, &blob.content).await;
            let took = all(pulled).with_context(|| blob.path.clone())?;
            ensure!(took < SOON, "{took:?} for {}", blob.path);
            anyhow::Ok(())
        });
        try_join_all(pulls).await?;
        Ok(())
    }

    /// Demands that at most so many bodies of each blob have left the upstream.
    fn expect_bodies(&self, blobs: &[Blob], most: usize) -> Result<()> {
        for blob in blobs {
            let requests = self.scene.fake.requests("GET", &blob.digest.to_string());
            ensure!((1..=most).contains(&requests.len()), "{requests:#?}");
        }
        Ok(())
    }

    /// Waits until the views agree, and demands that from then on a blob costs one fetch, and what is
    /// there costs none.
    async fn expect_agreement(&mut self, there: &[Blob], after: &Placement) -> Result<()> {
        self.scene.fleet.place_by(&ALL, after).await;
        self.scene.fleet.agree().await;
        let asked = self.scene.fake.records().len();
        self.pull(there).await?;
        ensure!(
            self.scene.fake.records().len() == asked,
            "what they have left the upstream again"
        );
        for home in ALL {
            let blobs = self.blobs(2, [home; 2], [after; 2]);
            self.pull(&blobs).await?;
            self.expect_bodies(&blobs, 1)?;
        }
        Ok(())
    }

    /// Returns how often a node has asked others for blobs.
    async fn asked(&self, node: usize) -> Result<f64> {
        let labels = ["kind=\"open\""];
        let asked = self.scene.fleet.node(node).metric(OPENED, &labels).await?;
        Ok(asked.unwrap_or_default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_ask_each_other_keep_no_client_waiting_and_fetch_twice_at_most() -> Result<()> {
    let mut apart = Apart::start(HEAVY).await?;
    apart.begin().await;
    // The late node takes for the changed one's what is its own for all others.
    let [heavy, light] = apart.placements(LIGHT);
    let by = [&heavy, &light];
    let mut blobs = apart.blobs(6, [CHANGING, LATE], by);
    blobs.extend(apart.blobs(3, [CHANGING, FIRST], by));
    apart.change(LIGHT, by).await?;
    let before = (apart.asked(LATE).await?, apart.asked(CHANGING).await?);
    apart.pull(&blobs).await?;
    apart.expect_apart(by).await?;
    apart.expect_bodies(&blobs, 2)?;
    let after = (apart.asked(LATE).await?, apart.asked(CHANGING).await?);
    // The late node has nobody else to ask, and the changed one only for three blobs.
    ensure!(
        after.0 > before.0 && after.1 - before.1 > 3.0,
        "they did not ask each other: {before:?}, {after:?}"
    );
    apart.expect_agreement(&blobs, &light).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_both_are_home_keep_no_client_waiting_and_fetch_twice_at_most() -> Result<()>
{
    let mut apart = Apart::start(LIGHT).await?;
    apart.begin().await;
    let [light, heavy] = apart.placements(HEAVY);
    // What the late node takes for its own, and for another's, is the changed one's for all others.
    let by = [&light, &heavy];
    let mut blobs = apart.blobs(6, [LATE, CHANGING], by);
    blobs.extend(apart.blobs(3, [FIRST, CHANGING], by));
    apart.change(HEAVY, by).await?;
    apart.pull(&blobs).await?;
    apart.expect_apart(by).await?;
    apart.expect_bodies(&blobs, 2)?;
    apart.expect_agreement(&blobs, &heavy).await
}
