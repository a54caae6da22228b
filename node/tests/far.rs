//! Ranges far ahead of a blob that another node is still fetching.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/liar.rs"]
mod liar;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of a mesh")]
mod mesh;

use std::ops::Range;
use std::sync::Arc;

use futures_util::StreamExt;
use liar::{Far, Liar};
use mesh::{Mesh, Node, eventually, noise, prompt};
use millrace::peer::Members;
use millrace::pull::PullError;
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use tokio::sync::watch;

/// Chunks of a blob: so many that the far ones are not expected soon while the first are late.
const CHUNKS: u64 = 40;

/// Where the far range begins; not at a chunk's start.
const FAR: u64 = 30 * CHUNK_BYTES + 777;

fn far_range() -> Range<u64> {
    FAR..FAR + 3 * CHUNK_BYTES
}

fn part(bytes: &[u8], range: Range<u64>) -> &[u8] {
    let at = |position: u64| usize::try_from(position).expect("small");
    &bytes[at(range.start)..at(range.end)]
}

/// A mesh whose upstream sends the first three chunks of a blob and pauses; and what lets it go on.
async fn paused(zones: &[&str]) -> (Mesh, watch::Sender<bool>) {
    let mesh = Mesh::start(zones).await;
    let (open, gate) = watch::channel(false);
    let first = usize::try_from(3 * CHUNK_BYTES).expect("small");
    *mesh.content.pause.lock() = Some((first, gate));
    (mesh, open)
}

/// Returns where the requests for the blob began, in their order.
fn starts(mesh: &Mesh, digest: &Digest) -> Vec<u64> {
    let seen = mesh.upstream.seen(&digest.to_string());
    let start = |range: &str| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    };
    let gets = seen.iter().filter(|seen| seen.method == "GET");
    gets.map(|seen| start(seen.header("range")).unwrap_or(0))
        .collect()
}

/// Reads a far range through `node` while the upstream pauses, then the whole, which it lets go on.
async fn read_far_then_all(mesh: &Mesh, node: &Node, bytes: &[u8], open: &watch::Sender<bool>) {
    let digest = mesh.content.add(bytes.to_vec());
    let whole = node.pull(&digest);
    let far = async {
        let far = node.pull_range(&digest, far_range()).await;
        assert!(far.expect("pulled") == part(bytes, far_range()));
        assert!(
            !node.holds(&digest).await,
            "the rest is still at the upstream"
        );
        open.send_replace(true);
    };
    let (whole, ()) = prompt(async { tokio::join!(whole, far) }).await;
    assert!(whole.expect("pulled").0 == bytes);
    let aligned = FAR - FAR % CHUNK_BYTES;
    assert_eq!(starts(mesh, &digest), [0, aligned], "one segment more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_range_is_fetched_by_the_home_while_the_beginning_is_late() {
    let (mesh, open) = paused(&["a", "a"]).await;
    let bytes = noise(1, CHUNKS);
    let digest = mesh.content.add(bytes.clone());
    let taker = mesh.by_walk(&digest)[1];
    read_far_then_all(&mesh, &mesh.nodes[taker], &bytes, &open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_range_travels_over_owner_and_home() {
    let (mesh, open) = paused(&["a", "b", "b"]).await;
    // A blob whose home is in the one zone, taken by a node that owns it in no zone.
    let found = (0..=u8::MAX).find_map(|seed| {
        let bytes = noise(seed, CHUNKS);
        let digest = mesh.content.add(bytes.clone());
        let key = Key::of_digest(&digest);
        let home = mesh.nodes[0].members.view().homes(key).next();
        let owner = mesh.nodes[1].members.view().owners(key).next();
        let taker = mesh.nodes[1..].iter().find(|node| Some(node.id) != owner)?;
        (home == Some(mesh.nodes[0].id)).then_some((bytes, taker))
    });
    let (bytes, taker) = found.expect("one of many");
    read_far_then_all(&mesh, taker, &bytes, &open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_reader_that_goes_away_leaves_the_pull_as_it_is() {
    let (mesh, open) = paused(&["a", "a"]).await;
    let bytes = noise(2, CHUNKS);
    let digest = mesh.content.add(bytes.clone());
    let node = &mesh.nodes[mesh.by_walk(&digest)[1]];
    let whole = node.pull(&digest);
    let far = async {
        let body = node.body(&digest, FAR..u64::MAX).await;
        let mut body = body.expect("opened");
        body.next().await.expect("a piece").expect("read");
        drop(body);
        open.send_replace(true);
    };
    let (whole, ()) = prompt(async { tokio::join!(whole, far) }).await;
    assert!(whole.expect("pulled").0 == bytes);
    assert_eq!(starts(&mesh, &digest).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_dies_with_a_far_segment_under_way_costs_no_pull() {
    let (mesh, open) = paused(&["a", "a"]).await;
    let bytes = noise(3, CHUNKS);
    let digest = mesh.content.add(bytes.clone());
    let order = mesh.by_walk(&digest);
    let (home, node) = (&mesh.nodes[order[0]], &mesh.nodes[order[1]]);
    let whole = node.pull(&digest);
    let far = async {
        let body = node.body(&digest, FAR..u64::MAX).await;
        let mut body = body.expect("opened");
        body.next().await.expect("a piece").expect("read");
        home.peers.close().await;
        open.send_replace(true);
        let mut rest = 0;
        while let Some(piece) = body.next().await {
            rest += piece.expect("read").len();
        }
        assert!(rest > 0, "the far reader went on");
    };
    let (whole, ()) = prompt(async { tokio::join!(whole, far) }).await;
    assert!(whole.expect("pulled").0 == bytes);
}

/// A mesh of one node before a home that has the first chunk, and far ones by its own word.
async fn before_liar(bytes: &[u8], far: Far) -> (Mesh, Digest, millrace::peer::Peers) {
    let mesh = Mesh::strangers(&["a"]).await;
    let digest = mesh.content.add(bytes.to_vec());
    let mut liar = Liar::honest(bytes);
    liar.far = Some(far);
    let peers = mesh.add_home(Arc::new(liar));
    (mesh, digest, peers)
}

fn damaged(bytes: &[u8]) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    damaged[usize::try_from(FAR).expect("small")] ^= 1;
    damaged
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_ahead_of_the_chain_and_does_not_fit_it_is_never_stored() {
    let bytes = noise(4, CHUNKS);
    let (open, gate) = watch::channel(false);
    let far = Far {
        sent: damaged(&bytes),
        stated: damaged(&bytes),
        gate,
    };
    let (mesh, digest, _home) = before_liar(&bytes, far).await;
    let node = &mesh.nodes[0];
    let whole = node.pull(&digest);
    let far = async {
        // Nobody can know yet that it is wrong; who has the digest of the whole will.
        let far = node.pull_range(&digest, far_range()).await;
        assert!(far.expect("pulled") != part(&bytes, far_range()));
        open.send_replace(true);
    };
    let (whole, ()) = prompt(async { tokio::join!(whole, far) }).await;
    assert!(
        matches!(whole, Err(PullError::Contradicted { .. })),
        "{:?}",
        whole.map(|(_, source)| source)
    );
    assert!(!node.holds(&digest).await);
    // The home contradicted itself, so somebody else is asked.
    let (again, _) = prompt(node.pull(&digest)).await.expect("pulled");
    assert!(again == bytes);
    assert_eq!(mesh.gets("/blobs/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_chunk_that_is_not_what_its_sender_says_is_shown_to_nobody() {
    let bytes = noise(5, CHUNKS);
    let (open, gate) = watch::channel(false);
    let far = Far {
        sent: damaged(&bytes),
        stated: bytes.clone(),
        gate,
    };
    let (mesh, digest, _home) = before_liar(&bytes, far).await;
    let node = &mesh.nodes[0];
    let whole = node.pull(&digest);
    let far = node.pull_range(&digest, far_range());
    let opened = async {
        eventually(|| node.counted("millrace_pull_wrong_chunks_total") == 1).await;
        open.send_replace(true);
    };
    let (whole, far, ()) = prompt(async { tokio::join!(whole, far, opened) }).await;
    assert!(whole.expect("pulled").0 == bytes);
    assert!(far.expect("pulled") == part(&bytes, far_range()));
    assert_eq!(mesh.gets("/blobs/"), 0, "the rest of it was right");
}
