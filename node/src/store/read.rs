//! Reading a file in chunks without blocking the runtime, or sending it without reading it.
//!
//! What the page cache holds is read at once (`RWF_NOWAIT`), or goes from there to a socket
//! (`sendfile`), which saves a copy; what it does not hold is read on the blocking pool while the
//! kernel reads ahead.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{Advice, fadvise, sendfile};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::buffers::{Buffer, Buffers, LARGE_BYTES};
use super::unreadable::{self, Kept};

/// How far the kernel is asked to read ahead after a read that missed the page cache.
const READ_AHEAD_BYTES: u64 = 4 * 1024 * 1024;

/// Most bytes of a [`FileRange`]: one call of `sendfile` may keep a thread of the runtime busy
/// for as long as copying so much takes, some 0.2 ms.
const RANGE_BYTES: u64 = 1024 * 1024;

/// Distance of the bytes by which it is tested whether the page cache has a range. It comes and
/// goes in stretches of read-ahead, which are no shorter than this by default.
const SAMPLE_STEP_BYTES: usize = 128 * 1024;

/// A file that is read by offset; clones share it.
#[derive(Clone, Debug)]
pub struct FileReader {
    file: Arc<File>,
    buffers: Buffers,
    /// What is dropped when the file cannot be read.
    kept: Option<Arc<Kept>>,
}

impl FileReader {
    pub(super) fn new(file: Arc<File>, buffers: Buffers) -> Self {
        Self {
            file,
            buffers,
            kept: None,
        }
    }

    /// The same file, read as stored content: it is dropped when it cannot be read.
    pub(super) fn of_content(self, kept: Kept) -> Self {
        Self {
            kept: Some(Arc::new(kept)),
            ..self
        }
    }

    /// Reads some bytes of `start..end`, beginning at `start`.
    ///
    /// Returns between 1 and [`LARGE_BYTES`] bytes; the range must not be empty.
    ///
    /// # Errors
    /// What the system said, or `UnexpectedEof` when the file ends at or before `start`.
    /// # Cancel safety
    /// Dropping the future loses nothing; a read on the blocking pool ends by itself.
    pub async fn read(&self, start: u64, end: u64) -> io::Result<Bytes> {
        let result = self.try_read(start, end).await;
        if let (Err(error), Some(kept)) = (&result, &self.kept) {
            kept.failed(&self.file, error).await;
        }
        result
    }

    async fn try_read(&self, start: u64, end: u64) -> io::Result<Bytes> {
        let wanted = end.saturating_sub(start).min(LARGE_BYTES as u64);
        let wanted = usize::try_from(wanted).expect("bounded by LARGE_BYTES");
        let mut buffer = self.buffers.take(wanted);
        let slices = &mut [IoSliceMut::new(buffer.space())];
        match preadv2(&self.file, slices, start, ReadWriteFlags::NOWAIT) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(filled) => Ok(buffer.freeze(filled)),
            // Not in the page cache, or a file system that cannot tell.
            Err(Errno::AGAIN | Errno::OPNOTSUPP) => self.read_blocking(buffer, start).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the beginning of `start..end`, at most 1 MiB, without reading it.
    pub fn range(&self, start: u64, end: u64) -> FileRange {
        let length = end.saturating_sub(start).min(RANGE_BYTES);
        FileRange {
            reader: self.clone(),
            start,
            length: usize::try_from(length).expect("bounded by RANGE_BYTES"),
        }
    }

    async fn read_blocking(&self, mut buffer: Buffer, start: u64) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || {
            // Only advice: a file system that refuses it is merely slower.
            let _ = fadvise(
                &file,
                start,
                std::num::NonZeroU64::new(READ_AHEAD_BYTES),
                Advice::WillNeed,
            );
            let filled = file.read_at(buffer.space(), start)?;
            if filled == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(buffer.freeze(filled))
        });
        read.await.map_err(io::Error::other)?
    }
}

/// Bytes of a file that are sent from there, or read when they must be.
#[derive(Clone, Debug)]
pub struct FileRange {
    reader: FileReader,
    start: u64,
    length: usize,
}

impl FileRange {
    /// Returns how many bytes are left.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no byte is left.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether sending the range will not wait for a disk.
    ///
    /// Samples tell, not every page: what went from the page cache in between is read by
    /// `sendfile` itself, a few pages at a time.
    pub fn is_cached(&self) -> bool {
        let last = self.length.saturating_sub(1);
        let mut samples = (0..last).step_by(SAMPLE_STEP_BYTES).chain([last]);
        samples.all(|sample| {
            let byte = &mut [0];
            let slices = &mut [IoSliceMut::new(byte)];
            let position = self.start + sample as u64;
            preadv2(&self.reader.file, slices, position, ReadWriteFlags::NOWAIT) == Ok(1)
        })
    }

    /// Sends at most `limit` bytes from the start of the range to a socket that does not block,
    /// and returns how many it took; the range begins behind them from then on.
    ///
    /// # Errors
    /// What the system said: `WouldBlock` when the socket is full, `InvalidInput` when the file
    /// system cannot send. `UnexpectedEof` when the file ends before the range does.
    pub fn send(&mut self, socket: impl AsFd, limit: usize) -> io::Result<usize> {
        let mut position = self.start;
        let count = limit.min(self.length);
        match sendfile(socket, &self.reader.file, Some(&mut position), count)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            sent => {
                self.advance(sent);
                Ok(sent)
            }
        }
    }

    /// Reads some bytes from the start of the range, as [`FileReader::read`] does; the range
    /// stays as it is.
    ///
    /// # Errors
    /// As [`FileReader::read`].
    /// # Cancel safety
    /// As [`FileReader::read`].
    pub fn read(&self) -> impl Future<Output = io::Result<Bytes>> + Send + 'static {
        let Self {
            reader,
            start,
            length,
        } = self.clone();
        async move { reader.read(start, start + length as u64).await }
    }

    /// Whether [`FileRange::send`] failed for the file's sake, not the socket's. [`FileRange::read`]
    /// then tells which of its bytes are lost, and has a damaged file dropped.
    pub fn is_failure_of_the_file(error: &io::Error) -> bool {
        unreadable::is_damage(error)
    }

    /// Lets the range begin `count` bytes later, at most at its end.
    pub fn advance(&mut self, count: usize) {
        let count = count.min(self.length);
        self.start += count as u64;
        self.length -= count;
    }
}
