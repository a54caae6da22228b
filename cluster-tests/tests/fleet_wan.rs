//! A line between two sites that is cut while a blob crosses it, or that loses packets: who pulls on the
//! far side has every byte right, and what had crossed does not cross again.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Fake, Then, When, sha256};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::load::crowd::{Client, all, stampede};
use millrace_cluster_tests::netns::Net;
use tokio::time::timeout;

const MIB: usize = 1 << 20;

/// Nodes of the site of the home, and of the other one.
const NORTH: [usize; 2] = [0, 1];
const SOUTH: [usize; 2] = [2, 3];

const HOME: usize = NORTH[0];

const ROUND_TRIP: Duration = Duration::from_millis(40);

/// Slow enough that the line is cut in the middle of a blob.
const SLOW: u64 = 4 << 20;

/// A blob that is on its way for 4 s, and what of it has come when the line is cut.
const BLOB: usize = 16 * MIB;
const BEFORE_CUT: usize = 4 * MIB;

/// So short that who sends has tried again before others take it for dead, which is after 3 s of silence:
/// each pause between two tries is twice the one before, so one of them ends between this and that.
const SHORT_CUT: Duration = Duration::from_millis(1200);

/// What may be lost on the line when it is cut: the window of a young connection, and chunks that had
/// not come whole.
const IN_FLIGHT: u64 = 4 << 20;

/// Hops that were given up.
const PASSED_OVER: &str = "millrace_pull_hops_passed_over_total";

/// One packet of so many is lost: 1.6 %.
const LOST_OF: u64 = 64;

/// A blob for a line that loses packets: it is slow by itself.
const LOSSY_BLOB: usize = 3 * MIB + 12_345;

/// Two sites, each with its own way to the upstream; the network goes last.
struct Sites {
    scene: Scene,
    net: Net,
}

impl Sites {
    async fn start() -> Result<Self> {
        let net = Net::of_sites(&[NORTH.len(), SOUTH.len()]).await?;
        net.wan().set_round_trip(ROUND_TRIP);
        let fake = Fake::start_at(Ipv4Addr::UNSPECIFIED).await?;
        let port = fake.address().port();
        let urls = [0, 1].map(|site| format!("http://{}:{port}", net.upstream_address(site)));
        let plan = Fleet::of(NORTH.len() + SOUTH.len()).on(net.hosts());
        let plan = plan
            .zones(&["north", "north", "south", "south"])
            .each(move |index, node| node.upstream("fake", &urls[index / NORTH.len()]));
        let fleet = plan.start().await?;
        let scene = Scene { fake, fleet };
        Ok(Self { scene, net })
    }

    /// Begins to pull a cold blob on the far side, and cuts the line in the middle of it.
    async fn cut_mid_blob(&self, content: &Bytes) -> Result<Client> {
        let path = self.scene.add(content);
        let slow = Then::healthy().rate(SLOW);
        self.scene.fake.on(When::get("/blobs/"), slow);
        let mut client = self.scene.open(SOUTH[0], &path, content).await?;
        client.until(BEFORE_CUT).await?;
        self.net.wan().cut(true);
        Ok(client)
    }

    /// Demands that no more than the blob has crossed, and what was on its way at the cut.
    async fn crossed_once(&self, before: u64) -> Result<()> {
        let content = self.scene.fleet.received_from_afar().await?;
        ensure!(
            content <= BLOB as u64 + IN_FLIGHT,
            "{content} bytes of content"
        );
        // With headers, and all that nodes say to each other.
        let carried = self.net.wan().carried_bytes() - before;
        let most = BLOB as u64 * 11 / 10 + IN_FLIGHT;
        ensure!(carried <= most, "{carried} bytes were carried");
        Ok(())
    }
}

#[tokio::test]
async fn a_blob_goes_on_where_it_was_when_the_line_is_back_soon() -> Result<()> {
    let sites = Sites::start().await?;
    let (_, content) = sites.scene.fleet.content_of_home(HOME, BLOB);
    let before = sites.net.wan().carried_bytes();
    let mut client = sites.cut_mid_blob(&content).await?;
    let all_of_it = timeout(SHORT_CUT, client.until(BLOB)).await;
    ensure!(all_of_it.is_err(), "it does not come over this line");
    sites.net.wan().cut(false);
    client.finish().await?;
    assert_eq!(sites.scene.fake.sent_bytes("/blobs/"), BLOB as u64);
    sites.crossed_once(before).await
}

#[tokio::test]
async fn a_blob_ends_right_when_the_line_is_gone_until_sites_doubt_each_other() -> Result<()> {
    let sites = Sites::start().await?;
    let (_, content) = sites.scene.fleet.content_of_home(HOME, BLOB);
    let before = sites.net.wan().carried_bytes();
    let client = sites.cut_mid_blob(&content).await?;
    for node in SOUTH {
        sites.scene.fleet.doubted(node, HOME).await;
    }
    // A line that is back in the moment in which a hop is given up carries what was under way in vain.
    eventually("the home is passed over by who reads from it", async || {
        let passed_over = sites.scene.fleet.sum(PASSED_OVER, &["role=\"home\""]).await;
        passed_over.is_ok_and(|passed_over| passed_over >= 1.0)
    })
    .await;
    sites.net.wan().cut(false);
    client.finish().await?;
    // The far site may have gone on by itself.
    let sent = sites.scene.fake.sent_bytes("/blobs/");
    ensure!(sent <= 2 * BLOB as u64, "{sent}");
    sites.crossed_once(before).await?;
    sites.scene.fleet.agree().await;
    let path = Scene::path(&sha256(&content));
    let before = sites.scene.fake.records().len();
    sites.scene.pull(SOUTH[1], &path, &content).await?;
    assert_eq!(
        sites.scene.fake.records().len(),
        before,
        "it is in the cluster"
    );
    Ok(())
}

#[tokio::test]
async fn a_line_that_loses_packets_carries_a_blob_once() -> Result<()> {
    let sites = Sites::start().await?;
    let (_, content) = sites.scene.fleet.content_of_home(HOME, LOSSY_BLOB);
    let path = sites.scene.add(&content);
    sites.net.wan().lose_one_of(LOST_OF);
    let clients = sites.scene.clients(&[NORTH, SOUTH].concat(), 2);
    all(stampede(clients, &path, &content).await)?;
    let size = content.len() as u64;
    assert_eq!(sites.scene.fake.sent_bytes("/blobs/"), size);
    let crossed = sites.scene.fleet.received_from_afar().await?;
    ensure!(
        crossed >= size && crossed * 100 <= size * 105,
        "{crossed} bytes crossed for {size}"
    );
    Ok(())
}
