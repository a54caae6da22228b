//! What was said to a peer that does not want to hear it any more: it is not sent.

use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace::peer::{ChunkEvent, Config};

use super::fake::{Blob, Node, eventually, member, quick};
use super::line::Line;
use super::{CHUNK, ask, read};

/// A blob that the sender's buffers take in at once.
const CHUNKS: u32 = 40;
const SIZE: usize = CHUNKS as usize * CHUNK;

/// What of it comes before the line is cut.
const BEFORE_CUT: u64 = 1 << 20;

/// Headers, what is sent again because it was under way at the cut, and what nodes say besides.
const MORE: u64 = 1 << 20;

/// Two nodes, and the line over which the first one gets what the second sends.
async fn over_a_line() -> (Node, Node, Line) {
    let config = Config {
        silence: Duration::from_secs(15),
        ..quick()
    };
    let (a, b) = (Node::start(&config), Node::start(&config));
    let line = Line::to(b.address(), BEFORE_CUT).await;
    a.members
        .set(vec![a.member(), member(b.id, 1, line.address)]);
    b.members.set(vec![a.member(), b.member()]);
    (a, b, line)
}

#[tokio::test]
async fn a_reader_that_has_left_is_sent_nothing_that_was_said_before() {
    let (a, b, line) = over_a_line().await;
    let blobs = [Blob::of(SIZE), Blob::of(SIZE - 1)];
    b.handler.blobs.lock().extend(blobs.clone());

    let all = read(blobs[0].digest, 0, CHUNKS);
    let mut chunks = a.peers.read(b.id, all).await.expect("asked");
    chunks.next().await.expect("a chunk");
    eventually("all of it is said", || {
        let status = b.peers.status();
        let sent = status.peers.first().map(|peer| peer.sent_bytes);
        sent == Some(SIZE as u64)
    })
    .await;
    drop(chunks);
    let opening = async {
        eventually("it has heard that the reader has left", || {
            b.handler.questions.load(Ordering::Relaxed) == 2
        })
        .await;
        line.open();
    };
    let other = read(blobs[1].digest, 0, CHUNKS);
    let (chunks, ()) = tokio::join!(a.peers.read(b.id, other), opening);

    let mut chunks = chunks.expect("asked");
    while !matches!(chunks.next().await.expect("a chunk"), ChunkEvent::Done) {}
    ask(&a, b.id).await.expect("answered");
    let most = SIZE as u64 * 11 / 10 + BEFORE_CUT + MORE;
    let carried = line.carried_bytes();
    assert!(carried <= most, "{carried} bytes for {SIZE}");
}
