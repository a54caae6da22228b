//! A blob that is not complete: written at any offset, read while it grows, then committed.
//!
//! A part knows nothing of where bytes come from, nor which of them are right; the pull room
//! verifies the digest and then calls [`Part::commit`]. One digest has at most one part at a
//! time; the in-flight table of the pull room sees to that.

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use millrace_protocol::oci::Digest;
use rangemap::RangeSet;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::error::{FileContext, StoreError};
use super::eviction::Pin;
use super::layout;
use super::read::FileReader;
use super::reservation::Reservation;
use super::sidecar::Sidecar;
use super::suspended::length;
use super::{Inner, blocking};

/// Most pieces that the system takes in one call (`IOV_MAX`).
const MAX_PIECES: usize = 1024;

/// Gives what a range takes back to the file system.
const FREE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// A growing blob. Dropping it without [`Part::commit`] or [`Part::suspend`] removes it, which
/// blocks; [`Part::discard`] does not.
#[derive(Debug)]
pub struct Part {
    inner: Arc<Inner>,
    digest: Digest,
    writer: PartWriter,
    saved: RangeSet<u64>,
    /// Size that the whole is said to have; 0 while nothing is said.
    expected: u64,
    /// Where the next bytes belong.
    position: u64,
    /// Bytes that are counted.
    reserved: u64,
    /// Bytes beyond these for which others could make way when they come.
    promised: u64,
    /// Bytes of the reserved ones that the file system has allocated.
    allocated: u64,
    /// What it allocated last.
    ahead: Range<u64>,
    /// Whether the file still has to be removed when this value goes.
    owned: bool,
}

impl Part {
    /// Opens the part of a digest, which is resumable; blocks.
    pub(super) fn open(inner: &Arc<Inner>, digest: &Digest) -> Result<Self, StoreError> {
        let saved = inner.take_suspended(digest);
        let here = length(&saved);
        let part = Self::create(inner, digest, inner.layout.part(digest), saved);
        part.inspect_err(|_| inner.space.shrink(here))
    }

    /// Opens a part that nobody else can have open, for content that is whole in memory; blocks.
    pub(super) fn scratch(inner: &Arc<Inner>, digest: &Digest) -> Result<Self, StoreError> {
        let number = inner.scratches.fetch_add(1, Ordering::Relaxed);
        Self::create(inner, digest, inner.layout.scratch(number), RangeSet::new())
    }

    fn create(
        inner: &Arc<Inner>,
        digest: &Digest,
        path: PathBuf,
        saved: RangeSet<u64>,
    ) -> Result<Self, StoreError> {
        if path.is_dir() {
            layout::remove(&path)?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(saved.is_empty())
            .open(&path)
            .doing("create", &path)?;
        // What was saved is counted, and lies on the disk.
        let here = length(&saved);
        Ok(Self {
            inner: Arc::clone(inner),
            digest: *digest,
            writer: PartWriter {
                file: Arc::new(file),
                path: path.into(),
            },
            saved,
            expected: 0,
            position: 0,
            reserved: here,
            promised: 0,
            allocated: here,
            ahead: 0..0,
            owned: true,
        })
    }

    /// Returns the ranges that an earlier, suspended fill left on disk; usually none.
    ///
    /// They are unverified like any other bytes of a part.
    pub fn saved(&self) -> &RangeSet<u64> {
        &self.saved
    }

    /// Returns a handle for writing from blocking code.
    pub fn writer(&self) -> PartWriter {
        self.writer.clone()
    }

    /// Returns a handle for reading while the part grows, and after it was committed.
    pub fn reader(&self) -> FileReader {
        FileReader::new(Arc::clone(&self.writer.file), self.inner.buffers.clone())
    }

    /// Returns how many bytes are reserved.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Says what the whole is said to have, in bytes (0: nothing is said), and where the next bytes
    /// belong. The next reservation fails if so much cannot be had; nothing is evicted for it.
    pub fn expect(&mut self, size: u64, position: u64) {
        self.expected = size;
        self.position = position;
    }

    /// Makes sure that `total` bytes fit, by evicting what was not used for longest.
    ///
    /// May be called again with a larger total. The first call only counts, and the file system
    /// allocates in the next one: that can wait for a journal, and the first bytes of a blob
    /// should not.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] and [`StoreError::NoSpace`]; the part keeps what it had.
    /// # Cancel safety
    /// If the future is dropped, the part keeps the bytes that it had, but nothing stays promised to
    /// it. What comes of the reservation is given back.
    pub async fn reserve(&mut self, total: u64) -> Result<(), StoreError> {
        let is_first = self.reserved == length(&self.saved);
        let more = total.saturating_sub(self.reserved);
        if more > 0 {
            self.grow(more).await?;
        }
        if is_first || self.allocated == self.reserved {
            return Ok(());
        }
        self.allocate().await
    }

    /// Reserves `more` bytes, once it is known that what is expected beyond them could be had.
    async fn grow(&mut self, more: u64) -> Result<(), StoreError> {
        let total = self.reserved + more;
        let size = self.expected.max(total);
        let new = match size == total {
            true => 0,
            false => size.saturating_sub(self.reserved + self.promised),
        };
        let promised = std::mem::take(&mut self.promised);
        let mut reservation = Reservation::new(&self.inner, promised);
        let (reservation, made) = blocking(move || {
            let made = reservation.grow(size, new, more);
            Ok((reservation, made))
        })
        .await?;
        let (bytes, promised) = reservation.take_over();
        self.reserved += bytes;
        self.promised = promised;
        made
    }

    /// Has the file system allocate what was reserved since the last time, where bytes come next.
    async fn allocate(&mut self) -> Result<(), StoreError> {
        let more = self.reserved - self.allocated;
        if !self.ahead.contains(&self.position) {
            self.ahead = self.position..self.position;
        }
        let from = self.ahead.end;
        let most = if self.expected > 0 {
            self.expected.saturating_sub(from)
        } else {
            u64::MAX
        };
        let length = more.min(most);
        let file = Arc::clone(&self.writer.file);
        if length > 0 {
            blocking(
                move || match fallocate(&file, FallocateFlags::KEEP_SIZE, from, length) {
                    Err(Errno::NOSPC | Errno::DQUOT) => Err(StoreError::NoSpace {
                        needed_bytes: length,
                    }),
                    // Elsewhere a file system that cannot allocate ahead: the write will tell.
                    _ => Ok(()),
                },
            )
            .await?;
        }
        self.ahead.end += length;
        self.inner.space.allocated(more);
        self.allocated = self.reserved;
        Ok(())
    }

    /// Makes the verified content visible under its digest, durably.
    ///
    /// `size` is what was verified, in bytes; what lies behind it is cut off. When this returns,
    /// content and sidecar survive a power failure. While the result lives the blob is not evicted, so
    /// that who still reads the part holds it.
    ///
    /// # Errors
    /// A file operation that failed; the part is removed then.
    /// # Cancel safety
    /// The commit goes on if the future is dropped.
    pub async fn commit(self, size: u64, sidecar: Sidecar) -> Result<Pin, StoreError> {
        blocking(move || self.commit_blocking(size, &sidecar)).await
    }

    fn commit_blocking(mut self, size: u64, sidecar: &Sidecar) -> Result<Pin, StoreError> {
        let PartWriter { file, path } = &self.writer;
        file.set_len(size).doing("truncate", path)?;
        rustix::fs::fdatasync(file).doing("flush", path)?;
        let pin = self.inner.publish(&self.digest, path, size, sidecar)?;
        self.owned = false;
        Ok(pin)
    }

    /// Removes the part without blocking the runtime.
    ///
    /// # Cancel safety
    /// The removal goes on if the future is dropped.
    pub async fn discard(self) {
        // Dropping it is the removal; a failure is logged there.
        let dropped = blocking(move || {
            drop(self);
            Ok::<(), StoreError>(())
        });
        let _ = dropped.await;
    }

    /// Keeps the part on disk, so that a later fill continues it; what was allocated beyond
    /// `written` is given back. Nothing else may be writing it any more.
    ///
    /// # Errors
    /// A file operation that failed; the part is removed then.
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn suspend(self, written: RangeSet<u64>) -> Result<(), StoreError> {
        blocking(move || self.suspend_blocking(&written)).await
    }

    fn suspend_blocking(mut self, written: &RangeSet<u64>) -> Result<(), StoreError> {
        let PartWriter { file, path } = &self.writer;
        let end = written.iter().next_back().map_or(0, |range| range.end);
        // Also where it is no longer than that: what was allocated behind the end goes with it.
        file.set_len(end).doing("truncate", path)?;
        for gap in written.gaps(&(0..end)) {
            let (start, length) = (gap.start, gap.end - gap.start);
            // A file system that cannot give it back keeps it, and it is counted then.
            let _ = fallocate(file, FREE, start, length);
        }
        rustix::fs::fdatasync(file).doing("flush", path)?;
        let metadata = file.metadata().doing("examine", path)?;
        self.inner.put_suspended(&self.digest, written, &metadata)?;
        self.owned = false;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.inner.space.allocated(self.reserved - self.allocated);
        self.inner.space.shrink(self.reserved);
        self.inner.space.unpromise(self.promised);
        if self.owned
            && let Err(error) = layout::remove(&self.writer.path)
        {
            tracing::warn!(%error, "an unfinished part stays on disk until the next start");
        }
    }
}

/// Writes a part from blocking code; clones write the same file.
#[derive(Clone, Debug)]
pub struct PartWriter {
    file: Arc<File>,
    path: Arc<Path>,
}

impl PartWriter {
    /// Writes `chunks` one behind the other, beginning at `offset`; blocks.
    ///
    /// # Errors
    /// What the system said; some of the bytes may have been written.
    pub fn write(&self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        write_all_at(&self.file, offset, chunks).doing("write", &self.path)
    }

    /// Fills `buffer` with what was written at `offset`; blocks.
    ///
    /// # Errors
    /// What the system said, or that the range was not written.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.file
            .read_exact_at(buffer, offset)
            .doing("read", &self.path)
    }
}

/// Writes pieces one behind the other with few calls: what peers send comes in pieces of a packet.
fn write_all_at(file: &File, mut offset: u64, pieces: &[Bytes]) -> io::Result<()> {
    for pieces in pieces.chunks(MAX_PIECES) {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = &mut slices[..];
        // Also leaves out pieces without a byte, of which nothing would be written.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match rustix::io::pwritev(file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    IoSlice::advance_slices(&mut rest, written);
                    offset += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
