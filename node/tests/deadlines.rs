//! How long members that say nothing hold up a pull, by the times that users have.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/liar.rs"]
mod liar;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of a mesh")]
mod mesh;

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use liar::Liar;
use mesh::{Extra, Mesh, Settings, eventually, noise, prompt};
use millrace::cluster::Member;
use millrace::pull::{self, Source};
use millrace_protocol::node_id::NodeId;
use tokio::sync::watch;

/// Longer than members may hold up a pull: what ends in time does so for another reason.
const SILENCE: Duration = Duration::from_secs(40);

/// All the time that the hops of a pull have together, while no byte comes.
const ALL_HOPS: Duration = Duration::from_secs(8);

/// The time that the members of a zone have to say what they hold, and before that to be connected with.
const HOLDS: Duration = Duration::from_millis(250);
const CONNECTED: Duration = Duration::from_secs(1);

/// What a busy machine takes for the rest of a pull.
const REST: Duration = Duration::from_secs(4);

/// A node that has no patience of its own with members that say nothing, and knows none yet.
async fn alone() -> Mesh {
    let settings = Settings {
        silence: SILENCE,
        holds_patience: pull::Config::default().holds_patience,
        ..Settings::default()
    };
    Mesh::strangers_with(&["a"], settings).await
}

/// Makes members that take packets and answer none: two in the zone of the node, two in another one. Gives
/// these weights to the node, and to the others. They are there as long as what is returned.
fn add_mute(mesh: &Mesh, weight: u32, weight_of_others: u32) -> Vec<UdpSocket> {
    let mut members = vec![Member {
        weight,
        ..mesh.nodes[0].member()
    }];
    let mut mute = Vec::new();
    for (number, zone) in (1..).zip(["a", "a", "b", "b"]) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        members.push(Member {
            id: NodeId::new([number; 32]),
            zone: zone.to_owned(),
            addresses: vec![socket.local_addr().expect("bound")],
            weight: weight_of_others,
            ..mesh.nodes[0].member()
        });
        mute.push(socket);
    }
    mesh.nodes[0].members.set(members);
    mute
}

/// Pulls what only the upstream has; returns how long that took.
async fn pull(mesh: &Mesh) -> Duration {
    let bytes = noise(0, 2);
    let digest = mesh.content.add(bytes.clone());
    let began = Instant::now();
    let pulled = prompt(mesh.nodes[0].pull(&digest)).await;
    let (pulled, source) = pulled.expect("pulled");
    assert!(pulled == bytes && source == Source::Upstream);
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn hops_that_say_nothing_hold_up_a_pull_for_eight_seconds_together() {
    let mesh = alone().await;
    let _mute = add_mute(&mesh, 0, 1);
    let took = pull(&mesh).await;
    assert!(took >= ALL_HOPS, "its hops were not waited for: {took:?}");
    assert!(took < ALL_HOPS + REST, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_cannot_be_asked_what_they_hold_have_a_second() {
    let mesh = alone().await;
    let _mute = add_mute(&mesh, 1, 0);
    let took = pull(&mesh).await;
    assert!(took >= CONNECTED, "nobody was waited for: {took:?}");
    assert!(took < CONNECTED + REST, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_do_not_say_what_they_hold_have_a_quarter_of_a_second() {
    let mesh = alone().await;
    let node = &mesh.nodes[0];
    let (_gate, shut) = watch::channel(false);
    let extras = [(); 4].map(|()| Extra::start(0));
    for extra in &extras {
        extra.peers.serve(Arc::new(Liar {
            keeps_waiting: Some((node.id, shut.clone())),
            ..Liar::honest(&[])
        }));
    }
    mesh.gather(&[0], &extras.each_ref());
    eventually(|| {
        let mut connected = extras.iter().map(|extra| node.peers.round_trip(&extra.id));
        connected.all(|round_trip| round_trip.is_some())
    })
    .await;
    let took = pull(&mesh).await;
    assert!(took >= HOLDS, "nobody was waited for: {took:?}");
    assert!(took < HOLDS + REST, "{took:?}");
}
