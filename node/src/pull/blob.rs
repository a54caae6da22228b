//! Reading a blob, whether it is in the store or still on its way.
//!
//! This file has what was opened and chooses where a range is read from; `reader` gives the bytes
//! one after another, `body` makes a stream of them. None of them fetches: that is `fill`'s.

mod body;
mod reader;

use std::ops::Range;
use std::sync::Arc;

use millrace_protocol::oci::Digest;

use crate::store::BlobFile;
use crate::upstream;

use super::deadline::Deadline;
use super::error::PullError;
use super::origin::{Origin, Source};
use super::transfer::Waiter;

pub use body::{BlobBody, Piece};
pub(super) use reader::HURRY_INTERVAL;
use reader::Reader;

/// A blob whose source is confirmed.
#[derive(Debug)]
pub struct OpenBlob {
    digest: Digest,
    origin: Origin,
    deadline: Deadline,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Stored(Arc<BlobFile>),
    Growing(Arc<Waiter>),
}

impl OpenBlob {
    pub(super) fn stored(
        digest: Digest,
        origin: Origin,
        deadline: Deadline,
        blob: BlobFile,
    ) -> Self {
        Self {
            digest,
            origin,
            deadline,
            content: Content::Stored(Arc::new(blob)),
        }
    }

    pub(super) fn growing(origin: Origin, deadline: Deadline, waiter: Waiter) -> Self {
        Self {
            digest: waiter.transfer.digest,
            origin,
            deadline,
            content: Content::Growing(Arc::new(waiter)),
        }
    }

    /// Returns the size in bytes; `None` while an upstream that does not state it still sends.
    pub fn size(&self) -> Option<u64> {
        match &self.content {
            Content::Stored(blob) => Some(blob.size()),
            Content::Growing(waiter) => waiter.transfer.state().size,
        }
    }

    /// Returns where the bytes come from.
    pub fn source(&self) -> Source {
        match &self.content {
            Content::Stored(_) => Source::Local,
            Content::Growing(waiter) => waiter.transfer.state().source(),
        }
    }

    /// Whether every byte is in the store, so that any range can be read at once.
    pub fn is_complete(&self) -> bool {
        match &self.content {
            Content::Stored(_) => true,
            Content::Growing(waiter) => waiter.transfer.state().source() == Source::Local,
        }
    }

    /// Waits until the size is known.
    ///
    /// # Errors
    /// [`PullError::Late`] when that takes longer than a client waits for headers, or why the
    /// fetch failed.
    /// # Cancel safety
    /// Dropping the future has no effect on the fetch.
    pub async fn wait_for_size(&self) -> Result<u64, PullError> {
        let Content::Growing(waiter) = &self.content else {
            return Ok(self.size().unwrap_or(0));
        };
        let mut watch = waiter.transfer.watch();
        let known = watch.wait_for(|state| state.size.is_some() || state.failure().is_some());
        let known = self.deadline.for_others(known).await?;
        let state = known.map_err(|_| PullError::Stopped)?;
        match (state.size, state.failure()) {
            (Some(size), _) => Ok(size),
            (None, error) => Err(error.cloned().unwrap_or(PullError::Stopped)),
        }
    }

    /// Opens a range for reading, once its first bytes are in hand.
    ///
    /// `range` is in bytes, half-open; an end of `u64::MAX` means the end of the blob. The
    /// result yields non-empty chunks. A fetch that fails later ends it with an error.
    ///
    /// # Errors
    /// [`PullError::Late`] when the first byte takes longer than a client waits for headers, or
    /// why the fetch failed.
    /// # Cancel safety
    /// Dropping the future, or the result, removes a reader and nothing else.
    /// Source: OCI Distribution Spec end-2; RFC 9110 section 14.
    pub async fn read(&self, range: Range<u64>) -> Result<BlobBody, PullError> {
        let reading = self.read_further(range);
        self.deadline.for_answer(reading).await?
    }

    /// As [`Self::read`], for a body whose headers have left: however long the first byte takes,
    /// it is waited for.
    ///
    /// # Errors
    /// Why the fetch failed. [`PullError::Late`] only for a range that must be asked of the
    /// upstream, which is none of a blob that is complete.
    /// # Cancel safety
    /// As [`Self::read`].
    pub async fn read_further(&self, range: Range<u64>) -> Result<BlobBody, PullError> {
        let reader = match &self.content {
            Content::Stored(blob) => Reader::of_stored(blob, range),
            Content::Growing(waiter) => {
                let reader = Reader::of_growing(waiter, range.clone());
                match BlobBody::begin(reader).await {
                    Err(PullError::FellBehind) => {
                        Reader::of_answer(self.ask_past(range.start).await?, range)
                    }
                    begun => return begun,
                }
            }
        };
        BlobBody::begin(reader).await
    }

    /// Asks the upstream for a relayed blob from `start` on, which the shared transfer has let go.
    async fn ask_past(&self, start: u64) -> Result<upstream::BlobBody, PullError> {
        let Origin {
            upstream,
            repository,
        } = &self.origin;
        let asking = self.deadline.asking();
        let opening = upstream.open_blob(repository, &self.digest, start, asking);
        Ok(opening.await?)
    }
}
