//! Reading a blob, whether it is in the store or still on its way.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use millrace_protocol::oci::Digest;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use crate::store::{BlobFile, FileRange, FileReader};
use crate::upstream;

use super::deadline::Deadline;
use super::error::PullError;
use super::origin::{Origin, Source};
use super::transfer::{State, Step, Waiter};

/// From how many bytes on a file is lent: for fewer the copy costs less than a system call of
/// their own.
const LEND_BYTES: u64 = 64 * 1024;

/// How often a waiting reader asks itself whether its bytes are far away.
pub(super) const HURRY_INTERVAL: Duration = Duration::from_millis(500);

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
        let (supply, range) = match &self.content {
            Content::Stored(blob) => {
                let end = range.end.min(blob.size());
                (Supply::Stored(Arc::clone(blob)), range.start..end)
            }
            Content::Growing(waiter) => {
                if waiter.transfer.state().is_out_of_window(range.start) {
                    return self.read_past(range).await;
                }
                let watch = waiter.transfer.watch();
                (Supply::Growing(watch, Arc::clone(waiter)), range)
            }
        };
        let mut reader = Reader {
            supply,
            range,
            lends: false,
        };
        Ok(BlobBody {
            first: reader.next().await?,
            unread: Some(Box::new(reader)),
            running: stream::empty().boxed(),
            failed: None,
        })
    }

    /// Reads a range of a relayed blob from the upstream, past the shared transfer, once its
    /// first bytes are in hand.
    async fn read_past(&self, range: Range<u64>) -> Result<BlobBody, PullError> {
        let Origin {
            upstream,
            repository,
        } = &self.origin;
        let opened = upstream
            .open_blob(
                repository,
                &self.digest,
                range.start,
                self.deadline.asking(),
            )
            .await?;
        let mut past = Past {
            skip: range.start.saturating_sub(opened.offset()),
            left: range.end.saturating_sub(range.start),
            body: opened,
        };
        let first = past.next().await?;
        let rest = stream::try_unfold(past, |mut past| async move {
            Ok(past.next().await?.map(|piece| (piece, past)))
        });
        Ok(BlobBody {
            first,
            unread: None,
            running: rest.boxed(),
            failed: None,
        })
    }
}

/// A range that is read past the shared transfer.
struct Past {
    body: upstream::BlobBody,
    /// Bytes before the range, from an upstream that ignored where it begins.
    skip: u64,
    left: u64,
}

impl Past {
    /// Returns the next bytes, or `None` at the end of the range.
    async fn next(&mut self) -> Result<Option<Piece>, PullError> {
        while self.left > 0 {
            let Some(mut bytes) = self.body.next_chunk().await? else {
                return Ok(None);
            };
            let skipped = self.skip.min(bytes.len() as u64);
            self.skip -= skipped;
            let _ = bytes.split_to(usize::try_from(skipped).expect("at most the chunk"));
            bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            if !bytes.is_empty() {
                self.left -= bytes.len() as u64;
                return Ok(Some(Piece::Memory(bytes)));
            }
        }
        Ok(None)
    }
}

/// One reader at its position.
struct Reader {
    supply: Supply,
    /// What is still to be read.
    range: Range<u64>,
    /// Whether what lies in a file is lent rather than read.
    lends: bool,
}

/// Where a reader finds its bytes.
enum Supply {
    Stored(Arc<BlobFile>),
    Growing(watch::Receiver<State>, Arc<Waiter>),
}

impl Reader {
    /// Returns the next bytes, or `None` at the end of the range.
    async fn next(&mut self) -> Result<Option<Piece>, PullError> {
        let Self {
            supply,
            range,
            lends,
        } = self;
        let piece = match supply {
            Supply::Stored(_) if range.is_empty() => None,
            Supply::Stored(blob) => Some(take(blob.reader(), range.clone(), *lends).await?),
            Supply::Growing(watch, waiter) => next_of_growing(watch, waiter, range, *lends).await?,
        };
        if let Some(piece) = &piece {
            range.start += piece.len() as u64;
        }
        Ok(piece)
    }
}

/// Takes some bytes from the start of `range`, which is in the file.
async fn take(file: &FileReader, range: Range<u64>, lends: bool) -> Result<Piece, PullError> {
    if lends && range.end - range.start >= LEND_BYTES {
        return Ok(Piece::File(file.range(range.start, range.end)));
    }
    let bytes = file.read(range.start, range.end).await;
    bytes.map(Piece::Memory).map_err(read_error)
}

/// Waits for bytes at the start of `range` and reads them.
async fn next_of_growing(
    watch: &mut watch::Receiver<State>,
    waiter: &Waiter,
    range: &Range<u64>,
    lends: bool,
) -> Result<Option<Piece>, PullError> {
    let transfer = &waiter.transfer;
    let began = Instant::now();
    let mut hurry_at = began + HURRY_INTERVAL;
    loop {
        let step = watch.borrow_and_update().step(range.start, range.end);
        match step {
            Step::End => return Ok(None),
            Step::Fail(error) => return Err(error),
            Step::File(file, limit) => {
                return take(&file, range.start..limit, lends).await.map(Some);
            }
            Step::Bytes(bytes) => {
                let position = range.start + bytes.len() as u64;
                transfer.change(|state| state.advance_reader(position));
                return Ok(Some(Piece::Memory(bytes)));
            }
            Step::Wait => {}
        }
        // Not an interval since the last change: a slow upstream changes the state all the time.
        if Instant::now() >= hurry_at {
            transfer.hurry(range.start, began.elapsed());
            hurry_at = Instant::now() + HURRY_INTERVAL;
        }
        match tokio::time::timeout_at(hurry_at, watch.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(_)) => return Err(PullError::Stopped),
        }
    }
}

fn read_error(error: std::io::Error) -> PullError {
    PullError::Read(Arc::new(error))
}

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
    /// From here on gives what lies in a file as [`Piece::File`], for who can send it from there;
    /// without this call every piece is in memory. To be called before the body is polled.
    pub fn lend_files(&mut self) {
        if let Some(reader) = &mut self.unread {
            reader.lends = true;
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
