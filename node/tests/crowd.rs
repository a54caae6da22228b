//! More takes at a time than fit into memory at full speed, and fills that nobody waits for any
//! more: each client has its first bytes all the same.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of a mesh")]
mod mesh;

use futures_util::StreamExt;
use futures_util::future::join_all;
use mesh::{Mesh, Node, Settings, eventually, prompt};
use millrace::pull::BlobBody;
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::oci::Digest;
use tokio::sync::watch;

const CHUNK: usize = CHUNK_BYTES as usize;

/// Blobs that are taken at a time.
const CROWD: u8 = 60;

/// Chunks of each: more than a take has in memory.
const CHUNKS: usize = 14;

/// Chunks that come before the upstream pauses.
const FIRST: usize = 3;

/// Fills that go on at most although nobody waits for them.
const ORPHANS: usize = 8;

/// How many of what is under way nobody waits for.
fn orphans(node: &Node) -> usize {
    let transfers = node.puller.status().transfers;
    let orphans = transfers.iter().filter(|transfer| transfer.waiters == 0);
    orphans.count()
}

/// Lets every body pause behind its first chunks, until the result says true.
fn pause(mesh: &Mesh) -> watch::Sender<bool> {
    let (open, gate) = watch::channel(false);
    *mesh.content.pause.lock() = Some((FIRST * CHUNK, gate));
    open
}

/// Opens a blob and reads its first bytes.
async fn begin(node: &Node, digest: &Digest) -> BlobBody {
    let mut body = node.body(digest, 0..u64::MAX).await.expect("opened");
    body.next().await.expect("a piece").expect("read");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_takes_from_a_slow_peer_has_its_first_bytes() {
    let mesh = Mesh::strangers(&["a", "a"]).await;
    let open = pause(&mesh);
    // One is the home of everything.
    let (home, node) = (&mesh.nodes[0], &mesh.nodes[1]);
    let mut light = node.member();
    light.weight = 0;
    for known in [home, node] {
        known.members.set(vec![home.member(), light.clone()]);
    }
    let content = |seed: u8| vec![seed; CHUNKS * CHUNK];
    let digests: Vec<Digest> = (0..CROWD)
        .map(|seed| mesh.content.add(content(seed)))
        .collect();
    let begun = join_all(digests.iter().map(|digest| begin(node, digest)));
    let bodies = prompt(begun).await;
    assert_eq!(bodies.len(), usize::from(CROWD));
    assert!(node.counted("millrace_pull_chunks_in_memory") >= u64::from(CROWD));
    assert_eq!(node.counted("millrace_pull_takes_waiting"), 0);
    drop(bodies);
    // All orphans but a few are suspended; so are those of the home, which nobody takes any more.
    for known in [node, home] {
        eventually(|| orphans(known) == ORPHANS).await;
    }
    assert_eq!(node.puller.status().transfers.len(), ORPHANS);
    open.send_replace(true);
    // Those that went on come to their end, and the memory is free again.
    prompt(node.settled()).await;
    assert_eq!(node.counted("millrace_pull_chunks_in_memory"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_nobody_waits_for_gives_its_room_to_one_that_somebody_does() {
    let size = 8 * CHUNK;
    let settings = Settings {
        // Room for one of the two.
        max_size: (size + size / 2) as u64,
        ..Settings::default()
    };
    let mesh = Mesh::strangers_with(&["a"], settings).await;
    let _open = pause(&mesh);
    let node = &mesh.nodes[0];
    let left = mesh.content.add(vec![1; size]);
    let body = prompt(begin(node, &left)).await;
    drop(body);
    eventually(|| node.puller.status().transfers[0].waiters == 0).await;
    let wanted = mesh.content.add(vec![2; size]);
    // What it had written makes way as any part does.
    *mesh.content.pause.lock() = None;
    let (pulled, _) = prompt(node.pull(&wanted)).await.expect("pulled");
    assert!(pulled == vec![2; size]);
    prompt(node.settled()).await;
    assert!(node.holds(&wanted).await, "it is kept, not only passed on");
}
