//! Two nodes that both act as the home of some content, because their views differ: one fetches it,
//! the other follows.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/liar.rs"]
mod liar;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of a mesh")]
mod mesh;

use std::sync::Arc;

use liar::Liar;
use mesh::{Extra, Mesh, Node, eventually, noise, prompt};
use millrace::peer::{PeerError, Peers};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::{AskManifest, OpenBlob, Refusal, Role};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Blob,
    Manifest,
}

const BOTH: [Content; 2] = [Content::Blob, Content::Manifest];

impl Content {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Blob => noise(1, 2),
            Self::Manifest => br#"{"schemaVersion":2,"layers":[]}"#.to_vec(),
        }
    }

    async fn pull(self, node: &Node, digest: &Digest) -> Vec<u8> {
        match self {
            Self::Blob => node.pull(digest).await.expect("pulled").0,
            Self::Manifest => node.manifest(&digest.to_string()).await.expect("pulled"),
        }
    }

    /// Asks a node for it as who follows it does; returns the refusal.
    async fn follow(self, peers: &Peers, node: NodeId, digest: &Digest) -> Option<Refusal> {
        let role = Role::Holder;
        let refused = match self {
            Self::Blob => {
                let question = OpenBlob {
                    digest: *digest,
                    role,
                    origins: Vec::new(),
                    zone: "a".to_owned(),
                    have: 0,
                    copy: false,
                };
                let mut news = peers.open(node, question).await.expect("asked");
                news.next().await.err()
            }
            Self::Manifest => {
                let question = AskManifest {
                    digest: *digest,
                    role,
                    origins: Vec::new(),
                };
                peers.manifest(node, question).await.err()
            }
        };
        match refused? {
            PeerError::Refused { refusal, .. } => Some(refusal),
            error => panic!("{error}"),
        }
    }

    /// How often a node has asked another one for it.
    fn asked(self, node: &Node) -> u64 {
        node.asked(match self {
            Self::Blob => "open",
            Self::Manifest => "manifest",
        })
    }
}

/// Two nodes, each of which believes that everything is its own, and a member that owns nothing and
/// lets the first wait for an answer what it holds.
struct Scene {
    content: Content,
    mesh: Mesh,
    bytes: Vec<u8>,
    digest: Digest,
    /// Which of the nodes is the first; the other one is the second.
    first: usize,
    bystander: watch::Sender<bool>,
    _bystander: Extra,
}

impl Scene {
    async fn start(content: Content, first_has_lower_id: bool) -> Self {
        let mesh = Mesh::strangers(&["a", "a"]).await;
        let lower = usize::from(mesh.nodes[1].id < mesh.nodes[0].id);
        let first = if first_has_lower_id { lower } else { 1 - lower };
        let bytes = content.bytes();
        let (bystander, gate) = watch::channel(false);
        let keeps_waiting = Some((mesh.nodes[first].id, gate));
        let extra = mesh.add_extra(|_| {
            Arc::new(Liar {
                keeps_waiting,
                ..Liar::honest(&bytes)
            })
        });
        mesh.divide();
        Self {
            content,
            digest: mesh.content.add(bytes.clone()),
            mesh,
            bytes,
            first,
            bystander,
            _bystander: extra,
        }
    }

    fn first(&self) -> &Node {
        &self.mesh.nodes[self.first]
    }

    fn second(&self) -> &Node {
        &self.mesh.nodes[1 - self.first]
    }

    /// Lets the first search until it hears from the bystander: it means to fetch and has not.
    async fn first_means_to(&self) {
        let pull = self.pulls(self.first());
        let asked = eventually(|| self.first().asked("holds") >= 2);
        tokio::select! {
            () = pull => panic!("somebody has not answered yet"),
            () = asked => {}
        }
    }

    async fn pulls(&self, node: &Node) {
        let pulled = prompt(self.content.pull(node, &self.digest)).await;
        assert!(pulled == self.bytes);
    }

    fn gets(&self) -> usize {
        self.mesh.gets(&self.digest.to_string())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_asked_the_upstream_is_followed() {
    for (content, first_has_lower_id) in BOTH.into_iter().flat_map(|c| [(c, true), (c, false)]) {
        let scene = Scene::start(content, first_has_lower_id).await;
        scene.bystander.send_replace(true);
        let (open, gate) = watch::channel(false);
        *scene.mesh.content.gate.lock() = Some(gate);
        let second = async {
            eventually(|| scene.gets() == 1).await;
            let release = async {
                eventually(|| content.asked(scene.second()) == 1 || scene.gets() > 1).await;
                open.send_replace(true);
            };
            tokio::join!(scene.pulls(scene.second()), release);
        };
        tokio::join!(scene.pulls(scene.first()), second);
        assert_eq!(scene.gets(), 1, "{content:?}, {first_has_lower_id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_mean_to_fetch_the_one_with_the_higher_id_follows() {
    for content in BOTH {
        let scene = Scene::start(content, true).await;
        scene.first_means_to().await;
        let release = async {
            eventually(|| content.asked(scene.second()) == 1 || scene.gets() > 0).await;
            assert_eq!(scene.gets(), 0, "{content:?}: the other one is to fetch it");
            scene.bystander.send_replace(true);
        };
        tokio::join!(scene.pulls(scene.second()), release);
        scene.pulls(scene.first()).await;
        assert_eq!(scene.gets(), 1, "{content:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_one_that_dies_fetches_it() {
    for content in BOTH {
        let scene = Scene::start(content, true).await;
        scene.first_means_to().await;
        let death = async {
            eventually(|| content.asked(scene.second()) == 1).await;
            assert_eq!(scene.gets(), 0, "{content:?}: the other one lives");
            scene.first().peers.close().await;
        };
        tokio::join!(scene.pulls(scene.second()), death);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_mean_to_fetch_the_one_with_the_lower_id_goes_ahead() {
    for content in BOTH {
        let scene = Scene::start(content, false).await;
        scene.first_means_to().await;
        let (open, gate) = watch::channel(false);
        *scene.mesh.content.gate.lock() = Some(gate);
        let release = async {
            eventually(|| scene.gets() == 1).await;
            scene.bystander.send_replace(true);
            // It has asked before the second one meant to, and was told of nothing.
            eventually(|| content.asked(scene.first()) == 1 || scene.gets() > 1).await;
            open.send_replace(true);
        };
        let pulls = async { tokio::join!(scene.pulls(scene.first()), scene.pulls(scene.second())) };
        tokio::join!(pulls, release);
        assert_eq!(scene.gets(), 1, "{content:?}");
        assert_eq!(content.asked(scene.second()), 0, "{content:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_means_to_fetch_lets_nobody_with_a_lower_id_wait() {
    for content in BOTH {
        let scene = Scene::start(content, false).await;
        scene.first_means_to().await;
        let (first, peers) = (scene.first().id, &scene.second().peers);
        let refusal = prompt(content.follow(peers, first, &scene.digest)).await;
        assert_eq!(refusal, Some(Refusal::Absent), "{content:?}");
    }
}
