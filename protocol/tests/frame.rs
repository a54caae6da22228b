//! Frames of the peer protocol: their bytes, and what hostile ones come to.

#[path = "../fuzz/body.rs"]
mod body;

use std::fmt;

use body::{read_frames, read_one};
use millrace_protocol::chunk::{CHUNK_BYTES, ChainValue, MAX_CHUNKS};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest, MediaType};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::frame::{self, FrameError, HEADER_BYTES, MAX_QUESTION_BYTES, Message};
use millrace_protocol::wire::message::{
    Answer, AskHolds, AskManifest, AskVouch, BlobNews, Holding, HoldingsChange, HoldingsNews,
    MAX_ASKED_DIGESTS, MAX_CHAIN_VALUES, MAX_NAME_BYTES, MAX_ORIGINS, MAX_PROVENANCE,
    MAX_READ_CHUNKS, MAX_REASON_BYTES, MAX_SOURCES, MAX_TOLD_KEYS, OpenBlob, OriginName, Purpose,
    Question, ReadChunks, RecallTag, Refusal, ResolveTag, Role,
};
use proptest::collection::vec;
use proptest::prelude::*;

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

fn node(byte: u8) -> NodeId {
    NodeId::new([byte; 32])
}

/// One message of each kind, in the order of `frame.golden`.
fn golden_questions() -> Vec<Question> {
    vec![
        Question::Open(OpenBlob {
            digest: digest(),
            role: Role::Owner,
            origins: vec![origin()],
            zone: "fra1".into(),
            have: 300,
        }),
        Question::Read(ReadChunks {
            digest: digest(),
            first: 300,
            count: 64,
            far: false,
        }),
        Question::Manifest(AskManifest {
            digest: digest(),
            role: Role::Home,
            origins: vec![],
        }),
        Question::Resolve(ResolveTag {
            origin: origin(),
            tag: "3.20".parse().expect("valid"),
            max_age_ms: 60_000,
        }),
        Question::Recall(RecallTag {
            upstream: "corp".into(),
            repository: "a/b".parse().expect("valid"),
            tag: "latest".parse().expect("valid"),
        }),
        Question::Holds(AskHolds {
            digests: vec![digest()],
            purpose: Purpose::Fetch,
        }),
        Question::Follow,
        Question::Vouch(AskVouch {
            digest: digest(),
            is_manifest: true,
            origin: origin(),
            max_age_ms: 600_000,
        }),
    ]
}

fn golden_answers() -> Vec<Answer> {
    vec![
        Answer::Pending,
        Answer::Blob(BlobNews::Opened {
            size: 3 * CHUNK_BYTES,
            provenance: vec![origin()],
            sources: vec![node(1)],
        }),
        Answer::Blob(BlobNews::Chain {
            first: 7,
            values: vec![ChainValue::start(Algorithm::Sha256)],
        }),
        Answer::Blob(BlobNews::Sources(vec![])),
        Answer::Blob(BlobNews::Whole),
        Answer::Chunk {
            index: 2,
            length: 1 << 18,
        },
        Answer::Done,
        Answer::NotYet,
        Answer::Busy { ask: vec![] },
        Answer::Absent,
        Answer::Manifest {
            media_type: MediaType::new(MediaType::OCI_MANIFEST),
            length: 525,
            provenance: vec![],
        },
        Answer::Tag {
            digest: digest(),
            age_ms: 1500,
            origin: origin(),
        },
        Answer::Holds(vec![
            Holding::No,
            Holding::Whole,
            Holding::Fetching { asked: true },
            Holding::Part { chunks: 300 },
        ]),
        Answer::Refused(Refusal::NotFound(origin())),
        Answer::Refused(Refusal::Denied(origin(), 403)),
        Answer::Refused(Refusal::RateLimited(origin(), Some(90_000))),
        Answer::Refused(Refusal::unavailable(origin(), "timed out".into())),
        Answer::Refused(Refusal::Unconfigured),
        Answer::Refused(Refusal::Absent),
        Answer::Refused(Refusal::Unable),
        Answer::Refused(Refusal::Corrupt),
        told(0, HoldingsChange::Began { placement: 300 }),
        told(1, HoldingsChange::Have(vec![key()])),
        told(2, HoldingsChange::Lost(vec![key()])),
        told(3, HoldingsChange::Fetching(vec![])),
        told(4, HoldingsChange::InSync),
        Answer::Vouched { age_ms: 1500 },
        Answer::FarChunk {
            index: 900,
            length: CHUNK_BYTES as u32,
            digest: digest(),
        },
    ]
}

fn key() -> Key {
    Key::of_digest(&digest())
}

fn told(sequence: u64, change: HoldingsChange) -> Answer {
    Answer::Holdings(HoldingsNews { sequence, change })
}

/// The bytes of a message in hexadecimal, after it has been read back.
fn written<M: Message + PartialEq + fmt::Debug>(message: M) -> String {
    let frame = frame::encode(&message).expect("within bounds");
    let (read, rest) = read_one::<M>(&frame).expect("a frame").expect("whole");
    assert_eq!((read, rest), (message, &[][..]));
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_release_writes_the_same_bytes() {
    let questions = golden_questions().into_iter().map(written);
    let answers = golden_answers().into_iter().map(written);
    let lines: Vec<String> = questions.chain(answers).collect();
    let golden: Vec<&str> = include_str!("frame.golden").lines().collect();
    assert_eq!(lines, golden, "now:\n{}", lines.join("\n"));
}

#[test]
fn another_version_is_named() {
    let mut frame = frame::encode(&Answer::Done).expect("within bounds");
    frame[0] = 2;
    let error = read_one::<Answer>(&frame).expect_err("another version");
    assert!(matches!(error, FrameError::Version { theirs: 2 }));
    assert_eq!(
        error.to_string(),
        "peer speaks version 2 of the peer protocol, this node speaks 1"
    );
}

#[test]
fn a_length_that_nobody_sends_is_refused_by_its_header() {
    for length in [MAX_QUESTION_BYTES as u32 + 1, u32::MAX] {
        let mut header = [1; HEADER_BYTES];
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

fn any_digest() -> impl Strategy<Value = Digest> {
    (any::<bool>(), any::<u64>()).prop_map(|(long, seed)| {
        let algorithm = if long {
            Algorithm::Sha512
        } else {
            Algorithm::Sha256
        };
        Digest::of(algorithm, &seed.to_le_bytes())
    })
}

fn any_node() -> impl Strategy<Value = NodeId> {
    any::<[u8; 32]>().prop_map(NodeId::new)
}

fn any_nodes() -> impl Strategy<Value = Vec<NodeId>> {
    vec(any_node(), 0..MAX_SOURCES)
}

fn any_origin() -> impl Strategy<Value = OriginName> {
    (
        "[a-z.]{0,30}",
        "[a-z0-9]{1,9}(/[a-z0-9]{1,9}){0,3}",
        ".{0,40}",
    )
        .prop_map(|(upstream, repository, credential)| OriginName {
            upstream,
            repository: repository.parse().expect("valid"),
            credential,
        })
}

fn any_role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Holder), Just(Role::Owner), Just(Role::Home)]
}

fn any_tag() -> impl Strategy<Value = millrace_protocol::oci::Tag> {
    "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}".prop_map(|tag| tag.parse().expect("valid"))
}

fn any_question() -> impl Strategy<Value = Question> {
    let origins = || vec(any_origin(), 0..MAX_ORIGINS);
    prop_oneof![
        (any_digest(), any_role(), origins(), ".{0,60}", any::<u32>()).prop_map(
            |(digest, role, origins, zone, have)| {
                Question::Open(OpenBlob {
                    digest,
                    role,
                    origins,
                    zone,
                    have,
                })
            }
        ),
        (
            any_digest(),
            0..MAX_CHUNKS - 64,
            1..=MAX_READ_CHUNKS,
            any::<bool>()
        )
            .prop_map(|(digest, first, count, far)| Question::Read(ReadChunks {
                digest,
                first,
                count,
                far
            })),
        (any_digest(), any_role(), origins()).prop_map(|(digest, role, origins)| {
            Question::Manifest(AskManifest {
                digest,
                role,
                origins,
            })
        }),
        (any_origin(), any_tag(), any::<u64>()).prop_map(|(origin, tag, max_age_ms)| {
            Question::Resolve(ResolveTag {
                origin,
                tag,
                max_age_ms,
            })
        }),
        (any_origin(), any_tag()).prop_map(|(origin, tag)| {
            Question::Recall(RecallTag {
                upstream: origin.upstream,
                repository: origin.repository,
                tag,
            })
        }),
        (
            vec(any_digest(), 0..50),
            prop_oneof![
                Just(Purpose::Know),
                Just(Purpose::Fetch),
                Just(Purpose::Drop)
            ],
        )
            .prop_map(|(digests, purpose)| Question::Holds(AskHolds { digests, purpose })),
        Just(Question::Follow),
        (any_digest(), any::<bool>(), any_origin(), any::<u64>()).prop_map(
            |(digest, is_manifest, origin, max_age_ms)| {
                Question::Vouch(AskVouch {
                    digest,
                    is_manifest,
                    origin,
                    max_age_ms,
                })
            }
        ),
    ]
}

fn any_chain() -> impl Strategy<Value = Vec<ChainValue>> {
    vec(
        prop_oneof![
            any::<[u32; 8]>().prop_map(ChainValue::Sha256),
            any::<[u64; 8]>().prop_map(|words| ChainValue::Sha512(Box::new(words))),
        ],
        0..40,
    )
}

fn any_news() -> impl Strategy<Value = BlobNews> {
    prop_oneof![
        (0..1_u64 << 42, vec(any_origin(), 0..9), any_nodes()).prop_map(
            |(size, provenance, sources)| BlobNews::Opened {
                size,
                provenance,
                sources,
            }
        ),
        (0..MAX_CHUNKS - 40, any_chain())
            .prop_map(|(first, values)| BlobNews::Chain { first, values }),
        any_nodes().prop_map(BlobNews::Sources),
        Just(BlobNews::Whole),
    ]
}

fn any_refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        any_origin().prop_map(Refusal::NotFound),
        (any_origin(), 400..500_u16).prop_map(|(origin, status)| Refusal::Denied(origin, status)),
        (any_origin(), any::<Option<u64>>())
            .prop_map(|(origin, after)| Refusal::RateLimited(origin, after)),
        (any_origin(), ".{0,400}")
            .prop_map(|(origin, reason)| Refusal::unavailable(origin, reason)),
        Just(Refusal::Unconfigured),
        Just(Refusal::Absent),
        Just(Refusal::Unable),
        Just(Refusal::Corrupt),
    ]
}

fn any_holding() -> impl Strategy<Value = Holding> {
    prop_oneof![
        Just(Holding::No),
        Just(Holding::Whole),
        any::<bool>().prop_map(|asked| Holding::Fetching { asked }),
        any::<u32>().prop_map(|chunks| Holding::Part { chunks }),
    ]
}

fn any_change() -> impl Strategy<Value = HoldingsChange> {
    let keys = || {
        let key = any_digest().prop_map(|digest| Key::of_digest(&digest));
        vec(key, 0..50)
    };
    prop_oneof![
        any::<u64>().prop_map(|placement| HoldingsChange::Began { placement }),
        keys().prop_map(HoldingsChange::Have),
        keys().prop_map(HoldingsChange::Lost),
        keys().prop_map(HoldingsChange::Fetching),
        Just(HoldingsChange::InSync),
    ]
}

fn any_answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        Just(Answer::Pending),
        any_news().prop_map(Answer::Blob),
        (0..MAX_CHUNKS, 1..=1_u32 << 18)
            .prop_map(|(index, length)| Answer::Chunk { index, length }),
        (0..MAX_CHUNKS - 1, any_digest()).prop_map(|(index, digest)| {
            Answer::FarChunk {
                index,
                length: CHUNK_BYTES as u32,
                digest,
            }
        }),
        Just(Answer::Done),
        Just(Answer::NotYet),
        any_nodes().prop_map(|ask| Answer::Busy { ask }),
        Just(Answer::Absent),
        ("[ -~]{0,90}", 0..8_u32 << 20, vec(any_origin(), 0..9)).prop_map(
            |(media_type, length, provenance)| Answer::Manifest {
                media_type: MediaType::new(media_type),
                length,
                provenance,
            }
        ),
        (any_digest(), any::<u64>(), any_origin()).prop_map(|(digest, age_ms, origin)| {
            Answer::Tag {
                digest,
                age_ms,
                origin,
            }
        }),
        vec(any_holding(), 0..50).prop_map(Answer::Holds),
        any_refusal().prop_map(Answer::Refused),
        (any::<u64>(), any_change()).prop_map(|(sequence, change)| told(sequence, change)),
        any::<u64>().prop_map(|age_ms| Answer::Vouched { age_ms }),
    ]
}

proptest! {
    #[test]
    fn questions_come_out_as_they_went_in(question in any_question()) {
        let frame = frame::encode(&question).expect("within bounds");
        let (read, rest) = read_one::<Question>(&frame).expect("a frame").expect("whole");
        prop_assert_eq!(read, question);
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn answers_come_out_as_they_went_in(answer in any_answer()) {
        let frame = frame::encode(&answer).expect("within bounds");
        let (read, rest) = read_one::<Answer>(&frame).expect("a frame").expect("whole");
        prop_assert_eq!(read, answer);
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..600)) {
        read_frames(&bytes);
        read_frames(&as_frame(&bytes));
    }

    #[test]
    fn mutated_frames_do_no_harm(
        question in any_question(),
        answer in any_answer(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
        cut in any::<prop::sample::Index>(),
    ) {
        for frame in [frame::encode(&question), frame::encode(&answer)] {
            let mut frame = frame.expect("within bounds");
            for (at, byte) in &changes {
                let at = at.index(frame.len());
                frame[at] = *byte;
            }
            read_frames(&frame);
            read_frames(&as_frame(&frame[HEADER_BYTES..]));
            read_frames(&frame[..cut.index(frame.len())]);
            read_frames(&[&frame[..], &frame[..]].concat());
        }
    }
}

/// Puts bytes behind a header that fits them, so that they reach the decoder.
fn as_frame(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short");
    [&[frame::VERSION][..], &length.to_be_bytes(), bytes].concat()
}
