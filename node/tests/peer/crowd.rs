//! As many questions at a time as a peer allows, and more.

use std::time::Duration;

use millrace::peer::PeerError;
use millrace_protocol::oci::{Algorithm, Digest};

use super::fake::{Blob, Node, member, quick};
use super::raw::Raw;
use super::{CHUNK, ask, holds, open, pair};

/// Blobs that a node takes from others at a time.
const TAKES: usize = 512;

/// Streams that quinn lets the other side open if it is told nothing.
const RAW_STREAMS: usize = 100;

#[tokio::test]
async fn all_that_a_node_takes_at_a_time_may_come_from_one_peer() {
    let (a, b) = pair();
    let blob = Blob::of(CHUNK);
    b.handler.blobs.lock().push(blob.clone());
    let mut streams = Vec::new();
    // One of each two would be read from; it is a stream like the others.
    for _ in 0..2 * TAKES {
        let asked = a.peers.open(b.id, open(blob.digest)).await;
        streams.push(asked.expect("a stream"));
    }
    ask(&a, b.id).await.expect("answered");
}

#[tokio::test]
async fn who_is_asked_as_much_as_it_allows_is_not_silent() {
    let (a, full) = (Node::start(&quick()), Raw::start());
    a.members
        .set(vec![a.member(), member(full.id, 1, full.address())]);
    let digest = Digest::of(Algorithm::Sha256, b"");
    let asking = async {
        let mut streams = Vec::new();
        for _ in 0..RAW_STREAMS {
            let asked = a.peers.open(full.id, open(digest)).await;
            streams.push(asked.expect("a stream"));
        }
        let opened = a.peers.open(full.id, open(digest)).await.map(drop);
        let patience = Duration::from_millis(500);
        let held = a.peers.holds(full.id, holds(&[]), patience).await.map(drop);
        [opened, held]
    };
    let (refused, _connection) = tokio::join!(asking, full.accept());
    for refused in refused {
        let error = refused.expect_err("no stream is free");
        assert!(matches!(error, PeerError::Crowded { .. }), "{error}");
    }
}
