//! One reader of a blob at its position: the next bytes, from wherever they are.
//!
//! It waits for bytes on their way and tells the transfer when they are far ahead; it asks nobody
//! for them. What was opened is `blob`'s, how the bytes become a body is `body`'s.

use std::ops::Range;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use crate::pull::error::PullError;
use crate::pull::transfer::{State, Step, Waiter};
use crate::store::{BlobFile, FileReader};
use crate::upstream;

use super::Piece;

/// From how many bytes on a file is lent: for fewer the copy costs less than a system call of
/// their own.
const LEND_BYTES: u64 = 64 * 1024;

/// How often a waiting reader asks itself whether its bytes are far away.
pub(in crate::pull) const HURRY_INTERVAL: Duration = Duration::from_millis(500);

/// One reader at its position.
pub(super) struct Reader {
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
    Past(Box<Past>),
}

impl Reader {
    /// Reads what is in the store.
    pub(super) fn of_stored(blob: &Arc<BlobFile>, range: Range<u64>) -> Self {
        let end = range.end.min(blob.size());
        Self::of(Supply::Stored(Arc::clone(blob)), range.start..end)
    }

    /// Reads what is here of a blob on its way, and waits for the rest.
    pub(super) fn of_growing(waiter: &Arc<Waiter>, range: Range<u64>) -> Self {
        let watch = waiter.transfer.watch();
        Self::of(Supply::Growing(watch, Arc::clone(waiter)), range)
    }

    /// Reads an answer of the upstream to this reader alone, past the shared transfer.
    pub(super) fn of_answer(answer: upstream::BlobBody, range: Range<u64>) -> Self {
        let past = Past {
            skip: range.start.saturating_sub(answer.offset()),
            body: answer,
        };
        Self::of(Supply::Past(Box::new(past)), range)
    }

    fn of(supply: Supply, range: Range<u64>) -> Self {
        Self {
            supply,
            range,
            lends: false,
        }
    }

    /// From here on gives what lies in a file as [`Piece::File`].
    pub(super) fn lend_files(&mut self) {
        self.lends = true;
    }

    /// Returns the next bytes, or `None` at the end of the range.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, PullError> {
        let Self {
            supply,
            range,
            lends,
        } = self;
        let piece = match supply {
            Supply::Stored(_) if range.is_empty() => None,
            Supply::Stored(blob) => Some(take(blob.reader(), range.clone(), *lends).await?),
            Supply::Growing(watch, waiter) => next_of_growing(watch, waiter, range, *lends).await?,
            Supply::Past(past) => past.next(range.end.saturating_sub(range.start)).await?,
        };
        if let Some(piece) = &piece {
            range.start += piece.len() as u64;
        }
        Ok(piece)
    }
}

/// An answer of the upstream to one reader.
struct Past {
    body: upstream::BlobBody,
    /// Bytes before the range, from an upstream that ignored where it begins.
    skip: u64,
}

impl Past {
    /// Returns the next bytes, at most `left`, or `None` at the end.
    async fn next(&mut self, left: u64) -> Result<Option<Piece>, PullError> {
        if left == 0 {
            return Ok(None);
        }
        while let Some(mut bytes) = self.body.next_chunk().await? {
            let skipped = self.skip.min(bytes.len() as u64);
            self.skip -= skipped;
            let _ = bytes.split_to(usize::try_from(skipped).expect("at most the chunk"));
            bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            if !bytes.is_empty() {
                return Ok(Some(Piece::Memory(bytes)));
            }
        }
        Ok(None)
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
                let piece = take(&file, range.start..limit, lends).await?;
                transfer.pace(range.start + piece.len() as u64);
                return Ok(Some(piece));
            }
            Step::Bytes(bytes) => {
                transfer.pace(range.start + bytes.len() as u64);
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
