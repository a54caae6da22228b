//! How much each message may hold; both who sends and who receives checks it.
//!
//! The shape of a message is `message`'s, its bytes are `frame`'s. Bounds that need another
//! message to judge (an answer against its question) are the reader's.

use super::message::{
    Answer, AskHolds, AskManifest, BlobNews, HoldingsChange, MAX_ASKED_DIGESTS, MAX_CHAIN_VALUES,
    MAX_NAME_BYTES, MAX_ORIGINS, MAX_PROVENANCE, MAX_READ_CHUNKS, MAX_REASON_BYTES, MAX_SOURCES,
    MAX_TOLD_KEYS, OpenBlob, OriginName, Question, ReadChunks, Refusal,
};
use crate::chunk::{self, CHUNK_BYTES, MAX_CHUNKS};
use crate::oci::MediaType;
use crate::oci::manifest::MAX_MANIFEST_BYTES;

/// A message holds more, or less, than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {found}, allowed are {least} to {most}")]
pub struct BrokenBound {
    /// The part of the message.
    pub what: &'static str,
    /// Its length or value.
    pub found: u64,
    /// The least that is allowed.
    pub least: u64,
    /// The most that is allowed.
    pub most: u64,
}

type Check = Result<(), BrokenBound>;

impl Question {
    /// Checks every bound of SPEC.md "Bounds" on a question.
    ///
    /// # Errors
    /// [`BrokenBound`] names the first that does not hold.
    pub fn check_bounds(&self) -> Check {
        match self {
            Self::Open(OpenBlob { origins, zone, .. }) => {
                check_origins(origins, MAX_ORIGINS)?;
                check_name("length of a zone", zone)
            }
            Self::Read(read) => read.check_bounds(),
            Self::Manifest(AskManifest { origins, .. }) => check_origins(origins, MAX_ORIGINS),
            Self::Resolve(resolve) => check_origin(&resolve.origin),
            Self::Recall(recall) => check_name("length of an upstream's name", &recall.upstream),
            Self::Holds(AskHolds { digests, .. }) => {
                at_most("number of digests", digests.len(), MAX_ASKED_DIGESTS)
            }
            Self::Follow => Ok(()),
            Self::Vouch(vouch) => check_origin(&vouch.origin),
        }
    }
}

impl ReadChunks {
    fn check_bounds(&self) -> Check {
        within(
            "number of chunks",
            self.count.into(),
            1,
            MAX_READ_CHUNKS.into(),
        )?;
        let end = u64::from(self.first) + u64::from(self.count);
        within("end of the chunks", end, 1, MAX_CHUNKS.into())
    }
}

impl Answer {
    /// Checks every bound of SPEC.md "Bounds" on an answer.
    ///
    /// # Errors
    /// [`BrokenBound`] names the first that does not hold.
    pub fn check_bounds(&self) -> Check {
        match self {
            Self::Pending(_) | Self::Done | Self::NotYet | Self::Absent | Self::Vouched { .. } => {
                Ok(())
            }
            Self::Blob(news) => news.check_bounds(),
            Self::Chunk { index, length } => {
                within(
                    "index of a chunk",
                    (*index).into(),
                    0,
                    (MAX_CHUNKS - 1).into(),
                )?;
                within("length of a chunk", (*length).into(), 1, CHUNK_BYTES)
            }
            Self::FarChunk { index, length, .. } => {
                // Another chunk follows it in the blob.
                let most = (MAX_CHUNKS - 2).into();
                within("index of a far chunk", (*index).into(), 0, most)?;
                let length = (*length).into();
                within("length of a far chunk", length, CHUNK_BYTES, CHUNK_BYTES)
            }
            Self::Busy { ask } => at_most("number of sources", ask.len(), MAX_SOURCES),
            Self::Manifest {
                media_type,
                length,
                provenance,
            } => {
                check_media_type(media_type)?;
                let most = MAX_MANIFEST_BYTES as u64;
                within("length of a manifest", (*length).into(), 0, most)?;
                check_origins(provenance, MAX_PROVENANCE)
            }
            Self::Tag { origin, .. } => check_origin(origin),
            Self::Holds(holdings) => {
                at_most("number of holdings", holdings.len(), MAX_ASKED_DIGESTS)
            }
            Self::Refused(refusal) => refusal.check_bounds(),
            Self::Holdings(news) => news.change.check_bounds(),
        }
    }
}

impl BlobNews {
    fn check_bounds(&self) -> Check {
        match self {
            Self::Opened {
                size,
                provenance,
                sources,
            } => {
                let most = u64::from(MAX_CHUNKS);
                within("number of chunks", chunk::count(*size), 0, most)?;
                check_origins(provenance, MAX_PROVENANCE)?;
                at_most("number of sources", sources.len(), MAX_SOURCES)
            }
            Self::Chain { first, values } => {
                at_most("number of chain values", values.len(), MAX_CHAIN_VALUES)?;
                let end = u64::from(*first) + values.len() as u64;
                within("end of the chain", end, 0, MAX_CHUNKS.into())
            }
            Self::Sources(sources) => at_most("number of sources", sources.len(), MAX_SOURCES),
            Self::Whole => Ok(()),
        }
    }
}

impl HoldingsChange {
    fn check_bounds(&self) -> Check {
        match self {
            Self::Have(keys) | Self::Lost(keys) | Self::Fetching(keys) => {
                at_most("number of told keys", keys.len(), MAX_TOLD_KEYS)
            }
            Self::Began { .. } | Self::InSync => Ok(()),
        }
    }
}

impl Refusal {
    fn check_bounds(&self) -> Check {
        match self {
            Self::NotFound(origin) => check_origin(origin),
            Self::RateLimited(origin, limit) => {
                let source = limit.source.as_deref().unwrap_or_default();
                check_name("length of a source", source)?;
                check_origin(origin)
            }
            Self::Denied(origin, status) => {
                within("status of a refusal", (*status).into(), 400, 499)?;
                check_origin(origin)
            }
            Self::Unavailable(origin, reason) => {
                at_most("length of a reason", reason.len(), MAX_REASON_BYTES)?;
                check_origin(origin)
            }
            Self::Unconfigured | Self::Absent | Self::Unable | Self::Corrupt => Ok(()),
        }
    }
}

fn check_origins(origins: &[OriginName], most: usize) -> Check {
    at_most("number of origins", origins.len(), most)?;
    origins.iter().try_for_each(check_origin)
}

fn check_origin(origin: &OriginName) -> Check {
    check_name("length of an upstream's name", &origin.upstream)?;
    check_name("length of a credential's id", &origin.credential)
}

/// A media type becomes a header, so it is printable as well as short.
fn check_media_type(media_type: &MediaType) -> Check {
    let text = media_type.as_str();
    check_name("length of a media type", text)?;
    let unprintable = text.bytes().filter(|byte| !matches!(byte, b' '..=b'~'));
    at_most(
        "number of unprintable bytes in a media type",
        unprintable.count(),
        0,
    )
}

fn check_name(what: &'static str, name: &str) -> Check {
    at_most(what, name.len(), MAX_NAME_BYTES)
}

fn at_most(what: &'static str, found: usize, most: usize) -> Check {
    within(what, found as u64, 0, most as u64)
}

fn within(what: &'static str, found: u64, least: u64, most: u64) -> Check {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(BrokenBound {
        what,
        found,
        least,
        most,
    })
}
