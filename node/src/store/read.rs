//! Reading a file in chunks without blocking the runtime.
//!
//! What the page cache holds is read at once (`RWF_NOWAIT`), which costs about as much as
//! sendfile; what it does not hold is read on the blocking pool while the kernel reads ahead.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::buffers::{Buffer, Buffers, LARGE_BYTES};

/// How far the kernel is asked to read ahead after a read that missed the page cache.
const READ_AHEAD_BYTES: u64 = 4 * 1024 * 1024;

/// A file that is read by offset; clones share it.
#[derive(Clone, Debug)]
pub struct FileReader {
    file: Arc<File>,
    buffers: Buffers,
}

impl FileReader {
    pub(super) fn new(file: Arc<File>, buffers: Buffers) -> Self {
        Self { file, buffers }
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
