//! What is stored just while another node asks for it.

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use millrace::peer::{ChunkEvent, Handler as _};
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::{BlobNews, OpenBlob, ReadChunks, Role};
use tokio::sync::watch;

use super::mesh::{Mesh, Node, eventually, noise, prompt};

/// Whoever asks.
const ASKER: NodeId = NodeId::new([7; 32]);

/// What a node answers first to who asked it while a blob was on its way, and looks at the answer only
/// when the blob is stored.
async fn first<T>(ask: impl FnOnce(&Node, Digest) -> BoxStream<'static, T>) -> Option<T> {
    let mesh = Mesh::start(&["a"]).await;
    let bytes = noise(1, 3);
    let digest = mesh.content.add(bytes.clone());
    let (open, gate) = watch::channel(false);
    let half = usize::try_from(CHUNK_BYTES).expect("small");
    *mesh.content.pause.lock() = Some((half, gate));
    let node = &mesh.nodes[0];
    let asking = async {
        eventually(|| {
            let transfers = node.puller.status().transfers;
            transfers.iter().any(|transfer| transfer.received_bytes > 0)
        })
        .await;
        let mut answers = ask(node, digest);
        // It begins to look into the store, which has not got it.
        let early = answers.next().now_or_never();
        open.send_replace(true);
        (early, answers)
    };
    let pulling = async { tokio::join!(node.pull(&digest), asking) };
    let (pulled, (early, mut answers)) = prompt(pulling).await;
    assert!(pulled.expect("pulled").0 == bytes);
    prompt(node.settled()).await;
    match early {
        // The look into the store was faster than this test.
        Some(answer) => answer,
        None => prompt(answers.next()).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_of_what_is_just_stored_is_given() {
    let read = |node: &Node, digest| {
        let question = ReadChunks {
            digest,
            first: 0,
            count: 1,
            far: false,
            copy: false,
        };
        node.supplier.read(ASKER, question)
    };
    let event = first(read).await;
    assert!(
        matches!(event, Some(ChunkEvent::Chunk { index: 0, .. })),
        "{event:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_just_stored_is_opened_at_its_holder() {
    let open = |node: &Node, digest| {
        let question = OpenBlob {
            digest,
            role: Role::Holder,
            origins: Vec::new(),
            zone: "a".to_owned(),
            have: 0,
            copy: false,
        };
        node.supplier.open(ASKER, question)
    };
    let news = first(open).await;
    assert!(
        matches!(news, Some(Ok(BlobNews::Opened { .. }))),
        "{news:?}"
    );
}
