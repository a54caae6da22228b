//! Questions and answers between nodes.
//!
//! `question` has what is asked, `answer` what comes back; this file has what both speak of, and how
//! much each may hold. Whether a message keeps to that is checked in `bounds`.

mod answer;
mod question;

use serde::{Deserialize, Serialize};

use crate::oci::RepositoryName;

pub use answer::{
    Answer, BlobNews, Cause, Holding, HoldingsChange, HoldingsNews, RateLimit, Refusal,
};
pub use question::{
    AskHolds, AskManifest, AskVouch, OpenBlob, Purpose, Question, ReadChunks, RecallTag, ResolveTag,
};

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
