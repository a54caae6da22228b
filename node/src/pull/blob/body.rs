//! The bytes of a blob as the body of an answer: pieces in memory or in files, in order.
//!
//! Where they come from is `reader`'s; how they are sent is up to the room that answers clients.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};

use crate::pull::error::PullError;
use crate::store::FileRange;

use super::reader::Reader;

/// Some bytes of a blob.
#[derive(Debug)]
pub enum Piece {
    /// They are in memory.
    Memory(Bytes),
    /// They are in a file, right and complete; only from a body that lends.
    File(FileRange),
}

impl Piece {
    /// Returns how many bytes these are; not 0.
    #[expect(clippy::len_without_is_empty, reason = "a piece is never empty")]
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File(range) => range.len(),
        }
    }
}

/// The bytes of a blob or a range of it, in order.
///
/// An error after the first byte must end the response early: the connection is closed and the
/// client resumes with a Range.
pub struct BlobBody {
    /// What was in hand before the body began.
    first: Option<Piece>,
    /// The reader of the rest, until the first piece of it is asked for.
    unread: Option<Box<Reader>>,
    /// The rest, once it is being read.
    running: BoxStream<'static, Result<Piece, PullError>>,
    failed: Option<PullError>,
}

impl BlobBody {
    /// Begins a body with the first bytes in hand.
    ///
    /// # Errors
    /// Those of the reader.
    pub(super) async fn begin(mut reader: Reader) -> Result<Self, PullError> {
        Ok(Self {
            first: reader.next().await?,
            unread: Some(Box::new(reader)),
            running: stream::empty().boxed(),
            failed: None,
        })
    }

    /// From here on gives what lies in a file as [`Piece::File`], for who can send it from there;
    /// without this call every piece is in memory. To be called before the body is polled.
    pub fn lend_files(&mut self) {
        if let Some(reader) = &mut self.unread {
            reader.lend_files();
        }
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, PullError>>> {
        if let Some(piece) = self.first.take() {
            return Poll::Ready(Some(Ok(piece)));
        }
        if let Some(reader) = self.unread.take() {
            let pieces = stream::try_unfold(reader, |mut reader| async move {
                Ok(reader.next().await?.map(|piece| (piece, reader)))
            });
            self.running = pieces.boxed();
        }
        self.running.as_mut().poll_next(context)
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobBody").finish_non_exhaustive()
    }
}

impl Stream for BlobBody {
    type Item = Result<Piece, PullError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece, PullError>>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let next = std::task::ready!(self.poll_piece(context));
        if let Some(Err(error)) = next {
            // One turn of rest before the error: the server writes out what it holds, then
            // closes. Contract B7.
            self.failed = Some(error);
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(next)
    }
}
