//! Whom a node keeps waiting for chunks that it lacks, and who would wait in a circle and is sent on.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/liar.rs"]
mod liar;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of a mesh")]
mod mesh;

use std::sync::Arc;
use std::time::Duration;

use liar::Liar;
use mesh::{Extra, Mesh, Node, Settings, eventually, noise, prompt};
use millrace::peer::{ChunkEvent, Peers};
use millrace::pull;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::ReadChunks;

/// How many chunks a home has.
const HERE: u32 = 3;

/// Less than a source keeps a reader waiting for the next chunk.
const SOON: Duration = Duration::from_secs(5);

/// A home that has the beginning and nothing more for as long as it is asked.
fn beginning(bytes: &[u8]) -> Arc<Liar> {
    Arc::new(Liar {
        here: Some(HERE),
        ..Liar::honest(bytes)
    })
}

/// The nodes around the first of a mesh: the homes of a blob, of which the first has the beginning only,
/// and one that reads it.
struct Around {
    first: Extra,
    _next: Extra,
    reader: Extra,
}

impl Around {
    fn of(mesh: &Mesh, bytes: &[u8], digest: Digest, next_home: Liar) -> Self {
        let mut homes = [Extra::start(1), Extra::start(1)];
        let reader = Extra::start(0);
        let view = mesh.view(&[], &[&homes[0], &homes[1], &reader]);
        let home = view.homes(Key::of_digest(&digest)).next();
        homes.sort_by_key(|extra| Some(extra.id) != home);
        let [first, next] = homes;
        first.peers.serve(beginning(bytes));
        next.peers.serve(Arc::new(next_home));
        reader.peers.serve(Arc::new(Liar::honest(bytes)));
        mesh.gather(&[], &[&first, &next, &reader]);
        Self {
            first,
            _next: next,
            reader,
        }
    }
}

/// Reads the first chunk that the home of `node` lacks, as soon as `node` has some.
async fn read(peers: &Peers, node: &Node, digest: Digest) -> ChunkEvent {
    eventually(|| node.counted("millrace_pull_peer_received_bytes_total") > 0).await;
    let question = ReadChunks {
        digest,
        first: HERE,
        count: 1,
        far: false,
        copy: false,
    };
    let mut chunks = peers.read(node.id, question).await.expect("asked");
    chunks.next().await.expect("answered")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hop_is_not_kept_waiting_by_who_waits_for_it() {
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(1, 6);
    let digest = mesh.content.add(bytes.clone());
    let home = mesh.add_home(beginning(&bytes));
    let node = &mesh.nodes[0];
    let reading = tokio::time::timeout(SOON, read(&home, node, digest));
    let event = tokio::select! {
        _ = node.pull(&digest) => panic!("nobody has all of it"),
        event = reading => event.expect("at once"),
    };
    assert!(matches!(event, ChunkEvent::NotYet), "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_sent_by_a_hop_that_is_left_is_not_kept_waiting() {
    let settings = Settings {
        pull: pull::Config {
            hop_patience: Duration::from_millis(500),
            ..pull::Config::default()
        },
        ..Settings::default()
    };
    let mesh = Mesh::strangers_with(&["a"], settings).await;
    let bytes = noise(2, 6);
    let digest = mesh.content.add(bytes.clone());
    let hesitant = Liar {
        hesitates: true,
        ..Liar::honest(&bytes)
    };
    let Around { reader, .. } = &Around::of(&mesh, &bytes, digest, hesitant);
    let node = &mesh.nodes[0];
    let (pulled, event) =
        prompt(async { tokio::join!(node.pull(&digest), read(&reader.peers, node, digest)) }).await;
    assert!(pulled.expect("pulled").0 == bytes);
    // Else it waits until the node has left the next home as well, and asked the upstream.
    assert!(matches!(event, ChunkEvent::NotYet), "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_sent_by_a_hop_that_is_gone_is_kept() {
    const READS: &str = "millrace_peer_questions_received_total{kind=\"read\"}";
    let mesh = Mesh::strangers(&["a"]).await;
    let bytes = noise(3, 6);
    let digest = mesh.content.add(bytes.clone());
    let Around { first, reader, .. } = &Around::of(&mesh, &bytes, digest, Liar::honest(&bytes));
    let node = &mesh.nodes[0];
    let dying = async {
        eventually(|| node.counted(READS) > 0).await;
        first.peers.close().await;
    };
    let reading = read(&reader.peers, node, digest);
    let all = async { tokio::join!(node.pull(&digest), reading, dying) };
    let (pulled, event, ()) = prompt(all).await;
    assert!(pulled.expect("pulled").0 == bytes);
    // All who took it from that home meet at the next one: nobody waits in a circle.
    assert!(matches!(event, ChunkEvent::Chunk { .. }), "{event:?}");
}
