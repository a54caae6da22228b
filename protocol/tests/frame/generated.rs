//! Messages and bytes made by chance: what goes in comes out, and nothing else does harm.

use millrace_protocol::chunk::{CHUNK_BYTES, ChainValue, MAX_CHUNKS};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest, MediaType};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::frame::{self, HEADER_BYTES};
use millrace_protocol::wire::message::{
    Answer, AskHolds, AskManifest, AskVouch, BlobNews, Cause, Holding, HoldingsChange, MAX_ORIGINS,
    MAX_READ_CHUNKS, MAX_SOURCES, OpenBlob, OriginName, Purpose, Question, RateLimit, ReadChunks,
    RecallTag, Refusal, ResolveTag, Role,
};
use proptest::collection::vec;
use proptest::prelude::*;

use super::body::{read_frames, read_one};
use super::told;

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

fn any_open() -> impl Strategy<Value = Question> {
    let origins = vec(any_origin(), 0..MAX_ORIGINS);
    let marks = any::<(u32, bool)>();
    (any_digest(), any_role(), origins, ".{0,60}", marks).prop_map(
        |(digest, role, origins, zone, (have, copy))| {
            Question::Open(OpenBlob {
                digest,
                role,
                origins,
                zone,
                have,
                copy,
            })
        },
    )
}

fn any_read() -> impl Strategy<Value = Question> {
    let marks = any::<(bool, bool)>();
    (any_digest(), 0..MAX_CHUNKS - 64, 1..=MAX_READ_CHUNKS, marks).prop_map(
        |(digest, first, count, (far, copy))| {
            Question::Read(ReadChunks {
                digest,
                first,
                count,
                far,
                copy,
            })
        },
    )
}

fn any_question() -> impl Strategy<Value = Question> {
    let origins = || vec(any_origin(), 0..MAX_ORIGINS);
    prop_oneof![
        any_open(),
        any_read(),
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
        (any_origin(), any::<Option<u64>>(), any::<Option<u8>>()).prop_map(
            |(origin, wait_ms, source)| {
                let source = source.map(|byte| format!("192.0.2.{byte}"));
                Refusal::RateLimited(origin, RateLimit { wait_ms, source })
            }
        ),
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
        Just(Answer::Pending(Cause::Turn)),
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
