//! Questions and answers between nodes.
//!
//! Each question travels on a bidirectional stream of its own; answers come back on it in the
//! order that is described at the question. While an answer is being worked on, the node that was
//! asked says [`Answer::Pending`] at once and every second: silence means that it is gone.
//! No message carries a credential: what content was fetched with is named by an id.

use serde::{Deserialize, Serialize};

use super::gradual;
use crate::chunk::ChainValue;
use crate::node_id::NodeId;
use crate::oci::{Digest, MediaType, RepositoryName, Tag};
use crate::placement::Key;

/// Most origins that one question names.
pub const MAX_ORIGINS: usize = 16;

/// Most origins that one answer names as provenance: who answers keeps those that were asked for.
pub const MAX_PROVENANCE: usize = 64;

/// Most digests that one [`Question::Holds`] asks for.
pub const MAX_ASKED_DIGESTS: usize = 1024;

/// Most keys that one [`HoldingsChange`] names.
pub const MAX_TOLD_KEYS: usize = 4096;

/// Most sources that one answer names.
pub const MAX_SOURCES: usize = 16;

/// Most values that one [`BlobNews::Chain`] carries.
pub const MAX_CHAIN_VALUES: usize = 1024;

/// Most chunks that one [`Question::Read`] asks for.
pub const MAX_READ_CHUNKS: u32 = 256;

/// Longest name of an upstream, a credential, a zone or a media type, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// Longest reason for people, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;

/// As what the node that is asked should act. A greater role waits for nobody of a smaller one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Give what is here or already on its way from an upstream; ask nobody.
    Holder,
    /// Also ask the home.
    Owner,
    /// Also ask who holds it, and then the upstream.
    Home,
}

/// What some content was, or may be, fetched as.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OriginName {
    /// Name of the configured upstream.
    pub upstream: String,
    /// Repository within the upstream.
    pub repository: RepositoryName,
    /// Id of the credential, or `anonymous`; never a secret.
    pub credential: String,
}

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

/// What an answer waits for that is not there yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// The work of the node that was asked.
    #[default]
    Work,
    /// An upstream that was asked, or another node.
    Others,
    /// A turn: as much is asked of the upstream as may be, or made at a time. It is nobody's fault, and
    /// takes as long as there is a queue.
    Turn,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is being worked on; sent at once and every second.
    Pending(Cause),
    /// News of a blob.
    Blob(BlobNews),
    /// A chunk, whose bytes follow this frame.
    Chunk {
        /// Which one.
        index: u32,
        /// How many bytes follow.
        length: u32,
    },
    /// All chunks that were asked for have been sent.
    Done,
    /// The next chunk is not here yet.
    NotYet,
    /// All upload slots are taken; these nodes may have the chunk.
    Busy {
        /// At most [`MAX_SOURCES`]; empty where the node knows of none.
        #[serde(deserialize_with = "gradual::read")]
        ask: Vec<NodeId>,
    },
    /// It is not here.
    Absent,
    /// A manifest, whose bytes follow this frame.
    Manifest {
        /// The exact `Content-Type`.
        media_type: MediaType,
        /// How many bytes follow.
        length: u32,
        /// What it was fetched as; at most [`MAX_PROVENANCE`].
        #[serde(deserialize_with = "gradual::read")]
        provenance: Vec<OriginName>,
    },
    /// What a tag points to.
    Tag {
        /// The manifest.
        digest: Digest,
        /// Time since the upstream last said so, in milliseconds.
        age_ms: u64,
        /// What it was resolved as.
        origin: OriginName,
    },
    /// One entry for each digest that was asked for, in that order.
    Holds(#[serde(deserialize_with = "gradual::read")] Vec<Holding>),
    /// It cannot be given.
    Refused(Refusal),
    /// News of what the other node holds.
    Holdings(HoldingsNews),
    /// The repository has the content.
    Vouched {
        /// Time since the upstream last answered out of the repository, in milliseconds.
        age_ms: u64,
    },
    /// A chunk that the chain has not come to yet, whose bytes follow this frame; only for who
    /// asked for far chunks, and never the last of a blob.
    FarChunk {
        /// Which one.
        index: u32,
        /// How many bytes follow: those of a whole chunk.
        length: u32,
        /// What these bytes were when they came to the node that had them of an upstream.
        digest: Digest,
    },
}

/// One step in what a node tells of its holdings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingsNews {
    /// 0 for the first on a stream, then one more each.
    pub sequence: u64,
    /// What is new.
    pub change: HoldingsChange,
}

/// What is new about a node's holdings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldingsChange {
    /// What was told before is void; what follows is told as this placement wants it.
    Began {
        /// [`Placement::fingerprint`](crate::placement::Placement::fingerprint).
        placement: u64,
    },
    /// These are there; at most [`MAX_TOLD_KEYS`].
    Have(#[serde(deserialize_with = "gradual::read")] Vec<Key>),
    /// These are not there any more, or will go now; at most [`MAX_TOLD_KEYS`].
    Lost(#[serde(deserialize_with = "gradual::read")] Vec<Key>),
    /// These are on their way from an upstream, or about to be; at most [`MAX_TOLD_KEYS`].
    Fetching(#[serde(deserialize_with = "gradual::read")] Vec<Key>),
    /// Everything has been told; what comes now is told as it happens.
    InSync,
}

/// News of a blob that was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobNews {
    /// The first bytes are in hand.
    Opened {
        /// Size in bytes.
        size: u64,
        /// What it was, or is being, fetched as; at most [`MAX_PROVENANCE`].
        #[serde(deserialize_with = "gradual::read")]
        provenance: Vec<OriginName>,
        /// Who to read from, best first; at most [`MAX_SOURCES`].
        #[serde(deserialize_with = "gradual::read")]
        sources: Vec<NodeId>,
    },
    /// The values behind chunks `first`, `first + 1`, …; without gaps over the whole stream.
    Chain {
        /// Index of the chunk that ends at the first value.
        first: u32,
        /// At most [`MAX_CHAIN_VALUES`]; the last chunk has none, it must lead to the digest.
        #[serde(deserialize_with = "gradual::read")]
        values: Vec<ChainValue>,
    },
    /// Who to read from now, best first; at most [`MAX_SOURCES`].
    Sources(#[serde(deserialize_with = "gradual::read")] Vec<NodeId>),
    /// The whole has been verified here.
    Whole,
}

/// Whether a node has some content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holding {
    /// It has not.
    No,
    /// It has the whole.
    Whole,
    /// It is about to ask an upstream for it, or is receiving it from one.
    Fetching {
        /// Whether the upstream has already been asked.
        asked: bool,
    },
    /// It takes it from other nodes, and can give so many chunks, from the first on, at once.
    Part {
        /// At least 1.
        chunks: u32,
    },
}

/// A rate limit that a node has run into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// In how many milliseconds the upstream may be asked again, if that is known.
    pub wait_ms: Option<u64>,
    /// Whom the upstream says that it counts when the node asks.
    pub source: Option<String>,
}

/// Why something cannot be given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The upstream has answered 404 to this origin.
    NotFound(OriginName),
    /// The upstream has refused this origin with 401 or 403.
    Denied(OriginName, u16),
    /// The upstream limits the rate.
    RateLimited(OriginName, RateLimit),
    /// The upstream cannot be reached or failed; the reason is for people.
    Unavailable(OriginName, String),
    /// None of the origins is configured here.
    Unconfigured,
    /// It is not here, and in this role nobody else is asked.
    Absent,
    /// This node cannot serve now: it stops, its disk failed, or it has too much to do.
    Unable,
    /// What arrived was not what the digest promises.
    Corrupt,
}

impl Refusal {
    /// Says that an upstream failed; a long `reason` is cut to [`MAX_REASON_BYTES`].
    pub fn unavailable(origin: OriginName, mut reason: String) -> Self {
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        Self::Unavailable(origin, reason)
    }
}
