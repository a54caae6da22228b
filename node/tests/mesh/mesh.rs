//! Several nodes' pull rooms in one process, joined by real QUIC on loopback, before one fake
//! upstream. `node` is one of them, `given` who it knows, `content` what the upstream has.

mod content;
mod given;
mod node;

use std::sync::{Arc, Once};
use std::time::Duration;

use millrace::cluster::{Identity, Member, View};
use millrace::peer::{Handler, Members, Peers};
use millrace::task::Tasks;
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use tempfile::TempDir;

pub(crate) use content::Content;
use given::{Given, member};
pub(crate) use node::{Node, Settings};
use node::{node, patient};

use super::fake::Fake;

/// Longer than anything takes on a busy machine, unless it waits in a circle.
pub(crate) const PROMPT: Duration = Duration::from_secs(60);

/// Waits for what has to come to an end.
pub(crate) async fn prompt<T>(future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PROMPT, future).await;
    waited.expect("it takes no longer, and waits for nobody in a circle")
}

/// Waits for what nothing tells of.
pub(crate) async fn eventually(mut condition: impl FnMut() -> bool) {
    prompt(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Bytes of a blob of `chunks` chunks, the last one short.
pub(crate) fn noise(seed: u8, chunks: u64) -> Vec<u8> {
    let length = chunks * CHUNK_BYTES - 12_345;
    let mut state = u64::from(seed) + 1;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// Nodes that know each other, and their upstream.
pub(crate) struct Mesh {
    pub(crate) nodes: Vec<Node>,
    pub(crate) upstream: Fake,
    pub(crate) content: Content,
}

impl Mesh {
    /// Starts a node in each of these zones, with the same upstream `corp`; `hub` is the same
    /// registry, asked without a password.
    pub(crate) async fn start(zones: &[&str]) -> Self {
        let mesh = Self::strangers(zones).await;
        mesh.introduce();
        mesh
    }

    /// Lets everybody know everybody.
    pub(crate) fn introduce(&self) {
        let everybody: Vec<Member> = self.nodes.iter().map(Node::member).collect();
        for node in &self.nodes {
            node.members.set(everybody.clone());
        }
    }

    /// Lets everybody believe that all keys are its own, of the members that it knows.
    pub(crate) fn divide(&self) {
        for node in &self.nodes {
            let mut members = node.members.view().members().to_vec();
            for member in &mut members {
                member.weight = u16::from(member.id == node.id).into();
            }
            node.members.set(members);
        }
    }

    /// As [`Mesh::start`], but nobody knows anybody yet.
    pub(crate) async fn strangers(zones: &[&str]) -> Self {
        Self::strangers_with(zones, Settings::default()).await
    }

    /// As [`Mesh::strangers`], with other settings.
    pub(crate) async fn strangers_with(zones: &[&str], settings: Settings) -> Self {
        install_provider();
        let content = Content::default();
        let answers = content.clone();
        let upstream = Fake::start(move |seen| answers.answer(seen)).await;
        let mut nodes = Vec::new();
        for zone in zones {
            nodes.push(node(zone, &upstream.url(), settings.clone()).await);
        }
        Self {
            nodes,
            upstream,
            content,
        }
    }

    /// Adds a node that answers as `handler` says, and makes it the home of everything.
    pub(crate) fn add_home(&self, handler: Arc<dyn Handler>) -> Peers {
        let extra = Extra::start(1);
        extra.peers.serve(handler);
        self.gather(&[], &[&extra]);
        extra.peers
    }

    /// Lets everybody know everybody and a node that owns nothing and answers as `handler` says
    /// for the placement that all have then.
    pub(crate) fn add_extra(&self, handler: impl FnOnce(u64) -> Arc<dyn Handler>) -> Extra {
        let extra = Extra::start(0);
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        let view = self.view(&all, &[&extra]);
        extra.peers.serve(handler(view.placement().fingerprint()));
        self.gather(&all, &[&extra]);
        extra
    }

    /// Lets everybody know everybody and further nodes, which answer already. Of the nodes of the
    /// mesh only those at `owners` own anything.
    pub(crate) fn gather(&self, owners: &[usize], extras: &[&Extra]) {
        let everybody = self.view(owners, extras).members().to_vec();
        // First who would refuse a connection.
        let extras = extras.iter().map(|extra| &extra.members);
        let nodes = self.nodes.iter().map(|node| &node.members);
        for given in extras.chain(nodes) {
            given.set(everybody.clone());
        }
    }

    /// Returns what the first node sees after [`Mesh::gather`].
    pub(crate) fn view(&self, owners: &[usize], extras: &[&Extra]) -> View {
        let nodes = self.nodes.iter().enumerate().map(|(index, node)| Member {
            weight: u32::from(owners.contains(&index)),
            ..node.member()
        });
        let extras = extras.iter().map(|extra| extra.member());
        let first = &self.nodes[0];
        View::of(
            first.id,
            first.members.view().zone(),
            nodes.chain(extras).collect(),
        )
    }

    /// Waits until everybody has told everybody what it holds.
    pub(crate) async fn in_sync(&self) {
        for node in &self.nodes {
            node.in_sync(self.nodes.len() - 1).await;
        }
    }

    /// Returns the indices of the nodes: the home of a digest first, the others behind it.
    pub(crate) fn by_walk(&self, digest: &Digest) -> Vec<usize> {
        let view = self.nodes[0].members.view();
        let home = view.homes(Key::of_digest(digest)).next().expect("members");
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.sort_by_key(|index| self.nodes[*index].id != home);
        order
    }

    /// Returns the home of a digest, and the owner in the other zone and another node of that zone.
    pub(crate) fn along_the_way(&self, digest: &Digest) -> [&Node; 3] {
        let home = &self.nodes[self.by_walk(digest)[0]];
        let view = home.members.view();
        let far = |node: &&Node| node.members.view().zone() != view.zone();
        let far: Vec<_> = self.nodes.iter().filter(far).collect();
        let owners = far[0].members.view();
        let owner = owners.owners(Key::of_digest(digest)).next();
        let is_owner = |node: &&&Node| Some(node.id) == owner;
        let find = |wanted| far.iter().find(|node| is_owner(node) == wanted);
        [
            home,
            find(true).expect("an owner"),
            find(false).expect("another"),
        ]
    }

    /// Returns how many bodies the upstream was asked for whose target contains `part`.
    pub(crate) fn gets(&self, part: &str) -> usize {
        let seen = self.upstream.seen(part);
        seen.iter().filter(|seen| seen.method == "GET").count()
    }

    pub(crate) fn heads(&self, part: &str) -> usize {
        let seen = self.upstream.seen(part);
        seen.iter().filter(|seen| seen.method == "HEAD").count()
    }
}

/// A node that is nothing but the exchange with peers.
pub(crate) struct Extra {
    pub(crate) id: NodeId,
    weight: u32,
    members: Arc<Given>,
    pub(crate) peers: Peers,
    _folder: TempDir,
}

impl Extra {
    /// Starts one that answers nothing yet; without weight it owns nothing.
    pub(crate) fn start(weight: u32) -> Self {
        let folder = TempDir::new().expect("a folder");
        let identity = Identity::open(folder.path()).expect("an identity");
        let members = Arc::new(Given::alone(identity.id(), "a"));
        let tasks = Tasks::default();
        let peers = Peers::bind(&patient(), &identity, members.clone(), &tasks).expect("binds");
        Self {
            id: identity.id(),
            weight,
            members,
            peers,
            _folder: folder,
        }
    }

    fn member(&self) -> Member {
        let address = self.peers.local_address().expect("bound");
        Member {
            weight: self.weight,
            ..member(self.id, "a", address)
        }
    }
}

pub(crate) fn install_provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        rustls::crypto::ring::default_provider()
            .install_default()
            .expect("the first provider");
    });
}
