//! Frames of the peer protocol: what hostile and oversized ones come to here, their bytes and what
//! chance makes below.

#[path = "../fuzz/body.rs"]
mod body;
#[path = "frame/generated.rs"]
mod generated;
#[path = "frame/golden.rs"]
mod golden;

use body::read_one;
use golden::golden_questions;
use millrace_protocol::chunk::{CHUNK_BYTES, ChainValue, MAX_CHUNKS};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest, MediaType};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::frame::{self, FrameError, HEADER_BYTES, MAX_QUESTION_BYTES, Message};
use millrace_protocol::wire::message::{
    Answer, AskHolds, AskVouch, BlobNews, HoldingsChange, HoldingsNews, MAX_ASKED_DIGESTS,
    MAX_CHAIN_VALUES, MAX_NAME_BYTES, MAX_ORIGINS, MAX_PROVENANCE, MAX_READ_CHUNKS,
    MAX_REASON_BYTES, MAX_SOURCES, MAX_TOLD_KEYS, OpenBlob, OriginName, Purpose, Question,
    RateLimit, ReadChunks, Refusal, Role,
};

fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, b"")
}

fn origin() -> OriginName {
    OriginName {
        upstream: "docker.io".into(),
        repository: "library/alpine".parse().expect("valid"),
        credential: "anonymous".into(),
    }
}

fn limit(source: Option<&str>) -> RateLimit {
    RateLimit {
        wait_ms: Some(90_000),
        source: source.map(str::to_owned),
    }
}

fn node(byte: u8) -> NodeId {
    NodeId::new([byte; 32])
}

fn key() -> Key {
    Key::of_digest(&digest())
}

fn told(sequence: u64, change: HoldingsChange) -> Answer {
    Answer::Holdings(HoldingsNews { sequence, change })
}

#[test]
fn another_version_is_named() {
    let mut frame = frame::encode(&Answer::Done).expect("within bounds");
    frame[0] = 1;
    let error = read_one::<Answer>(&frame).expect_err("another version");
    assert!(matches!(error, FrameError::Version { theirs: 1 }));
    assert_eq!(
        error.to_string(),
        "peer speaks version 1 of the peer protocol, this node speaks 2"
    );
}

#[test]
fn a_length_that_nobody_sends_is_refused_by_its_header() {
    for length in [MAX_QUESTION_BYTES as u32 + 1, u32::MAX] {
        let mut header = [frame::VERSION; HEADER_BYTES];
        header[1..].copy_from_slice(&length.to_be_bytes());
        assert!(matches!(
            frame::length::<Question>(header),
            Err(FrameError::TooLong { .. })
        ));
    }
    let zeros = vec![0; MAX_QUESTION_BYTES + 1];
    assert!(matches!(
        frame::decode::<Question>(&zeros),
        Err(FrameError::TooLong { .. })
    ));
}

#[test]
fn every_truncation_is_refused() {
    let messages = golden_questions().into_iter();
    for frame in messages.map(|message| frame::encode(&message).expect("within bounds")) {
        for end in HEADER_BYTES..frame.len() {
            let error = frame::decode::<Question>(&frame[HEADER_BYTES..end]);
            assert!(matches!(error, Err(FrameError::Malformed(_))), "{end}");
        }
    }
}

#[test]
fn a_second_message_in_a_frame_is_refused() {
    let frame = frame::encode(&Answer::Done).expect("within bounds");
    let twice = [&frame[HEADER_BYTES..], &frame[HEADER_BYTES..]].concat();
    assert!(matches!(
        frame::decode::<Answer>(&twice),
        Err(FrameError::Trailing { bytes: 1 })
    ));
}

#[test]
fn a_billion_announced_elements_cost_nothing() {
    // Holds, then a length of 2^62 in bincode's nine bytes, then nothing.
    let mut bytes = vec![5, 253];
    bytes.extend_from_slice(&(1_u64 << 62).to_le_bytes());
    assert!(matches!(
        frame::decode::<Question>(&bytes),
        Err(FrameError::Malformed(_))
    ));
}

/// What a bound that is broken is called.
fn broken<M: Message>(message: &M) -> &'static str {
    match frame::encode(message) {
        Err(FrameError::Bound(bound)) => bound.what,
        other => panic!("expected a broken bound, got {other:?}"),
    }
}

#[test]
fn questions_keep_their_bounds() {
    let open = |origins: usize, zone: usize| {
        Question::Open(OpenBlob {
            digest: digest(),
            role: Role::Home,
            origins: vec![origin(); origins],
            zone: "z".repeat(zone),
            have: u32::MAX,
            copy: false,
        })
    };
    assert!(frame::encode(&open(MAX_ORIGINS, MAX_NAME_BYTES)).is_ok());
    assert_eq!(broken(&open(MAX_ORIGINS + 1, 0)), "number of origins");
    assert_eq!(broken(&open(0, MAX_NAME_BYTES + 1)), "length of a zone");

    let read = |first: u32, count: u32| {
        Question::Read(ReadChunks {
            digest: digest(),
            first,
            count,
            far: true,
            copy: false,
        })
    };
    assert!(frame::encode(&read(MAX_CHUNKS - MAX_READ_CHUNKS, MAX_READ_CHUNKS)).is_ok());
    assert_eq!(broken(&read(0, 0)), "number of chunks");
    assert_eq!(broken(&read(0, MAX_READ_CHUNKS + 1)), "number of chunks");
    assert_eq!(broken(&read(u32::MAX, 1)), "end of the chunks");

    let holds = |count: usize| {
        Question::Holds(AskHolds {
            digests: vec![Digest::of(Algorithm::Sha512, b""); count],
            purpose: Purpose::Know,
        })
    };
    assert!(frame::encode(&holds(MAX_ASKED_DIGESTS)).is_ok());
    assert_eq!(broken(&holds(MAX_ASKED_DIGESTS + 1)), "number of digests");

    let vouch = |origin: OriginName| {
        Question::Vouch(AskVouch {
            digest: digest(),
            is_manifest: false,
            origin,
            max_age_ms: u64::MAX,
        })
    };
    assert!(frame::encode(&vouch(long_origin())).is_ok());
    let mut longer = long_origin();
    longer.credential.push('n');
    assert_eq!(broken(&vouch(longer)), "length of a credential's id");
}

#[test]
fn answers_keep_their_bounds() {
    let chain = |first: u32, count: usize| {
        let value = ChainValue::Sha512(Box::new([u64::MAX; 8]));
        let values = vec![value; count];
        Answer::Blob(BlobNews::Chain { first, values })
    };
    assert!(frame::encode(&chain(0, MAX_CHAIN_VALUES)).is_ok());
    assert_eq!(
        broken(&chain(0, MAX_CHAIN_VALUES + 1)),
        "number of chain values"
    );
    assert_eq!(broken(&chain(u32::MAX, 1)), "end of the chain");

    let chunk = |index: u32, length: u32| Answer::Chunk { index, length };
    assert_eq!(broken(&chunk(0, 0)), "length of a chunk");
    assert_eq!(broken(&chunk(0, (1 << 18) + 1)), "length of a chunk");
    assert_eq!(broken(&chunk(MAX_CHUNKS, 1)), "index of a chunk");
    let digest = digest();
    let far = |index: u32, length: u32| Answer::FarChunk {
        index,
        length,
        digest,
    };
    let whole = CHUNK_BYTES as u32;
    assert!(frame::encode(&far(MAX_CHUNKS - 2, whole)).is_ok());
    assert_eq!(broken(&far(0, whole - 1)), "length of a far chunk");
    assert_eq!(broken(&far(0, whole + 1)), "length of a far chunk");
    assert_eq!(broken(&far(MAX_CHUNKS - 1, whole)), "index of a far chunk");

    let busy = Answer::Busy {
        ask: vec![node(1); MAX_SOURCES + 1],
    };
    assert_eq!(broken(&busy), "number of sources");

    let opened = |size: u64, provenance: usize| {
        Answer::Blob(BlobNews::Opened {
            size,
            provenance: vec![long_origin(); provenance],
            sources: vec![node(1); MAX_SOURCES],
        })
    };
    assert!(frame::encode(&opened(u64::from(MAX_CHUNKS) * CHUNK_BYTES, MAX_PROVENANCE)).is_ok());
    assert_eq!(broken(&opened(u64::MAX, 0)), "number of chunks");
    assert_eq!(broken(&opened(0, MAX_PROVENANCE + 1)), "number of origins");

    let have = |count: usize| told(u64::MAX, HoldingsChange::Have(vec![key(); count]));
    assert!(frame::encode(&have(MAX_TOLD_KEYS)).is_ok());
    assert_eq!(broken(&have(MAX_TOLD_KEYS + 1)), "number of told keys");

    let limited =
        |source: &str| Answer::Refused(Refusal::RateLimited(long_origin(), limit(Some(source))));
    assert!(frame::encode(&limited(&"s".repeat(MAX_NAME_BYTES))).is_ok());
    assert_eq!(
        broken(&limited(&"s".repeat(MAX_NAME_BYTES + 1))),
        "length of a source"
    );

    let header = Answer::Manifest {
        media_type: MediaType::new("text/plain\r\nx: y"),
        length: 0,
        provenance: vec![],
    };
    assert_eq!(
        broken(&header),
        "number of unprintable bytes in a media type"
    );
}

fn long_origin() -> OriginName {
    let name = "n".repeat(MAX_NAME_BYTES);
    OriginName {
        upstream: name.clone(),
        repository: name.parse().expect("valid"),
        credential: name,
    }
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let reason = "ü".repeat(MAX_REASON_BYTES);
    let Refusal::Unavailable(_, cut) = Refusal::unavailable(origin(), format!("x{reason}")) else {
        panic!("unavailable");
    };
    assert_eq!(cut.len(), MAX_REASON_BYTES - 1);
}
