//! Blobs for which the disk turns out to have no room while some of them is here already, in order and
//! ahead of it.

use anyhow::{Result, ensure};
use bytes::Bytes;
use millrace_cluster_tests::condition::{eventually, eventually_some};
use millrace_cluster_tests::fake::{Gate, Scene, Then, When, assert_whole, noise};
use millrace_cluster_tests::http::{Exchange, Request};
use millrace_protocol::oci::Digest;

const MIB: usize = 1024 * 1024;

/// Bytes of a blob that fits only while nothing else does.
const LARGE: usize = 60 * MIB;

/// Where the upstream stops for those who read it from the beginning.
const STALL: usize = 2 * MIB;

/// Where somebody else begins to read.
const FAR: usize = 40 * MIB;

/// A node with a store of 80 MiB in which 72 are taken, and a large blob whose upstream stalls.
struct Tight {
    scene: Scene,
    others: Vec<(Digest, Bytes)>,
    content: Bytes,
    large: Digest,
    gate: Gate,
}

impl Tight {
    async fn start() -> Result<Self> {
        let scene = Scene::with(|node| node.set("cache/max_size", "80MiB")).await?;
        let mut others = Vec::new();
        for seed in 0..3 {
            let content = noise(seed, 24 * MIB);
            let digest = scene.fake.add_blob("app", content.clone());
            assert_whole(&scene.send(scene.blob("app", &digest)).await?, &content);
            others.push((digest, content));
        }
        // A blob is whole for its client before it is kept.
        scene.settle().await;
        let content = noise(9, LARGE);
        let large = scene.fake.add_blob("app", content.clone());
        let gate = Gate::default();
        let stalled = Then::healthy().stall(STALL as u64, &gate);
        scene
            .fake
            .on(When::get(&large.to_string()).first(1), stalled);
        Ok(Self {
            scene,
            others,
            content,
            large,
            gate,
        })
    }

    /// Has slow clients read what is in the store still, so that nothing of it can go.
    async fn pin_others(&self) -> Result<Vec<Exchange>> {
        let mut readers = Vec::new();
        for (digest, _) in &self.others {
            let reader = self.scene.open(self.scene.blob("app", digest)).await?;
            if reader.head().header("x-millrace-source") == Some("local") {
                readers.push(reader);
            }
        }
        Ok(readers)
    }

    fn from(&self, start: usize) -> Request {
        let range = format!("bytes={start}-");
        self.scene.blob("app", &self.large).header("Range", &range)
    }
}

#[tokio::test]
async fn what_came_ahead_counts_when_the_rest_is_relayed() -> Result<()> {
    let tight = Tight::start().await?;
    let scene = &tight.scene;
    let mut reader = scene.open(scene.blob("app", &tight.large)).await?;
    let begin = reader.read_at_least(MIB).await?;
    let far = scene.send(tight.from(FAR));
    // All of its end is here, but for what is held back until the digest is known.
    let at_hand = eventually("the end is here", async || {
        scene.fake.sent_bytes(&tight.large.to_string()) >= (STALL + LARGE - FAR) as u64
    });
    let finished = async {
        at_hand.await;
        let pinned = tight.pin_others().await?;
        ensure!(!pinned.is_empty(), "there is room");
        tight.gate.open();
        let rest = reader.finish().await?;
        Ok((rest, pinned))
    };
    let (far, finished) = tokio::join!(far, finished);
    let (rest, _pinned) = finished?;
    ensure!(
        [begin, rest.body].concat() == tight.content,
        "other bytes came in order"
    );
    let far = far?;
    assert_eq!(far.status(), 206);
    ensure!(far.body == tight.content[FAR..], "other bytes came");
    Ok(())
}

#[tokio::test]
async fn a_far_range_without_room_harms_nobody_before_it() -> Result<()> {
    let tight = Tight::start().await?;
    let scene = &tight.scene;
    let mut reader = scene.open(scene.blob("app", &tight.large)).await?;
    let begin = reader.read_at_least(MIB).await?;
    let pinned = tight.pin_others().await?;
    assert_eq!(pinned.len(), 3);
    let mut far = scene.open(tight.from(FAR)).await?;
    let first = far.read_at_least(1).await?;
    let rest = far.finish().await?;
    let far = [first, rest.body].concat();
    ensure!(tight.content[FAR..].starts_with(&far), "other bytes came");
    ensure!(far.len() < LARGE - FAR, "there was room");
    tight.gate.open();
    let rest = reader.finish().await?;
    ensure!(
        [begin, rest.body].concat() == tight.content,
        "other bytes came in order"
    );
    let end = eventually_some("the end can be had", async || {
        let answer = scene.send(tight.from(LARGE - 1000)).await.ok()?;
        (answer.status() == 206 && answer.body.len() == 1000).then_some(answer)
    })
    .await;
    ensure!(
        end.body == tight.content[LARGE - 1000..],
        "other bytes came"
    );
    Ok(())
}
