//! Whom a node names that has no upload slot: who reads the same blob, and came before the asker.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of a mesh")]
mod mesh;

use mesh::{Mesh, Node, noise, prompt};
use millrace::peer::{BlobStream, Handler as _};
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::{BlobNews, OpenBlob, ReadChunks, Role};

/// Lets a node open a blob at another, until the result is dropped.
async fn opened(node: &Node, at: &Node, digest: &Digest) -> BlobStream {
    let question = OpenBlob {
        digest: *digest,
        role: Role::Home,
        origins: Vec::new(),
        zone: "a".to_owned(),
        have: 0,
        copy: false,
    };
    let mut news = node.peers.open(at.id, question).await.expect("asked");
    let first = news.next().await.expect("news");
    assert!(matches!(first, Some(BlobNews::Opened { .. })), "{first:?}");
    news
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_all_slots_taken_is_sent_to_those_who_came_before() {
    let mesh = Mesh::start(&["a"; 3]).await;
    let digest = mesh.content.add(noise(1, 16));
    let [source, first, second] = &mesh.nodes[..] else {
        panic!("three nodes");
    };
    prompt(source.pull(&digest)).await.expect("pulled");
    source.settled().await;
    let others = |node: &Node| {
        let question = ReadChunks {
            digest,
            first: 0,
            count: 1,
            far: false,
            copy: false,
        };
        source.supplier.others(node.id, question)
    };
    assert_eq!(others(second), [], "nobody else reads it");
    let _first = opened(first, source, &digest).await;
    assert_eq!(others(first), [], "nobody came before");
    assert_eq!(others(second), [first.id]);
    let _second = opened(second, source, &digest).await;
    assert_eq!(others(first), [], "two never wait for each other");
    assert_eq!(others(second), [first.id]);
}
