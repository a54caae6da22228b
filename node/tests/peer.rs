//! Exchange between peers over real sockets: what is asked and answered here, who is let in and what
//! hostile peers come to below.

#[path = "peer/crowd.rs"]
mod crowd;
#[path = "peer/fake.rs"]
mod fake;
#[path = "peer/hostile.rs"]
mod hostile;
#[path = "peer/line.rs"]
mod line;
#[path = "peer/links.rs"]
mod links;
#[path = "peer/raw.rs"]
mod raw;
#[path = "peer/unwanted.rs"]
mod unwanted;

use std::num::NonZeroU16;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{Blob, Node, eventually, introduce, member, news_of, origin, quick};
use millrace::peer::{BlobStream, ChunkEvent, Config, PeerError};
use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest, MediaType};
use millrace_protocol::wire::frame;
use millrace_protocol::wire::message::{
    AskHolds, AskManifest, AskVouch, BlobNews, Holding, OpenBlob, Purpose, Question, ReadChunks,
    RecallTag, Refusal, ResolveTag, Role,
};
use raw::Raw;
use tokio::time::Instant;

const CHUNK: usize = CHUNK_BYTES as usize;

fn open(digest: Digest) -> OpenBlob {
    OpenBlob {
        digest,
        role: Role::Owner,
        origins: vec![origin()],
        zone: "a".to_owned(),
        have: 0,
        copy: false,
    }
}

fn read(digest: Digest, first: u32, count: u32) -> ReadChunks {
    ReadChunks {
        digest,
        first,
        count,
        far: false,
        copy: false,
    }
}

fn holds(digests: &[Digest]) -> AskHolds {
    AskHolds {
        digests: digests.to_vec(),
        purpose: Purpose::Know,
    }
}

/// Two nodes that know each other.
fn pair() -> (Node, Node) {
    let nodes = (Node::start(&quick()), Node::start(&quick()));
    introduce(&[&nodes.0, &nodes.1]);
    nodes
}

/// Two nodes, the first with this configuration, and between them a member that is none.
fn with_hostile(config: &Config) -> (Node, Raw, Node) {
    let (one, hostile, other) = (Node::start(config), Raw::start(), Node::start(&quick()));
    let members = vec![
        one.member(),
        other.member(),
        member(hostile.id, 1, hostile.address()),
    ];
    one.members.set(members.clone());
    other.members.set(members);
    (one, hostile, other)
}

/// Asks something small.
async fn ask(from: &Node, to: NodeId) -> Result<Vec<Holding>, PeerError> {
    let question = holds(&[Digest::of(Algorithm::Sha256, b"")]);
    from.peers
        .holds(to, question, Duration::from_secs(15))
        .await
}

async fn all_news(stream: &mut BlobStream, count: usize) -> Vec<BlobNews> {
    let mut news = Vec::new();
    while news.len() < count {
        news.push(stream.next().await.expect("news").expect("more news"));
    }
    news
}

#[tokio::test]
async fn a_blob_is_opened_and_its_chunks_arrive_as_they_are() {
    let (a, b) = pair();
    let blob = Blob::of(2 * CHUNK + CHUNK / 2 + 7);
    b.handler.blobs.lock().push(blob.clone());

    let mut stream = a.peers.open(b.id, open(blob.digest)).await.expect("asked");
    let expected = news_of(&blob, vec![a.id]);
    assert_eq!(all_news(&mut stream, expected.len()).await, expected);

    let mut chunks = a
        .peers
        .read(b.id, read(blob.digest, 0, 3))
        .await
        .expect("asked");
    let mut received = Vec::new();
    for expected in 0..3 {
        let ChunkEvent::Chunk { index, bytes } = chunks.next().await.expect("a chunk") else {
            panic!("no chunk {expected}");
        };
        assert_eq!(index, expected);
        bytes
            .iter()
            .for_each(|piece| received.extend_from_slice(piece));
    }
    assert_eq!(chunks.next().await.expect("the end"), ChunkEvent::Done);
    assert!(received == blob.bytes, "other bytes");

    let status = b.peers.status();
    assert_eq!(status.peers[0].sent_bytes, blob.bytes.len() as u64);
    assert!(a.peers.round_trip(&b.id).is_some());
}

#[tokio::test]
async fn chunks_end_where_they_are_not_there_yet() {
    let (a, b) = pair();
    let blob = Blob::of(CHUNK);
    b.handler.blobs.lock().push(blob.clone());
    let mut chunks = a
        .peers
        .read(b.id, read(blob.digest, 0, 9))
        .await
        .expect("asked");
    assert!(matches!(
        chunks.next().await,
        Ok(ChunkEvent::Chunk { index: 0, .. })
    ));
    assert!(matches!(chunks.next().await, Ok(ChunkEvent::NotYet)));

    let absent = Digest::of(Algorithm::Sha256, b"absent");
    let mut chunks = a.peers.read(b.id, read(absent, 0, 1)).await.expect("asked");
    assert!(matches!(chunks.next().await, Ok(ChunkEvent::Absent)));
    let mut news = a.peers.open(b.id, open(absent)).await.expect("asked");
    let refused = news.next().await.expect_err("refused");
    assert_eq!(refused.refusal(), Some(&Refusal::Absent));
}

#[tokio::test]
async fn manifests_tags_and_holdings_are_asked_for() {
    let (a, b) = pair();
    let blob = Blob::of(3 * CHUNK);
    b.handler.blobs.lock().push(blob.clone());
    let question = |digest| AskManifest {
        digest,
        role: Role::Home,
        origins: vec![origin()],
    };
    let manifest = a
        .peers
        .manifest(b.id, question(blob.digest))
        .await
        .expect("given");
    assert_eq!(manifest.media_type.as_str(), MediaType::OCI_MANIFEST);
    assert_eq!(manifest.provenance, [origin()]);
    assert!(manifest.bytes == blob.bytes, "other bytes");
    let absent = Digest::of(Algorithm::Sha512, b"absent");
    let refused = a
        .peers
        .manifest(b.id, question(absent))
        .await
        .expect_err("refused");
    assert_eq!(refused.refusal(), Some(&Refusal::NotFound(origin())));

    let resolve = ResolveTag {
        origin: origin(),
        tag: "3.20".parse().expect("valid"),
        max_age_ms: 5000,
    };
    let tag = a.peers.resolve(b.id, resolve).await.expect("resolved");
    assert_eq!(tag.digest, Digest::of(Algorithm::Sha256, b"3.20"));
    assert_eq!(tag.age, Duration::from_millis(2500));

    let recall = |tag: &str| RecallTag {
        upstream: "docker.io".to_owned(),
        repository: origin().repository,
        tag: tag.parse().expect("valid"),
    };
    let known = a
        .peers
        .recall(b.id, recall("known"))
        .await
        .expect("answered");
    assert_eq!(known.expect("a record").age, Duration::from_secs(86_400));
    let unknown = a
        .peers
        .recall(b.id, recall("unknown"))
        .await
        .expect("answered");
    assert_eq!(unknown, None);

    let question = holds(&[absent, blob.digest]);
    let holdings = a.peers.holds(b.id, question, Duration::from_secs(15)).await;
    assert_eq!(holdings.expect("answered"), [Holding::No, Holding::Whole]);
}

#[tokio::test]
async fn who_works_on_an_answer_is_not_silent() {
    let (a, b) = pair();
    b.handler.hold();
    let asked = Instant::now();
    let waiting = ask(&a, b.id);
    tokio::pin!(waiting);
    let early = tokio::time::timeout(quick().silence * 3, &mut waiting).await;
    assert!(
        early.is_err(),
        "answered after {:?}: {early:?}",
        asked.elapsed()
    );
    b.handler.release();
    assert_eq!(waiting.await.expect("answered"), [Holding::No]);
}

#[tokio::test]
async fn a_hung_peer_is_silent() {
    let (a, hung) = (Node::start(&quick()), Raw::start());
    a.members
        .set(vec![a.member(), member(hung.id, 1, hung.address())]);
    let asked = Instant::now();
    let digest = Digest::of(Algorithm::Sha256, b"");
    let (answer, _streams) = tokio::join!(
        async {
            let mut stream = a.peers.open(hung.id, open(digest)).await.expect("asked");
            stream.next().await
        },
        hung.accept(),
    );
    assert!(matches!(answer, Err(PeerError::Silent { peer }) if peer == hung.id));
    assert!(asked.elapsed() >= quick().silence);
}

#[tokio::test]
async fn dropping_a_stream_ends_the_work_for_it() {
    let (a, b) = pair();
    let blob = Blob::of(CHUNK);
    b.handler.blobs.lock().push(blob.clone());
    let mut stream = a.peers.open(b.id, open(blob.digest)).await.expect("asked");
    all_news(&mut stream, 4).await;
    assert_eq!(b.handler.alive(), 1);
    drop(stream);
    eventually("the handler's stream is dropped", || b.handler.alive() == 0).await;

    b.handler.hold();
    let asked = a.peers.open(b.id, open(blob.digest)).await.expect("asked");
    eventually("the question has come", || b.handler.alive() == 1).await;
    drop(asked);
    eventually("the waiting stream is dropped", || b.handler.alive() == 0).await;
}

#[tokio::test]
async fn without_a_slot_others_are_named() {
    let config = Config {
        uploads: NonZeroU16::MIN,
        ..quick()
    };
    let (a, b) = (Node::start(&quick()), Node::start(&config));
    introduce(&[&a, &b]);
    let blob = Blob::of(CHUNK);
    b.handler.blobs.lock().push(blob.clone());
    b.handler.others.lock().push(a.id);
    b.handler.hold();
    let question = || read(blob.digest, 0, 1);
    let first = a.peers.read(b.id, question()).await.expect("asked");
    eventually("the slot is taken", || b.handler.alive() == 1).await;
    let mut second = a.peers.read(b.id, question()).await.expect("asked");
    let busy = second.next().await.expect("an answer");
    assert_eq!(busy, ChunkEvent::Busy { ask: vec![a.id] });
    drop(first);
    eventually("the slot is free", || b.handler.alive() == 0).await;
    b.handler.release();
    let mut third = a.peers.read(b.id, question()).await.expect("asked");
    assert!(matches!(third.next().await, Ok(ChunkEvent::Chunk { .. })));
}

#[tokio::test]
async fn who_takes_nothing_in_keeps_no_slot() {
    let config = Config {
        uploads: NonZeroU16::MIN,
        ..quick()
    };
    let (b, hostile, c) = with_hostile(&config);
    let blob = Blob::of(192 * CHUNK);
    b.handler.blobs.lock().push(blob.clone());
    let connection = hostile
        .connect(b.address(), b"millrace/2")
        .await
        .expect("a member");
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    let question = Question::Read(read(blob.digest, 0, 192));
    let frame = frame::encode(&question).expect("within bounds");
    send.write_all(&frame).await.expect("sent");
    send.finish().expect("open");
    // Only the beginning is read.
    receive.read_chunk(1, true).await.expect("a byte");
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let mut chunks = c
            .peers
            .read(b.id, read(blob.digest, 0, 1))
            .await
            .expect("asked");
        match chunks.next().await.expect("an answer") {
            ChunkEvent::Chunk { .. } => break,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    }
}

#[tokio::test]
async fn who_vouches_says_how_long_ago_or_why_not() {
    let (a, b) = pair();
    let question = |is_manifest: bool| AskVouch {
        digest: Digest::of(Algorithm::Sha256, b""),
        is_manifest,
        origin: origin(),
        max_age_ms: 3000,
    };
    let age = a.peers.vouch(b.id, question(true)).await;
    assert_eq!(age.expect("vouched"), Duration::from_millis(1500));
    let refused = a.peers.vouch(b.id, question(false)).await;
    assert!(
        matches!(
            &refused,
            Err(PeerError::Refused { refusal: Refusal::NotFound(name), .. }) if *name == origin()
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_question_beyond_its_bounds_is_not_asked() {
    let (a, b) = pair();
    let digests = vec![Digest::of(Algorithm::Sha256, b""); 2000];
    let refused = a
        .peers
        .holds(
            b.id,
            AskHolds {
                digests,
                purpose: Purpose::Know,
            },
            Duration::from_secs(9),
        )
        .await;
    assert!(matches!(refused, Err(PeerError::Question { .. })));
    assert_eq!(b.handler.questions.load(Ordering::Relaxed), 0);
}
