//! What nodes tell each other of what they hold: who need not be asked, and who must be.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/liar.rs"]
mod liar;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of pulls")]
mod mesh;

use std::sync::Arc;

use futures_util::StreamExt;
use liar::Liar;
use mesh::{Mesh, Node, PROMPT, eventually, prompt};
use millrace::cluster::{Member, View};
use millrace::peer::{Handler, Members};
use millrace::pull::Source;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{AskHolds, Holding, HoldingsChange, Purpose};
use tokio::sync::watch;

fn blob(seed: u8) -> Vec<u8> {
    vec![seed; 100_000]
}

/// How many questions who holds something the nodes have asked.
fn questions(nodes: &[Node]) -> u64 {
    nodes.iter().map(|node| node.asked("holds")).sum()
}

/// What a member tells that holds nothing, or says so.
fn nothing(placement: u64) -> Vec<HoldingsChange> {
    vec![HoldingsChange::Began { placement }, HoldingsChange::InSync]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_blob_costs_no_question_when_everybody_has_told_what_it_holds() {
    let mesh = Mesh::start(&["a", "a", "a", "a", "b", "b", "b", "b"]).await;
    prompt(mesh.in_sync()).await;
    for seed in 0..8 {
        let bytes = blob(seed);
        let digest = mesh.content.add(bytes.clone());
        let node = &mesh.nodes[usize::from(seed)];
        assert!(prompt(node.pull(&digest)).await.expect("pulled").0 == bytes);
    }
    assert_eq!(mesh.gets("/blobs/"), 8);
    assert_eq!(questions(&mesh.nodes), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_told_what_it_holds_is_read_from_without_a_question() {
    let mesh = Mesh::strangers(&["a"; 4]).await;
    let bytes = blob(1);
    let digest = mesh.content.add(bytes.clone());
    let alone = &mesh.nodes[0];
    prompt(alone.pull(&digest)).await.expect("pulled");
    prompt(alone.settled()).await;
    mesh.introduce();
    prompt(mesh.in_sync()).await;
    *mesh.content.broken.lock() = Some(503);
    for node in &mesh.nodes[1..] {
        let (pulled, source) = prompt(node.pull(&digest)).await.expect("pulled");
        assert!(pulled == bytes);
        assert_ne!(source, Source::Upstream);
    }
    assert_eq!(questions(&mesh.nodes), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_holders_the_less_busy_one_is_read_from() {
    for busy in [0, 1] {
        let mesh = Mesh::strangers(&["a"; 3]).await;
        let digest = mesh.content.add(blob(10));
        for node in &mesh.nodes[..2] {
            prompt(node.pull(&digest)).await.expect("pulled");
            prompt(node.settled()).await;
        }
        let mut members: Vec<Member> = mesh.nodes.iter().map(Node::member).collect();
        members.iter_mut().for_each(|member| member.weight = 0);
        members[2].weight = 1;
        members[busy].load = 7;
        for node in &mesh.nodes {
            node.members.set(members.clone());
        }
        let home = &mesh.nodes[2];
        prompt(home.in_sync(2)).await;
        prompt(home.pull(&digest)).await.expect("pulled");
        let peers = home.peers.status().peers;
        let from = peers.iter().find(|peer| peer.received_bytes > 0);
        let from = from.expect("it came from a peer").id;
        assert_eq!(from, mesh.nodes[1 - busy].id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_told_is_asked_and_nobody_else() {
    let mesh = Mesh::strangers(&["a"; 3]).await;
    let bytes = blob(2);
    let digest = mesh.content.add(bytes.clone());
    let mut quiet = Liar::honest(&bytes);
    quiet.holding = Holding::Whole;
    let _quiet = mesh.add_extra(|_| Arc::new(quiet));
    prompt(mesh.in_sync()).await;
    let (pulled, source) = prompt(mesh.nodes[0].pull(&digest)).await.expect("pulled");
    assert!(pulled == bytes);
    assert_ne!(source, Source::Local);
    assert_eq!(mesh.gets("/blobs/"), 0);
    assert_eq!(questions(&mesh.nodes), 1);
}

/// Pulls past a node that has the blob and tells that it has nothing; returns how often the
/// upstream was asked.
async fn pull_past(tell: impl FnOnce(u64) -> Vec<HoldingsChange>, in_sync: usize) -> usize {
    let mesh = Mesh::strangers(&["a"; 2]).await;
    let bytes = blob(3);
    let digest = mesh.content.add(bytes.clone());
    let mut liar = Liar::honest(&bytes);
    liar.holding = Holding::Whole;
    let _liar = mesh.add_extra(|placement| {
        liar.told = tell(placement);
        Arc::new(liar)
    });
    for node in &mesh.nodes {
        prompt(node.in_sync(in_sync)).await;
    }
    let (pulled, _) = prompt(mesh.nodes[0].pull(&digest)).await.expect("pulled");
    assert!(pulled == bytes);
    mesh.gets("/blobs/")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tells_by_another_placement_is_asked() {
    assert_eq!(pull_past(nothing, 2).await, 1, "it is believed");
    assert_eq!(pull_past(|placement| nothing(placement ^ 1), 1).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_through_with_telling_is_asked() {
    let began = |placement| vec![HoldingsChange::Began { placement }];
    assert_eq!(pull_past(began, 1).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_is_withdrawn() {
    let mesh = Mesh::strangers(&["a"; 3]).await;
    let digest = mesh.content.add(blob(4));
    let alone = &mesh.nodes[0];
    prompt(alone.pull(&digest)).await.expect("pulled");
    prompt(alone.settled()).await;
    mesh.introduce();
    prompt(mesh.in_sync()).await;
    let key = Key::of_digest(&digest);
    let view = alone.members.view();
    let told = view.placement().told(key);
    let others = || mesh.nodes[1..].iter();
    let told = || others().filter(|node| told.contains(&node.id));
    assert!(told().count() > 0);
    assert!(told().all(|node| node.holdings().contents == 1));
    alone.store.remove(&digest).await.expect("removed");
    eventually(|| others().all(|node| node.holdings().contents == 0)).await;
    let other = &mesh.nodes[1];
    prompt(other.pull(&digest)).await.expect("pulled");
    assert_eq!(mesh.gets("/blobs/"), 2, "nobody had it any more");
}

/// Returns the nodes in the order of the walk that they will agree on.
fn walk<'a>(nodes: &'a [Node], digest: &Digest) -> Vec<&'a Node> {
    let members = nodes.iter().map(Node::member).collect();
    let view = View::of(nodes[0].id, "a", members);
    let walk = view.placement().walk(Key::of_digest(digest));
    let node = |id| nodes.iter().find(|node| node.id == id);
    walk.map(|id| node(id).expect("a node")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_hears_of_a_fetch_that_began_before_it_was_the_home() {
    let mesh = Mesh::strangers(&["a"; 3]).await;
    let bytes = blob(5);
    let digest = mesh.content.add(bytes.clone());
    let walk = walk(&mesh.nodes, &digest);
    let [home, old] = [walk[0], walk[2]];
    let (open, gate) = watch::channel(false);
    *mesh.content.gate.lock() = Some(gate);
    let fetch = old.pull(&digest);
    let follow = async {
        eventually(|| mesh.gets("/blobs/") == 1).await;
        mesh.introduce();
        mesh.in_sync().await;
        let asked = home.asked("holds");
        let release = async {
            eventually(|| home.asked("holds") > asked).await;
            open.send_replace(true);
        };
        tokio::join!(home.pull(&digest), release).0
    };
    let (fetched, followed) = prompt(async { tokio::join!(fetch, follow) }).await;
    assert!(fetched.expect("fetched").0 == bytes);
    assert!(followed.expect("followed").0 == bytes);
    assert_eq!(mesh.gets("/blobs/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_asked_with_the_intent_to_fetch_is_asked_back() {
    let mesh = Mesh::strangers(&["a"; 2]).await;
    let bytes = blob(6);
    let digest = mesh.content.add(bytes.clone());
    let mut other = Liar::honest(&bytes);
    other.holding = Holding::Fetching { asked: true };
    let other = mesh.add_extra(|placement| {
        other.told = nothing(placement);
        Arc::new(other)
    });
    for node in &mesh.nodes {
        prompt(node.in_sync(2)).await;
    }
    let home = &mesh.nodes[mesh.by_walk(&digest)[0]];
    for purpose in [Purpose::Know, Purpose::Drop, Purpose::Fetch] {
        let question = AskHolds {
            digests: vec![digest],
            purpose,
        };
        let answer = other.peers.holds(home.id, question, PROMPT).await;
        assert_eq!(answer.expect("answered"), [Holding::No]);
    }
    assert!(prompt(home.pull(&digest)).await.expect("pulled").0 == bytes);
    assert_eq!(questions(&mesh.nodes), 1);
    assert_eq!(mesh.gets("/blobs/"), 0, "the other one was followed");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_misses_changes_is_told_anew() {
    let mesh = Mesh::start(&["a", "a"]).await;
    let [one, other] = &mesh.nodes[..] else {
        unreachable!("two nodes")
    };
    let digest = mesh.content.add(blob(7));
    prompt(one.pull(&digest)).await.expect("pulled");
    prompt(one.settled()).await;
    // In a cluster of two each is responsible for everything.
    let have = HoldingsChange::Have(vec![Key::of_digest(&digest)]);
    let placement = one.members.view().placement().fingerprint();
    let all = [
        HoldingsChange::Began { placement },
        have,
        HoldingsChange::InSync,
    ];
    let mut told = one.supplier.follow(other.id);
    for expected in &all {
        assert_eq!(prompt(told.next()).await.as_ref(), Some(expected));
    }
    let absent = mesh.content.add(blob(8));
    for _ in 0..5000 {
        one.store.remove(&absent).await.expect("nothing to remove");
    }
    for expected in &all {
        assert_eq!(prompt(told.next()).await.as_ref(), Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_announces_a_billion_holdings_is_only_asked() {
    let mesh = Mesh::strangers(&["a"; 3]).await;
    let bytes = blob(9);
    let digest = mesh.content.add(bytes.clone());
    let mut liar = Liar::honest(&bytes);
    liar.holding = Holding::Whole;
    let liar = mesh.add_extra(|placement| {
        liar.told = vec![HoldingsChange::Began { placement }];
        liar.made_up = 250_000;
        Arc::new(liar)
    });
    eventually(|| {
        let node = mesh.nodes[0].holdings();
        assert!(node.contents <= 2_100_000, "{node:?}");
        node.too_much == [liar.id]
    })
    .await;
    // The others are believed as before, and the liar is asked.
    prompt(mesh.in_sync()).await;
    assert_eq!(mesh.nodes[0].holdings().contents, 0);
    assert!(prompt(mesh.nodes[0].pull(&digest)).await.expect("pulled").0 == bytes);
    assert_eq!(mesh.gets("/blobs/"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_with_many_blobs_costs_one_question_to_each_who_has_not_told() {
    let mesh = Mesh::strangers(&["a"; 2]).await;
    let layer = |seed| {
        let digest = mesh.content.add(blob(seed));
        format!(r#"{{"mediaType":"x","digest":"{digest}","size":1}}"#)
    };
    let layers: Vec<String> = (20..26).map(layer).collect();
    let manifest = format!(r#"{{"schemaVersion":2,"layers":[{}]}}"#, layers.join(","));
    let digest = mesh.content.add(manifest.clone().into_bytes());
    let (node, reference) = (&mesh.nodes[0], digest.to_string());
    prompt(node.manifest(&reference)).await.expect("fetched");
    *mesh.content.broken.lock() = Some(503);
    // The first pull that fails tells the node that the upstream is away.
    let missing = mesh.content.add(blob(30));
    prompt(node.pull(&missing)).await.expect_err("it is away");
    let mut quiet = Liar::honest(&blob(20));
    quiet.holding = Holding::Whole;
    let _quiet = mesh.add_extra(|_| Arc::new(quiet));
    prompt(mesh.in_sync()).await;
    let before = node.asked("holds");
    let kept = prompt(node.manifest(&reference)).await.expect("promised");
    assert_eq!(kept, manifest.as_bytes());
    assert_eq!(node.asked("holds") - before, 1, "of six blobs");
}
