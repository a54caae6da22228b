//! The bytes of every message, as every release must write and read them.

use std::fmt;

use millrace_protocol::chunk::{CHUNK_BYTES, ChainValue};
use millrace_protocol::oci::{Algorithm, MediaType};
use millrace_protocol::wire::frame::{self, Message};
use millrace_protocol::wire::message::{
    Answer, AskHolds, AskManifest, AskVouch, BlobNews, Cause, Holding, HoldingsChange, OpenBlob,
    Purpose, Question, ReadChunks, RecallTag, Refusal, ResolveTag, Role,
};

use super::body::read_one;
use super::{digest, key, limit, node, origin, told};

/// One message of each kind, in the order of `frame.golden`.
pub(super) fn golden_questions() -> Vec<Question> {
    vec![
        Question::Open(OpenBlob {
            digest: digest(),
            role: Role::Owner,
            origins: vec![origin()],
            zone: "fra1".into(),
            have: 300,
            copy: true,
        }),
        Question::Read(ReadChunks {
            digest: digest(),
            first: 300,
            count: 64,
            far: false,
            copy: true,
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
        Answer::Pending(Cause::Work),
        Answer::Pending(Cause::Others),
        Answer::Pending(Cause::Turn),
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
        Answer::Refused(Refusal::RateLimited(origin(), limit(Some("192.0.2.1")))),
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
    let golden: Vec<&str> = include_str!("../frame.golden").lines().collect();
    assert_eq!(lines, golden, "now:\n{}", lines.join("\n"));
}
