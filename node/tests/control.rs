//! Bad input on the control plane, of a member that the gate has let in: whatever it says, the others
//! stay together, take newcomers in, and count it. What comes at the gate itself is `gate`'s.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use millrace::cluster::State;
use millrace_protocol::membership::{
    Budgets, Contact, MAX_CONTACTS_TOLD, MAX_DENIED, MAX_GREETING_BYTES, Presence, encode,
};
use millrace_protocol::node_id::NodeId;
use prometheus_client::registry::Registry;

#[path = "control/door.rs"]
mod door;
#[path = "control/gate.rs"]
mod gate;
#[path = "cluster/host.rs"]
mod host;
#[path = "control/rogue.rs"]
mod rogue;

use host::{Host, Site, eventually, ids, together};
use rogue::{BUDGETS, MEMBERS, Rogue};

/// Two nodes, and a member that one of them has let in.
struct Scene {
    site: Site,
    one: Host,
    two: Host,
    rogue: Rogue,
}

impl Scene {
    async fn new() -> Self {
        let site = Site::new();
        let one = site.host("1", &[]);
        let two = site.host("2", &[one.address()]);
        together(&[&one, &two]).await;
        let rogue = Rogue::enter(one.address(), &secret_of(&site)).await;
        Self {
            site,
            one,
            two,
            rogue,
        }
    }

    /// The rogue greets as a sound member would, and gossip reaches both nodes.
    async fn rogue_is_a_member(&mut self) {
        let greeting = self.rogue.greeting();
        let answer = self.rogue.greet(encode(&greeting)).await;
        answer.expect("the node greets back");
        let announcement = self.rogue.announcement();
        self.rogue.gossip(MEMBERS, encode(&announcement)).await;
        let (id, one, two) = (self.rogue.id, &self.one, &self.two);
        let known = || one.members().contains(&id) && two.members().contains(&id);
        self.rogue.until("it is a member", known).await;
    }

    /// Both nodes take part, may be asked, and take a newcomer in.
    async fn all_is_well(&self) {
        for host in [&self.one, &self.two] {
            assert_eq!(host.cluster.status().state, State::Running);
        }
        let three = self.site.host("3", &[self.two.address()]);
        let sound: BTreeSet<NodeId> = ids(&[&self.one, &self.two, &three]);
        let took = eventually("the sound ones are together", || {
            let hosts = [&self.one, &self.two, &three];
            hosts.iter().all(|host| sound.is_subset(&host.alive()))
        })
        .await;
        assert!(took < Duration::from_secs(5), "{took:?}");
        three.leave().await;
    }
}

fn secret_of(site: &Site) -> String {
    let secret = std::fs::read_to_string(site.path("secret")).expect("a secret");
    secret.trim().to_owned()
}

/// Returns the sum of the node's series whose text begins with `name`.
fn count(host: &Host, name: &str) -> u64 {
    let mut registry = Registry::default();
    host.cluster.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
    let series = text.lines().filter(|line| line.starts_with(name));
    let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}

fn nonsense(host: &Host, message: &str) -> u64 {
    count(
        host,
        &format!("millrace_cluster_nonsense_total{{message=\"{message}\""),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_greeting_gets_no_answer() {
    let mut scene = Scene::new().await;
    let sound = encode(&scene.rogue.greeting());
    let cut = sound[..sound.len() / 2].to_vec();
    let longer = [&sound[..], &[0]].concat();
    let mut another_format = sound.clone();
    another_format[0] = 2;
    // A billion contacts, which are not there.
    let mut endless = sound[..sound.len() - 1].to_vec();
    endless.extend([0xfc, 0x00, 0xca, 0x9a, 0x3b]);
    let too_large = [&[1], &vec![0; MAX_GREETING_BYTES][..]].concat();
    let random = (0..4096_u32).map(|number| (u32::wrapping_mul(number, 2_654_435_761) >> 13) as u8);
    let bad = [
        Vec::new(),
        cut,
        longer,
        another_format,
        endless,
        too_large,
        random.collect(),
    ];
    for (number, bytes) in bad.iter().enumerate() {
        let answer = scene.rogue.greet(bytes.clone()).await;
        assert!(answer.is_none(), "{number}");
    }
    let one = &scene.one;
    let counted = || nonsense(one, "greeting") == bad.len() as u64;
    scene.rogue.until("all are counted", counted).await;
    assert!(!scene.one.members().contains(&scene.rogue.id));
    scene.rogue_is_a_member().await;
    scene.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_announcement_is_rejected_and_travels_no_further() {
    let mut scene = Scene::new().await;
    scene.rogue_is_a_member().await;
    let sound = encode(&scene.rogue.announcement());
    let mut another_format = sound.clone();
    another_format[0] = 2;
    let longer = [&sound[..], &[0]].concat();
    let mut heavy = scene.rogue.announcement();
    heavy.weight = 17;
    let mut denying = scene.rogue.announcement();
    denying.denied = (0..=MAX_DENIED as u8)
        .map(|n| NodeId::new([n; 32]))
        .collect();
    let mut eternal = scene.rogue.announcement();
    eternal.generation = u64::MAX;
    let bad = [
        b"nonsense".to_vec(),
        vec![0; 8 * 1024 + 1],
        another_format,
        longer,
        encode(&heavy),
        encode(&denying),
        encode(&eternal),
    ];
    for bytes in &bad {
        scene.rogue.gossip(MEMBERS, bytes.clone()).await;
    }
    for bytes in [
        vec![1; 300],
        encode(&Budgets { words: Vec::new() })[..1].to_vec(),
    ] {
        scene.rogue.gossip(BUDGETS, bytes).await;
    }
    let (one, id) = (&scene.one, scene.rogue.id);
    let counted =
        || nonsense(one, "announcement") == bad.len() as u64 && nonsense(one, "budgets") == 2;
    scene.rogue.until("all are counted", counted).await;
    assert!(
        scene.one.alive().contains(&id),
        "what it said before stands"
    );
    let passed_on = count(&scene.two, "millrace_cluster_nonsense_total");
    assert_eq!(passed_on, 0);
    scene.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_before_counts_no_more_and_other_versions_are_members() {
    let mut scene = Scene::new().await;
    let mut leaving = scene.rogue.announcement();
    leaving.presence = Presence::Leaving;
    let early = encode(&scene.rogue.greeting());
    scene.rogue_is_a_member().await;
    let stale = |host: &Host| {
        count(
            host,
            "millrace_cluster_announcements_total{outcome=\"stale\"",
        )
    };
    let before = stale(&scene.one);
    scene.rogue.gossip(MEMBERS, encode(&leaving)).await;
    assert!(scene.rogue.greet(early).await.is_some());
    let one = &scene.one;
    scene
        .rogue
        .until("both are stale", || stale(one) >= before + 2)
        .await;
    assert!(scene.one.alive().contains(&scene.rogue.id));
    let mut foreign = scene.rogue.announcement();
    (foreign.version, foreign.wire_version) = ("99.0".to_owned(), 99);
    scene.rogue.gossip(MEMBERS, encode(&foreign)).await;
    let (two, id) = (&scene.two, scene.rogue.id);
    let speaks = || {
        two.view()
            .member(&id)
            .is_some_and(|member| member.wire_version == 99)
    };
    scene
        .rogue
        .until("it is known to speak another one", speaks)
        .await;
    scene.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_about_others_takes_nobody_s_seat() {
    let mut scene = Scene::new().await;
    scene.rogue_is_a_member().await;
    let generation = |host: &Host| {
        let view = host.view();
        view.member(&host.id).map(|member| member.generation)
    };
    let before = generation(&scene.one);
    for known in [u64::MAX, u64::MAX - 1, 1 << 40] {
        let mut greeting = scene.rogue.greeting();
        greeting.you = Some((known, 1));
        scene
            .rogue
            .greet(encode(&greeting))
            .await
            .expect("greeted back");
    }
    assert_eq!(generation(&scene.one), before);
    assert_eq!(nonsense(&scene.one, "greeting"), 3);
    // More nodes than anybody remembers, none of them there.
    for batch in 0..3_u8 {
        let mut greeting = scene.rogue.greeting();
        let invented = (0..MAX_CONTACTS_TOLD as u16).map(|number| Contact {
            id: NodeId::new(
                [batch, number as u8, (number >> 8) as u8].repeat(11)[..32]
                    .try_into()
                    .expect("32 bytes"),
            ),
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 1))],
        });
        greeting.contacts = invented.collect();
        scene
            .rogue
            .greet(encode(&greeting))
            .await
            .expect("greeted back");
    }
    scene.all_is_well().await;
    let mut denying = scene.rogue.announcement();
    denying.denied = (0..MAX_DENIED as u8)
        .map(|n| NodeId::new([n; 32]))
        .collect();
    denying.denied[0] = scene.one.id;
    scene.rogue.gossip(MEMBERS, encode(&denying)).await;
    let one = &scene.one;
    let heeded = || one.cluster.status().denied.len() == MAX_DENIED - 1;
    scene
        .rogue
        .until("whom it keeps out is kept out", heeded)
        .await;
    assert_eq!(scene.one.cluster.status().state, State::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_gossip_harm_nobody() {
    let mut scene = Scene::new().await;
    scene.rogue_is_a_member().await;
    let endless = [0xff_u8, 0xff, 0xff, 0xff, 0x0f].to_vec();
    let random: Vec<u8> = (0..1_u32 << 20)
        .map(|number| (u32::wrapping_mul(number, 2_654_435_761) >> 11) as u8)
        .collect();
    for bytes in [endless, random, vec![0; 300_000]] {
        scene.rogue.make_noise(bytes);
    }
    scene.rogue_is_a_member().await;
    scene.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_announcements_suspends_nobody() {
    const FLOOD: u64 = 10_000;
    // Each of these is another placement for everybody.
    const RESTLESS: u64 = 100;
    let mut scene = Scene::new().await;
    scene.rogue_is_a_member().await;
    let sound = ids(&[&scene.one, &scene.two]);
    for number in 0..FLOOD {
        let mut announcement = scene.rogue.announcement();
        announcement.weight = number.saturating_sub(FLOOD - RESTLESS) as u32 % 5;
        announcement.load = number as u32;
        scene.rogue.gossip(MEMBERS, encode(&announcement)).await;
    }
    let mut last = scene.rogue.announcement();
    last.zone = "last".to_owned();
    scene.rogue.gossip(MEMBERS, encode(&last)).await;
    let (one, two, id) = (&scene.one, &scene.two, scene.rogue.id);
    let zone = |host: &Host| host.view().member(&id).map(|member| member.zone.clone());
    let is_through = || {
        assert!(sound.is_subset(&one.alive()) && sound.is_subset(&two.alive()));
        [one, two]
            .map(zone)
            .iter()
            .all(|zone| zone.as_deref() == Some("last"))
    };
    scene.rogue.until("it is through", is_through).await;
    scene.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_announcements_that_arrive_together_all_count() {
    let mut scene = Scene::new().await;
    scene.rogue_is_a_member().await;
    let denied: Vec<NodeId> = (0..MAX_DENIED as u8)
        .map(|n| NodeId::new([n; 32]))
        .collect();
    // As from a node that was not read for a while; the last one differs.
    for number in 0..60 {
        let mut announcement = scene.rogue.announcement();
        announcement.denied.clone_from(&denied);
        announcement.zone = if number < 59 { "before" } else { "last" }.to_owned();
        scene.rogue.gossip(MEMBERS, encode(&announcement)).await;
    }
    let (one, id) = (&scene.one, scene.rogue.id);
    let is_through = || {
        one.view()
            .member(&id)
            .is_some_and(|member| member.zone == "last")
    };
    scene.rogue.until("the last one is heard", is_through).await;
    scene.all_is_well().await;
}
