//! How long members that say nothing hold up a pull, by the times that users have.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of a mesh")]
mod mesh;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use mesh::{Mesh, Settings, noise, prompt};
use millrace::cluster::Member;
use millrace::pull::{self, Source};
use millrace_protocol::node_id::NodeId;

/// Longer than members may hold up a pull: what ends in time does so for another reason.
const SILENCE: Duration = Duration::from_secs(40);

/// All the time that the hops of a pull have together, while no byte comes.
const ALL_HOPS: Duration = Duration::from_secs(8);

/// The time that the members of a zone have to say what they hold.
const HOLDS: Duration = Duration::from_millis(250);

/// What a busy machine takes for the rest of a pull.
const REST: Duration = Duration::from_secs(4);

/// A node among members that take packets and answer none.
struct Alone {
    mesh: Mesh,
    _mute: Vec<UdpSocket>,
}

impl Alone {
    /// Gives these weights to the node, and to the others: two in its zone, two in another one.
    async fn start(weight: u32, weight_of_others: u32) -> Self {
        let settings = Settings {
            silence: SILENCE,
            holds_patience: pull::Config::default().holds_patience,
            ..Settings::default()
        };
        let mesh = Mesh::strangers_with(&["a"], settings).await;
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
        Self { mesh, _mute: mute }
    }

    /// Pulls what only the upstream has; returns how long that took.
    async fn pull(&self) -> Duration {
        let bytes = noise(0, 2);
        let digest = self.mesh.content.add(bytes.clone());
        let began = Instant::now();
        let pulled = prompt(self.mesh.nodes[0].pull(&digest)).await;
        let (pulled, source) = pulled.expect("pulled");
        assert!(pulled == bytes && source == Source::Upstream);
        began.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hops_that_say_nothing_hold_up_a_pull_for_eight_seconds_together() {
    let alone = Alone::start(0, 1).await;
    let took = alone.pull().await;
    assert!(took >= ALL_HOPS, "its hops were not waited for: {took:?}");
    assert!(took < ALL_HOPS + REST, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_do_not_say_what_they_hold_have_a_quarter_of_a_second() {
    let alone = Alone::start(1, 0).await;
    let took = alone.pull().await;
    assert!(took >= HOLDS, "nobody was waited for: {took:?}");
    assert!(took < HOLDS + REST, "{took:?}");
}
