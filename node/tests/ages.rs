//! How old what nodes say of a tag is: lifetimes do not add up over hops, of what several remember the
//! youngest counts, and what is always checked is no older than the question.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of a mesh")]
mod mesh;

use std::time::Duration;

use mesh::{Mesh, Node, Settings, eventually, prompt};
use millrace::peer::Members;
use millrace::store::{TagName, TagRecord};
use millrace::upstream::{TagPolicy, TagRule};
use millrace_protocol::oci::{Digest, Tag};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::RecallTag;
use tokio::sync::watch;

/// Counts who has asked a node what a tag points to.
const RECEIVED: &str = "millrace_peer_questions_received_total{kind=\"resolve\"}";

/// How long an answer for a tag may be used.
const TTL: Duration = Duration::from_secs(3_600);

fn name() -> TagName {
    TagName {
        upstream: "corp".to_owned(),
        repository: "team/app".parse().expect("a name"),
        tag: tag(),
    }
}

fn tag() -> Tag {
    "v1".parse().expect("a tag")
}

fn unix_now() -> u64 {
    unix_time().as_secs()
}

fn unix_time() -> Duration {
    let now = std::time::UNIX_EPOCH.elapsed();
    now.expect("after 1970")
}

/// Returns since when a node has what it knows of the tag, in seconds since 1970.
async fn checked_at(node: &Node) -> u64 {
    let record = node.store.tag(&name()).await.expect("a store");
    record.expect("known").checked_at
}

/// Lets a node have heard of the upstream so long ago that the tag points to `digest`.
async fn heard(node: &Node, digest: &Digest, age: Duration) {
    let checked_at = unix_now() - age.as_secs();
    let record = TagRecord {
        digest: *digest,
        resolved_at: checked_at,
        checked_at,
    };
    let credential = node.origin_of("corp", "team/app");
    let credential = credential.upstream.credential().to_string();
    let put = node.store.put_tag(name(), credential, record).await;
    put.expect("a store");
}

/// Settings with this policy for all tags.
fn with_policy(policy: TagPolicy, ttl: Option<Duration>) -> Settings {
    let mut settings = Settings::default();
    settings.pull.tags = vec![TagRule {
        pattern: "*".to_owned(),
        policy,
        ttl,
    }];
    settings
}

/// Returns the tag's home, and the other nodes.
fn home_and_others(mesh: &Mesh) -> (&Node, Vec<&Node>) {
    let TagName {
        upstream,
        repository,
        tag,
    } = name();
    let key = Key::of_tag(&upstream, &repository, &tag);
    let home = mesh.nodes[0].members.view().homes(key).next();
    let (home, others): (Vec<&Node>, Vec<&Node>) =
        mesh.nodes.iter().partition(|node| Some(node.id) == home);
    (home[0], others)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_home_knows_is_as_old_where_it_was_asked() {
    /// What is left of the lifetime at the home: a busy machine must come to ask within it.
    const LEFT: Duration = Duration::from_secs(6);
    let settings = with_policy(TagPolicy::Ttl, Some(TTL));
    let mesh = Mesh::strangers_with(&["a", "a"], settings).await;
    mesh.introduce();
    let [old, new] = [1, 2].map(|number| format!("{{\"number\":{number}}}").into_bytes());
    let digest = mesh.content.add(old.clone());
    let (home, others) = home_and_others(&mesh);
    heard(home, &digest, TTL - LEFT).await;
    let due = unix_now() + LEFT.as_secs();
    let node = others[0];
    assert!(prompt(node.manifest("v1")).await.expect("known") == old);
    assert_eq!(mesh.heads("/manifests/v1"), 0, "the home's answer is fresh");
    mesh.content.tag("v1", &mesh.content.add(new.clone()));
    eventually(|| unix_now() > due).await;
    assert!(prompt(node.manifest("v1")).await.expect("checked") == new);
    assert_eq!(mesh.heads("/manifests/v1"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ages_on_its_way_and_while_its_manifest_is_fetched() {
    let settings = with_policy(TagPolicy::Ttl, Some(TTL));
    let mesh = Mesh::strangers_with(&["a", "a"], settings).await;
    mesh.introduce();
    let digest = mesh.content.add(b"{\"number\":1}".to_vec());
    let (home, others) = home_and_others(&mesh);
    heard(home, &digest, TTL / 2).await;
    let since = checked_at(home).await;
    let before = unix_time();
    let question = RecallTag {
        upstream: name().upstream,
        repository: name().repository,
        tag: tag(),
    };
    let recalled = prompt(others[0].peers.recall(home.id, question)).await;
    let recalled = recalled.expect("an answer").expect("known").age;
    let truth = before - Duration::from_secs(since);
    assert!(recalled >= truth, "{recalled:?}, not {truth:?}");
    let (open, gate) = watch::channel(false);
    *mesh.content.gate.lock() = Some(gate);
    let fetched = async {
        eventually(|| mesh.gets(&digest.to_string()) > 0).await;
        let then = unix_now() + 2;
        eventually(|| unix_now() > then).await;
        open.send_replace(true);
    };
    let (pulled, ()) = tokio::join!(prompt(others[0].manifest("v1")), fetched);
    pulled.expect("pulled");
    assert_eq!(mesh.heads("/manifests/v1"), 0, "the home's answer is fresh");
    assert!(checked_at(others[0]).await <= since, "it became younger");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_youngest_that_members_remember_counts_while_the_upstream_is_away() {
    for older in [0, 1] {
        let mesh = Mesh::start(&["a"; 4]).await;
        let (home, others) = home_and_others(&mesh);
        let contents = [b"{\"old\":1}".to_vec(), b"{\"young\":1}".to_vec()];
        let ages = [TTL, TTL / 2];
        for (number, content) in contents.iter().enumerate() {
            let digest = mesh.content.add(content.clone());
            let node = others[if number == 0 { older } else { 1 - older }];
            let pulled = prompt(node.manifest(&digest.to_string())).await;
            pulled.expect("pulled");
            heard(node, &digest, ages[number]).await;
        }
        *mesh.content.broken.lock() = Some(503);
        for node in [home, others[2]] {
            let remembered = prompt(node.manifest("v1")).await.expect("remembered");
            assert!(remembered == contents[1], "{older}");
        }
    }
}

/// A mesh whose tags are always checked, with `v1` pulled by everybody and moved while a check of
/// it runs, and what lets that check go on.
async fn moved_during_a_check(
    zones: &[&str],
    asks: impl AsyncFn(&Mesh, watch::Sender<bool>) -> Vec<Vec<u8>>,
) {
    let mesh = Mesh::strangers_with(zones, with_policy(TagPolicy::Always, None)).await;
    mesh.introduce();
    let [old, new] = [1, 2].map(|number| format!("{{\"number\":{number}}}").into_bytes());
    mesh.content.tag("v1", &mesh.content.add(old.clone()));
    for node in &mesh.nodes {
        assert!(prompt(node.manifest("v1")).await.expect("pulled") == old);
    }
    let (open, gate) = watch::channel(false);
    *mesh.content.gate.lock() = Some(gate);
    let before = mesh.heads("/manifests/v1");
    let (home, _) = home_and_others(&mesh);
    let early = prompt(home.manifest("v1"));
    let late = async {
        eventually(|| mesh.heads("/manifests/v1") > before).await;
        mesh.content.tag("v1", &mesh.content.add(new.clone()));
        asks(&mesh, open).await
    };
    let (early, late) = tokio::join!(early, late);
    early.expect("checked");
    for told in late {
        assert!(told == new, "it is older than the question");
    }
    assert_eq!(mesh.heads("/manifests/v1"), before + 2, "those share one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_is_always_checked_is_checked_behind_the_question() {
    moved_during_a_check(&["a"], async |mesh, open| {
        let node = &mesh.nodes[0];
        let ask = || prompt(node.manifest("v1"));
        let asked = async {
            open.send_replace(true);
        };
        let (one, other, ()) = tokio::join!(biased; ask(), ask(), asked);
        vec![one.expect("checked"), other.expect("checked")]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_is_one_that_its_home_is_asked_for() {
    moved_during_a_check(&["a"; 3], async |mesh, open| {
        let (home, others) = home_and_others(mesh);
        let received = || home.counted(RECEIVED);
        let before = received();
        let asked = async {
            eventually(|| received() == before + 2).await;
            open.send_replace(true);
        };
        let ask = |index: usize| prompt(others[index].manifest("v1"));
        let (one, other, ()) = tokio::join!(ask(0), ask(1), asked);
        vec![one.expect("checked"), other.expect("checked")]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_comes_late_does_not_bring_an_older_answer_back() {
    let settings = with_policy(TagPolicy::Always, None);
    let mesh = Mesh::strangers_with(&["a", "a"], settings).await;
    mesh.introduce();
    let contents = [1, 2].map(|number| format!("{{\"number\":{number}}}").into_bytes());
    let [old, new] = contents.clone().map(|content| mesh.content.add(content));
    mesh.content.tag("v1", &old);
    let (home, others) = home_and_others(&mesh);
    let gate = || {
        let (open, gate) = watch::channel(false);
        *mesh.content.gate.lock() = Some(gate);
        open
    };
    let check = gate();
    let early = prompt(home.manifest("v1"));
    let late = async {
        eventually(|| mesh.heads("/manifests/v1") == 1).await;
        let fetch = gate();
        check.send_replace(true);
        eventually(|| mesh.gets(&old.to_string()) == 1).await;
        *mesh.content.gate.lock() = None;
        mesh.content.tag("v1", &new);
        let late = prompt(others[0].manifest("v1")).await;
        fetch.send_replace(true);
        late
    };
    let (early, late) = tokio::join!(early, late);
    assert!(early.expect("checked") == contents[0]);
    assert!(late.expect("checked") == contents[1]);
    let record = home.store.tag(&name()).await.expect("a store");
    assert_eq!(record.expect("known").digest, new);
}
