//! Reading a blob, whether it is in the store or still on its way.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http_body::Frame;
use millrace_protocol::oci::Digest;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use crate::store::BlobFile;

use super::error::PullError;
use super::origin::{Origin, Source};
use super::transfer::{State, Step, Waiter};

/// How often a waiting reader asks itself whether its bytes are far away.
const HURRY_INTERVAL: Duration = Duration::from_millis(500);

/// A blob whose source is confirmed.
#[derive(Debug)]
pub struct OpenBlob {
    digest: Digest,
    origin: Origin,
    deadline: Instant,
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
        deadline: Instant,
        blob: BlobFile,
    ) -> Self {
        Self {
            digest,
            origin,
            deadline,
            content: Content::Stored(Arc::new(blob)),
        }
    }

    pub(super) fn growing(origin: Origin, deadline: Instant, waiter: Waiter) -> Self {
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
        let state = in_time(self.deadline, known)
            .await?
            .map_err(|_| PullError::Stopped)?;
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
        let mut reader = match &self.content {
            Content::Stored(blob) => Reader::Stored {
                blob: Arc::clone(blob),
                range: range.start..range.end.min(blob.size()),
            },
            Content::Growing(waiter) => {
                if waiter.transfer.state().is_out_of_window(range.start) {
                    return self.read_past(range).await;
                }
                Reader::Growing {
                    watch: waiter.transfer.watch(),
                    waiter: Arc::clone(waiter),
                    range,
                }
            }
        };
        let first = in_time(self.deadline, reader.next()).await??;
        let rest = stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|bytes| (bytes, reader)))
        });
        Ok(BlobBody::new(stream::iter(first.map(Ok)).chain(rest)))
    }

    /// Reads a range of a relayed blob from the upstream, past the shared transfer.
    async fn read_past(&self, range: Range<u64>) -> Result<BlobBody, PullError> {
        let Origin {
            upstream,
            repository,
        } = &self.origin;
        let opened = upstream
            .open_blob(repository, &self.digest, range.start, self.deadline)
            .await?;
        let skip = range.start.saturating_sub(opened.offset());
        let length = range.end.saturating_sub(range.start);
        let body = stream::try_unfold(
            (opened, skip, length),
            |(mut body, mut skip, mut left)| async move {
                while left > 0 {
                    let Some(mut bytes) = body.next_chunk().await? else {
                        return Ok(None);
                    };
                    let skipped = skip.min(bytes.len() as u64);
                    skip -= skipped;
                    let _ = bytes.split_to(usize::try_from(skipped).expect("at most the chunk"));
                    bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    if !bytes.is_empty() {
                        left -= bytes.len() as u64;
                        return Ok(Some((bytes, (body, skip, left))));
                    }
                }
                Ok::<_, PullError>(None)
            },
        );
        Ok(BlobBody::new(body))
    }
}

/// Waits until the deadline for what must be known before headers leave.
pub(super) async fn in_time<T>(
    deadline: Instant,
    future: impl Future<Output = T>,
) -> Result<T, PullError> {
    let started = Instant::now();
    let timed = tokio::time::timeout_at(deadline, future).await;
    timed.map_err(|_| PullError::Late {
        waited: started.elapsed(),
    })
}

/// One reader at its position.
enum Reader {
    Stored {
        blob: Arc<BlobFile>,
        range: Range<u64>,
    },
    Growing {
        watch: watch::Receiver<State>,
        waiter: Arc<Waiter>,
        range: Range<u64>,
    },
}

impl Reader {
    /// Returns the next bytes, or `None` at the end of the range.
    async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        let (bytes, range) = match self {
            Self::Stored { range, .. } if range.is_empty() => return Ok(None),
            Self::Stored { blob, range } => {
                let bytes = blob.reader().read(range.start, range.end).await;
                (Some(bytes.map_err(read_error)?), range)
            }
            Self::Growing {
                watch,
                waiter,
                range,
            } => (next_of_growing(watch, waiter, range).await?, range),
        };
        if let Some(bytes) = &bytes {
            range.start += bytes.len() as u64;
        }
        Ok(bytes)
    }
}

/// Waits for bytes at the start of `range` and reads them.
async fn next_of_growing(
    watch: &mut watch::Receiver<State>,
    waiter: &Waiter,
    range: &Range<u64>,
) -> Result<Option<Bytes>, PullError> {
    let transfer = &waiter.transfer;
    let began = Instant::now();
    let mut hurry_at = began + HURRY_INTERVAL;
    loop {
        let step = watch.borrow_and_update().step(range.start, range.end);
        match step {
            Step::End => return Ok(None),
            Step::Fail(error) => return Err(error),
            Step::File(file, limit) => {
                let bytes = file.read(range.start, limit).await.map_err(read_error)?;
                return Ok(Some(bytes));
            }
            Step::Bytes(bytes) => {
                let position = range.start + bytes.len() as u64;
                transfer.change(|state| state.advance_reader(position));
                return Ok(Some(bytes));
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

/// The bytes of a blob or a range of it, in order.
///
/// An error after the first byte must end the response early: the connection is closed and the
/// client resumes with a Range.
pub struct BlobBody {
    stream: Pin<Box<dyn Stream<Item = Result<Bytes, PullError>> + Send>>,
    failed: Option<PullError>,
}

impl BlobBody {
    fn new(stream: impl Stream<Item = Result<Bytes, PullError>> + Send + 'static) -> Self {
        Self {
            stream: Box::pin(stream),
            failed: None,
        }
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobBody").finish_non_exhaustive()
    }
}

impl http_body::Body for BlobBody {
    type Data = Bytes;
    type Error = PullError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PullError>>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match std::task::ready!(self.stream.as_mut().poll_next(context)) {
            Some(Ok(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Err(error)) => {
                // One turn of rest before the error: the server writes out what it holds, then
                // closes. Contract B7.
                self.failed = Some(error);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }
}
