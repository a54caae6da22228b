//! What comes back.
//!
//! While an answer is being worked on, the node that was asked says [`Answer::Pending`] at once and
//! every second: silence means that it is gone. Which answers go with which question is said there.

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::{MAX_CHAIN_VALUES, MAX_PROVENANCE, MAX_SOURCES, MAX_TOLD_KEYS};
use super::{MAX_REASON_BYTES, OriginName};
use crate::chunk::ChainValue;
use crate::node_id::NodeId;
use crate::oci::{Digest, MediaType};
use crate::placement::Key;
use crate::wire::gradual;

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
