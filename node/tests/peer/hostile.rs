//! Peers that speak against the protocol: what their questions and their answers come to.

use std::time::Duration;

use millrace::peer::{ChunkEvent, PeerError};
use millrace_protocol::chunk::{CHUNK_BYTES, ChainValue};
use millrace_protocol::oci::{Algorithm, Digest};
use millrace_protocol::wire::frame;
use millrace_protocol::wire::message::{
    Answer, BlobNews, Holding, HoldingsChange, HoldingsNews, Question,
};
use quinn::VarInt;

use super::fake::{Node, member, quick};
use super::raw::Raw;
use super::{ask, holds, open, read, with_hostile};

/// Streams that a node lets one peer have open.
const STREAMS: usize = 1280;

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
        .connect(b.address(), b"millrace/2")
        .await
        .expect("a member");
    let good = frame::encode(&Question::Holds(holds(&[]))).expect("within bounds");
    assert_eq!(
        answer_to(&connection, &good, true).await,
        Ok(frame::VERSION)
    );

    let mut other_version = good.clone();
    other_version[0] = frame::VERSION + 1;
    assert_eq!(answer_to(&connection, &other_version, true).await, VERSION);
    let oversized = [frame::VERSION, 0xff, 0xff, 0xff, 0xff, 0];
    assert_eq!(answer_to(&connection, &oversized, false).await, MALFORMED);
    let truncated = &good[..good.len() - 1];
    assert_eq!(answer_to(&connection, truncated, true).await, MALFORMED);
    assert_eq!(answer_to(&connection, &[], true).await, MALFORMED);
    let replayed = [&good[..], &good[..]].concat();
    assert_eq!(answer_to(&connection, &replayed, true).await, MALFORMED);
    let an_answer = frame::encode(&Answer::Done).expect("within bounds");
    assert_eq!(answer_to(&connection, &an_answer, true).await, MALFORMED);
    let billion = [frame::VERSION, 0, 0, 0, 10, 5, 253, 0, 0, 0, 0, 0, 0, 0, 64];
    assert_eq!(answer_to(&connection, &billion, true).await, MALFORMED);
    for seed in 0..200_u32 {
        let noise = seed.wrapping_mul(0x9e37_79b9).to_be_bytes().repeat(9);
        let refusal = match noise[0] {
            frame::VERSION => MALFORMED,
            _ => VERSION,
        };
        let answer = answer_to(&connection, &noise, true).await;
        assert_eq!(answer, refusal, "{noise:?}");
        let framed = [&[frame::VERSION, 0, 0, 0, 36], &noise[..]].concat();
        let answer = answer_to(&connection, &framed, true).await;
        assert_eq!(answer, MALFORMED, "{framed:?}");
    }
    assert_eq!(answer_to(&connection, truncated, false).await, LATE);
    assert_eq!(
        answer_to(&connection, &good, true).await,
        Ok(frame::VERSION)
    );
}

#[tokio::test]
async fn ten_thousand_streams_of_one_peer_do_not_starve_another() {
    let (b, hostile, c) = with_hostile(&quick());
    let connection = hostile
        .connect(b.address(), b"millrace/2")
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
        assert!(number < STREAMS, "more streams than are allowed");
    }
    assert_eq!(idle.len(), STREAMS);
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
        .connect(b.address(), b"millrace/1")
        .await
        .expect_err("refused");
    let text = error.to_string();
    assert!(text.contains("any known protocol"), "{text}");
}

/// Reads a stream to the error that must be its end; `goes_on` says whether something else came.
async fn error_of(mut goes_on: impl AsyncFnMut() -> Result<bool, PeerError>) -> PeerError {
    loop {
        match goes_on().await {
            Ok(true) => {}
            Ok(false) => panic!("accepted"),
            Err(error) => return error,
        }
    }
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
                error_of(async || Ok(stream.next().await?.is_some())).await
            }
            Question::Read(question) => {
                let mut stream = a.peers.read(hostile.id, *question).await.expect("asked");
                let is_chunk = |event| matches!(event, ChunkEvent::Chunk { .. });
                error_of(async || stream.next().await.map(is_chunk)).await
            }
            Question::Follow => {
                let mut stream = a.peers.follow(hostile.id).await.expect("asked");
                error_of(async || Ok(stream.next().await?.is_some())).await
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
        "peer speaks version 7 of the peer protocol, this node speaks 2"
    );
    let error = made_of(&question, &[frame::VERSION, 0xff, 0, 0, 0]).await;
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
    let cut = [&frames(&fitting)[..], &[frame::VERSION, 0]].concat();
    let error = made_of(&Question::Follow, &cut).await;
    assert!(matches!(error, PeerError::BrokenOff { .. }), "{error}");
}
