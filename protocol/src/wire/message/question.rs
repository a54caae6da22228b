//! What one node asks another.
//!
//! Each question travels on a bidirectional stream of its own; answers come back on it in the
//! order that is described at the question. No message carries a credential: what content was
//! fetched with is named by an id.

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::{Answer, MAX_ASKED_DIGESTS, MAX_ORIGINS, MAX_READ_CHUNKS};
use super::{OriginName, Role};
use crate::oci::{Digest, RepositoryName, Tag};
use crate::wire::gradual;

/// What one node asks another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Answered by [`Answer::Blob`]: one `Opened`, any number of `Chain` and `Sources`, then
    /// `Whole`; or `Refused` at any point. The stream stays open until the asker has the blob:
    /// for as long, the asker counts as a taker that others may be sent to.
    Open(OpenBlob),
    /// Answered by [`Answer::Chunk`] with the chunk's bytes behind each, in order, then
    /// [`Answer::Done`], [`Answer::NotYet`], [`Answer::Busy`] or [`Answer::Absent`].
    Read(ReadChunks),
    /// Answered by one [`Answer::Manifest`] with its bytes behind it, or [`Answer::Refused`].
    Manifest(AskManifest),
    /// Answered by one [`Answer::Tag`] or [`Answer::Refused`].
    Resolve(ResolveTag),
    /// Answered by one [`Answer::Tag`] from the record alone, or [`Answer::Absent`].
    Recall(RecallTag),
    /// Answered by one [`Answer::Holds`].
    Holds(AskHolds),
    /// Answered by [`Answer::Holdings`] for as long as the asker listens: what the other node
    /// holds of that which the asker is responsible for, and what changes about it.
    Follow,
    /// Answered by one [`Answer::Vouched`] or [`Answer::Refused`].
    Vouch(AskVouch),
}

/// Asks for a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenBlob {
    /// The blob.
    pub digest: Digest,
    /// As what.
    pub role: Role,
    /// Where it may come from, in the order in which it was named; at most [`MAX_ORIGINS`].
    #[serde(deserialize_with = "gradual::read")]
    pub origins: Vec<OriginName>,
    /// The asker's zone: it is sent to sources of that zone.
    pub zone: String,
    /// How many chunks, from the first on, the asker has, has checked and does not doubt. Not 0 when
    /// it was left by whom it took them from: then others may have more of them than the other node
    /// has.
    pub have: u32,
    /// Whether nobody waits for it: it is wanted as a further copy. That makes way for everything that
    /// somebody waits for, and is no reason to ask an upstream.
    pub copy: bool,
}

/// Asks for chunks that the other node has, or is about to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadChunks {
    /// The blob.
    pub digest: Digest,
    /// Index of the first chunk.
    pub first: u32,
    /// How many; between 1 and [`MAX_READ_CHUNKS`].
    pub count: u32,
    /// Whether somebody waits for them who cannot wait for what lies before: they are to be had out
    /// of order, and may come as [`Answer::FarChunk`].
    pub far: bool,
    /// Whether nobody waits for them, as in [`OpenBlob`].
    pub copy: bool,
}

/// Asks for a manifest by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskManifest {
    /// The manifest.
    pub digest: Digest,
    /// As what.
    pub role: Role,
    /// Where it may come from; at most [`MAX_ORIGINS`].
    #[serde(deserialize_with = "gradual::read")]
    pub origins: Vec<OriginName>,
}

/// Asks what a tag points to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveTag {
    /// The repository.
    pub origin: OriginName,
    /// The tag.
    pub tag: Tag,
    /// Greatest acceptable age of the answer, in milliseconds; 0 asks the upstream in any case.
    pub max_age_ms: u64,
}

/// Asks what a node last knew of a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecallTag {
    /// Name of the configured upstream.
    pub upstream: String,
    /// Repository within the upstream.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: Tag,
}

/// Asks which of some contents a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskHolds {
    /// Blobs and manifests; at most [`MAX_ASKED_DIGESTS`].
    #[serde(deserialize_with = "gradual::read")]
    pub digests: Vec<Digest>,
    /// What the asker does by the answer.
    pub purpose: Purpose,
}

/// What a node that asks who has some content does by the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// It takes it from whoever has it, or goes without; of no digests, it asks for a sign of life.
    Know,
    /// It asks an upstream if nobody has it: who is asked has to ask back before it does the same.
    Fetch,
    /// It drops its copy if another has one: who means to drop its own has none.
    Drop,
}

/// Asks whether an upstream says that a repository has some content; for the home of the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskVouch {
    /// The content.
    pub digest: Digest,
    /// Whether it is a manifest, and not a blob.
    pub is_manifest: bool,
    /// The repository.
    pub origin: OriginName,
    /// Greatest acceptable age of the answer, in milliseconds; 0 asks the upstream in any case.
    pub max_age_ms: u64,
}
