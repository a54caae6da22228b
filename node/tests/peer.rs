//! Exchange between peers over real sockets: what is asked, who is let in, and what hostile or
//! hung peers come to.

#[path = "peer/fake.rs"]
mod fake;
#[path = "peer/raw.rs"]
mod raw;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{Blob, Node, eventually, introduce, member, news_of, origin, quick};
use millrace::peer::{BlobStream, ChunkEvent, Config, DialError, PeerError};
use millrace_protocol::chunk::{CHUNK_BYTES, ChainValue};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest, MediaType};
use millrace_protocol::wire::frame;
use millrace_protocol::wire::message::{
    Answer, AskHolds, AskManifest, AskVouch, BlobNews, Holding, HoldingsChange, HoldingsNews,
    OpenBlob, Purpose, Question, ReadChunks, RecallTag, Refusal, ResolveTag, Role,
};
use quinn::VarInt;
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
    }
}

fn read(digest: Digest, first: u32, count: u32) -> ReadChunks {
    ReadChunks {
        digest,
        first,
        count,
        far: false,
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
async fn a_stranger_gets_no_byte() {
    let (a, stranger) = (Node::start(&quick()), Node::start(&quick()));
    stranger.members.set(vec![stranger.member(), a.member()]);
    let refused = ask(&stranger, a.id).await.expect_err("refused");
    assert!(
        matches!(
            refused,
            PeerError::Lost { .. } | PeerError::Unreachable { .. }
        ),
        "{refused}"
    );
    assert_eq!(a.handler.questions.load(Ordering::Relaxed), 0);
    assert!(a.peers.status().peers.is_empty());
    eventually("it knows that it is refused", || {
        !stranger.peers.is_reachable(&a.id)
    })
    .await;
    let unknown = ask(&a, stranger.id).await.expect_err("no member");
    assert!(matches!(unknown, PeerError::NoMember { .. }));
}

#[tokio::test]
async fn a_node_does_not_talk_to_itself() {
    let (a, _b) = pair();
    let refused = ask(&a, a.id).await.expect_err("itself");
    assert!(matches!(refused, PeerError::NoMember { .. }));
}

#[tokio::test]
async fn somebody_else_at_the_address_of_a_member_is_refused() {
    let nodes = [(); 3].map(|()| Node::start(&quick()));
    let [a, b, c] = &nodes;
    introduce(&[a, b, c]);
    // b's address, under c's name.
    a.members
        .set(vec![a.member(), member(c.id, 1, b.address())]);
    let refused = ask(a, c.id).await.expect_err("somebody else");
    assert!(
        matches!(
            &refused,
            PeerError::Unreachable {
                source: DialError::Refused(_),
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(b.handler.questions.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_removed_member_is_cut_at_once() {
    let (a, b) = pair();
    let blob = Blob::of(CHUNK);
    b.handler.blobs.lock().push(blob.clone());
    let mut stream = a.peers.open(b.id, open(blob.digest)).await.expect("asked");
    all_news(&mut stream, 4).await;
    b.members.set(vec![b.member()]);
    let cut = stream.next().await.expect_err("cut");
    assert!(matches!(cut, PeerError::Lost { .. }), "{cut}");
    eventually("the handler's stream is dropped", || b.handler.alive() == 0).await;
    let before = b.handler.questions.load(Ordering::Relaxed);
    ask(&a, b.id).await.expect_err("refused");
    assert_eq!(b.handler.questions.load(Ordering::Relaxed), before);
}

#[tokio::test]
async fn a_blocked_peer_costs_its_delay_once() {
    let a = Node::start(&quick());
    // Takes packets and answers none, as a firewall does.
    let blocked = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    let b = Node::start(&quick());
    let entry = |address: SocketAddr, generation| member(b.id, generation, address);
    let address = blocked.local_addr().expect("bound");
    a.members.set(vec![a.member(), entry(address, 1)]);
    b.members.set(vec![a.member(), b.member()]);

    assert!(a.peers.is_reachable(&b.id));
    let first = ask(&a, b.id).await.expect_err("blocked");
    assert!(
        matches!(
            first,
            PeerError::Unreachable {
                source: DialError::TimedOut,
                ..
            }
        ),
        "{first:?}"
    );
    assert!(!a.peers.is_reachable(&b.id));
    let again = Instant::now();
    ask(&a, b.id).await.expect_err("passed over");
    assert!(again.elapsed() < quick().connect_patience / 2);
    let status = a.peers.status();
    let named = status.peers[0].unreachable.as_ref().expect("named");
    assert_eq!(named.reason, "no answer over UDP in time");

    a.members.set(vec![a.member(), entry(b.address(), 1)]);
    eventually("the new address is tried", || a.peers.is_reachable(&b.id)).await;
    ask(&a, b.id).await.expect("answered");
}

#[tokio::test]
async fn who_connects_by_itself_is_reachable() {
    let (a, b) = (Node::start(&quick()), Node::start(&quick()));
    let blocked = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    let address = blocked.local_addr().expect("bound");
    a.members.set(vec![a.member(), member(b.id, 1, address)]);
    b.members.set(vec![a.member(), b.member()]);
    ask(&a, b.id).await.expect_err("blocked");
    ask(&b, a.id).await.expect("the other way is open");
    assert!(a.peers.is_reachable(&b.id));
    ask(&a, b.id)
        .await
        .expect("answered over the connection that b made");
}

#[tokio::test]
async fn nodes_that_dial_each_other_are_both_answered() {
    let (a, b) = pair();
    for _ in 0..20 {
        let (one, other) = tokio::join!(ask(&a, b.id), ask(&b, a.id));
        one.expect("answered");
        other.expect("answered");
    }
}

#[tokio::test]
async fn a_restarted_peer_is_asked_again() {
    let (a, b) = pair();
    ask(&a, b.id).await.expect("answered");
    let b = b.crash_and_restart().await;
    introduce(&[&a, &b]);
    let asked = Instant::now();
    loop {
        match ask(&a, b.id).await {
            Ok(_) => break,
            Err(error) => assert!(asked.elapsed() < Duration::from_secs(15), "{error}"),
        }
    }
    assert_eq!(a.id, a.identity.id());
}

#[tokio::test]
async fn two_nodes_of_one_identity_take_nothing_down() {
    let (a, b) = pair();
    let twin = b.twin();
    twin.members.set(vec![a.member(), twin.member()]);
    for _ in 0..5 {
        // Each replaces the connection of the other, so an answer may be lost on the way.
        let _ = tokio::join!(ask(&b, a.id), ask(&twin, a.id), ask(&a, b.id));
    }
    let c = Node::start(&quick());
    introduce(&[&a, &b, &c]);
    ask(&c, a.id).await.expect("answered");
    ask(&c, b.id).await.expect("answered");
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
    let (b, hostile, c) = (Node::start(&config), Raw::start(), Node::start(&quick()));
    let members = vec![
        b.member(),
        c.member(),
        member(hostile.id, 1, hostile.address()),
    ];
    b.members.set(members.clone());
    c.members.set(members);
    let blob = Blob::of(192 * CHUNK);
    b.handler.blobs.lock().push(blob.clone());
    let connection = hostile
        .connect(b.address(), b"millrace/1")
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

/// What a node answers to these bytes: an answer, or the code that it resets the stream with.
async fn answer_to(connection: &quinn::Connection, bytes: &[u8], finish: bool) -> Result<u8, u64> {
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    // The node may have turned it away already.
    let _ = send.write_all(bytes).await;
    if finish {
        let _ = send.finish();
    }
    match receive.read_chunk(1, true).await {
        Ok(Some(chunk)) => Ok(chunk.bytes[0]),
        Ok(None) => panic!("the stream ended without an answer"),
        Err(quinn::ReadError::Reset(code)) => Err(code.into_inner()),
        Err(other) => panic!("the connection is lost: {other}"),
    }
}

#[tokio::test]
async fn hostile_questions_take_nothing_down() {
    const MALFORMED: Result<u8, u64> = Err(1);
    const VERSION: Result<u8, u64> = Err(2);
    const LATE: Result<u8, u64> = Err(3);
    let (b, hostile) = (Node::start(&quick()), Raw::start());
    b.members
        .set(vec![b.member(), member(hostile.id, 1, hostile.address())]);
    let connection = hostile
        .connect(b.address(), b"millrace/1")
        .await
        .expect("a member");
    let good = frame::encode(&Question::Holds(holds(&[]))).expect("within bounds");
    assert_eq!(
        answer_to(&connection, &good, true).await,
        Ok(frame::VERSION)
    );

    let mut other_version = good.clone();
    other_version[0] = 2;
    assert_eq!(answer_to(&connection, &other_version, true).await, VERSION);
    let oversized = [1, 0xff, 0xff, 0xff, 0xff, 0];
    assert_eq!(answer_to(&connection, &oversized, false).await, MALFORMED);
    let truncated = &good[..good.len() - 1];
    assert_eq!(answer_to(&connection, truncated, true).await, MALFORMED);
    assert_eq!(answer_to(&connection, &[], true).await, MALFORMED);
    let replayed = [&good[..], &good[..]].concat();
    assert_eq!(answer_to(&connection, &replayed, true).await, MALFORMED);
    let an_answer = frame::encode(&Answer::Done).expect("within bounds");
    assert_eq!(answer_to(&connection, &an_answer, true).await, MALFORMED);
    let billion = [1, 0, 0, 0, 10, 5, 253, 0, 0, 0, 0, 0, 0, 0, 64];
    assert_eq!(answer_to(&connection, &billion, true).await, MALFORMED);
    for seed in 0..200_u32 {
        let noise = seed.wrapping_mul(0x9e37_79b9).to_be_bytes().repeat(9);
        answer_to(&connection, &noise, true)
            .await
            .expect_err("noise");
        let framed = [&[1, 0, 0, 0, 36], &noise[..]].concat();
        answer_to(&connection, &framed, true)
            .await
            .expect_err("noise");
    }
    assert_eq!(answer_to(&connection, truncated, false).await, LATE);
    assert_eq!(
        answer_to(&connection, &good, true).await,
        Ok(frame::VERSION)
    );
}

#[tokio::test]
async fn ten_thousand_streams_of_one_peer_do_not_starve_another() {
    let (b, hostile, c) = (Node::start(&quick()), Raw::start(), Node::start(&quick()));
    let members = vec![
        b.member(),
        c.member(),
        member(hostile.id, 1, hostile.address()),
    ];
    b.members.set(members.clone());
    c.members.set(members);
    let connection = hostile
        .connect(b.address(), b"millrace/1")
        .await
        .expect("a member");
    // As many as it is allowed, and it never asks anything.
    let mut idle = Vec::new();
    for number in 0..10_000 {
        let opened = tokio::time::timeout(Duration::from_millis(200), connection.open_bi()).await;
        let Ok(opened) = opened else { break };
        let (mut send, receive) = opened.expect("connected");
        send.write_all(&[frame::VERSION]).await.expect("sent");
        idle.push((send, receive));
        assert!(number < 256, "more streams than are allowed");
    }
    assert_eq!(idle.len(), 256);
    ask(&c, b.id).await.expect("answered meanwhile");
    drop(idle);

    // And all the others, one after the other.
    for _ in 0..10_000 {
        let (mut send, mut receive) = connection.open_bi().await.expect("connected");
        send.write_all(&[frame::VERSION]).await.expect("sent");
        send.reset(VarInt::from_u32(0)).expect("open");
        // Lets the stream be forgotten on this side too.
        let _ = receive.stop(VarInt::from_u32(0));
    }
    ask(&c, b.id).await.expect("answered afterwards");
    let good = frame::encode(&Question::Holds(holds(&[]))).expect("within bounds");
    assert_eq!(
        answer_to(&connection, &good, true).await,
        Ok(frame::VERSION)
    );
}

#[tokio::test]
async fn another_version_ends_in_the_handshake() {
    let (b, other) = (Node::start(&quick()), Raw::start());
    b.members
        .set(vec![b.member(), member(other.id, 1, other.address())]);
    let error = other
        .connect(b.address(), b"millrace/2")
        .await
        .expect_err("refused");
    let text = error.to_string();
    assert!(text.contains("any known protocol"), "{text}");
}

/// What `a` makes of these answers to a blob or chunk question.
async fn made_of(question: &Question, answers: &[u8]) -> PeerError {
    let (a, hostile) = (Node::start(&quick()), Raw::start());
    a.members
        .set(vec![a.member(), member(hostile.id, 1, hostile.address())]);
    let asking = async {
        match question {
            Question::Open(question) => {
                let stream = a.peers.open(hostile.id, question.clone()).await;
                let mut stream = stream.expect("asked");
                loop {
                    match stream.next().await {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("accepted"),
                        Err(error) => return error,
                    }
                }
            }
            Question::Read(question) => {
                let mut stream = a.peers.read(hostile.id, *question).await.expect("asked");
                loop {
                    match stream.next().await {
                        Ok(ChunkEvent::Chunk { .. }) => {}
                        Ok(end) => panic!("accepted {end:?}"),
                        Err(error) => return error,
                    }
                }
            }
            Question::Follow => {
                let mut stream = a.peers.follow(hostile.id).await.expect("asked");
                loop {
                    match stream.next().await {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("accepted"),
                        Err(error) => return error,
                    }
                }
            }
            Question::Holds(question) => {
                let patience = Duration::from_secs(15);
                let answer = a.peers.holds(hostile.id, question.clone(), patience).await;
                answer.expect_err("not accepted")
            }
            other => panic!("{other:?} is not asked here"),
        }
    };
    let answering = async {
        let (connection, mut send, receive) = hostile.accept().await;
        send.write_all(answers).await.expect("sent");
        send.finish().expect("open");
        (connection, receive, send)
    };
    tokio::join!(asking, answering).0
}

fn frames(answers: &[Answer]) -> Vec<u8> {
    let encode = |answer| frame::encode(answer).expect("within bounds");
    answers.iter().flat_map(encode).collect()
}

#[tokio::test]
async fn answers_that_do_not_fit_are_refused() {
    let digest = Digest::of(Algorithm::Sha256, b"");
    let question = Question::Open(open(digest));
    let opened = Answer::Blob(BlobNews::Opened {
        size: 3 * CHUNK_BYTES,
        provenance: vec![],
        sources: vec![],
    });
    let chain = |first, algorithm| {
        let values = vec![ChainValue::start(algorithm)];
        Answer::Blob(BlobNews::Chain { first, values })
    };
    let whole = Answer::Blob(BlobNews::Whole);
    let disordered = [
        vec![whole],
        vec![opened.clone(), opened.clone()],
        vec![opened.clone(), chain(1, Algorithm::Sha256)],
        vec![opened.clone(), chain(0, Algorithm::Sha512)],
        vec![opened.clone(), Answer::Done],
    ];
    for answers in disordered {
        let error = made_of(&question, &frames(&answers)).await;
        assert!(
            matches!(error, PeerError::Disordered { .. }),
            "{answers:?}: {error}"
        );
        assert!(error.is_misbehaviour());
    }
    let error = made_of(&question, &[]).await;
    assert!(matches!(error, PeerError::BrokenOff { .. }), "{error}");
    let error = made_of(&question, &[7, 0, 0, 0, 1, 0]).await;
    assert_eq!(
        std::error::Error::source(&error)
            .expect("a source")
            .to_string(),
        "peer speaks version 7 of the peer protocol, this node speaks 1"
    );
    let error = made_of(&question, &[1, 0xff, 0, 0, 0]).await;
    assert!(matches!(error, PeerError::Frame { .. }), "{error}");
}

#[tokio::test]
async fn chunks_that_do_not_fit_are_refused() {
    let question = Question::Read(read(Digest::of(Algorithm::Sha256, b""), 5, 2));
    let chunk = |index| [frames(&[Answer::Chunk { index, length: 3 }]), vec![0; 3]].concat();
    let disordered = [
        chunk(4),
        [chunk(5), chunk(5)].concat(),
        [chunk(5), chunk(6), chunk(7)].concat(),
        [chunk(5), frames(&[Answer::Done])].concat(),
        frames(&[Answer::Holds(vec![])]),
        frames(&[Answer::FarChunk {
            index: 5,
            length: CHUNK_BYTES as u32,
            digest: Digest::of(Algorithm::Sha256, b""),
        }]),
    ];
    for answers in disordered {
        let error = made_of(&question, &answers).await;
        assert!(matches!(error, PeerError::Disordered { .. }), "{error}");
    }
    let cut = frames(&[Answer::Chunk {
        index: 5,
        length: CHUNK_BYTES as u32,
    }]);
    let error = made_of(&question, &cut).await;
    assert!(matches!(error, PeerError::BrokenOff { .. }), "{error}");
}

#[tokio::test]
async fn a_list_of_holdings_has_the_length_that_was_asked_for() {
    let question = Question::Holds(holds(&[Digest::of(Algorithm::Sha256, b"")]));
    let answer = frames(&[Answer::Holds(vec![Holding::No; 2])]);
    let error = made_of(&question, &answer).await;
    assert!(matches!(error, PeerError::Disordered { .. }), "{error}");
}

#[tokio::test]
async fn holdings_that_are_replayed_or_reordered_are_not_believed() {
    let told =
        |sequence, change: HoldingsChange| Answer::Holdings(HoldingsNews { sequence, change });
    let began = |sequence| told(sequence, HoldingsChange::Began { placement: 1 });
    let have = |sequence| told(sequence, HoldingsChange::Have(vec![]));
    let in_sync = |sequence| told(sequence, HoldingsChange::InSync);
    let disordered = [
        vec![have(0)],
        vec![began(1)],
        vec![began(0), began(0)],
        vec![began(0), have(1), have(1)],
        vec![began(0), have(2)],
        vec![began(0), in_sync(1), in_sync(2)],
        vec![began(0), Answer::Done],
    ];
    for answers in disordered {
        let error = made_of(&Question::Follow, &frames(&answers)).await;
        assert!(
            matches!(error, PeerError::Disordered { .. }),
            "{answers:?}: {error}"
        );
    }
    let fitting = [began(0), have(1), in_sync(2), have(3), began(4), in_sync(5)];
    let cut = [&frames(&fitting)[..], &[1, 0]].concat();
    let error = made_of(&Question::Follow, &cut).await;
    assert!(matches!(error, PeerError::BrokenOff { .. }), "{error}");
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
