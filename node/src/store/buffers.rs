//! The one pool of read buffers, so that memory does not grow with the number of clients.
//!
//! A few streams get large buffers, which cost least per byte; when those are taken, because
//! many clients read slowly, further streams get small ones. Nobody ever waits for a buffer, so
//! a slow client cannot hold up a fast one.

use std::fmt;
use std::ops::DerefMut;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Size of a large buffer in bytes: one read of this size costs as little CPU per byte as
/// sendfile does.
pub const LARGE_BYTES: usize = 256 * 1024;

/// Size of a small buffer in bytes.
pub const SMALL_BYTES: usize = 32 * 1024;

/// Most large buffers in use at once: 32 MiB, which is what may be under way to one peer.
const MAX_LARGE: usize = 128;

/// Most large buffers that are kept for reuse while none is in use: 8 MiB. While some are, all are
/// kept: to give memory back and to get it anew costs more than to fill it.
const MAX_IDLE: usize = 32;

/// A shared pool of buffers; clones share it.
#[derive(Clone, Default)]
pub struct Buffers {
    pool: Arc<Mutex<Pool>>,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Box<[u8]>>,
    lent: usize,
}

impl Buffers {
    /// Takes a buffer for up to `wanted` bytes.
    ///
    /// It is zeroed or holds old content, and its length is `wanted` or less.
    pub fn take(&self, wanted: usize) -> Buffer {
        let memory = if wanted > SMALL_BYTES {
            self.take_large()
        } else {
            None
        };
        let pool = memory.is_some().then(|| Arc::clone(&self.pool));
        let memory = memory.unwrap_or_else(|| vec![0; wanted.min(SMALL_BYTES)].into_boxed_slice());
        let length = memory.len().min(wanted);
        Buffer {
            memory,
            length,
            pool,
        }
    }

    fn take_large(&self) -> Option<Box<[u8]>> {
        let mut pool = self.pool.lock();
        if pool.lent == MAX_LARGE {
            return None;
        }
        pool.lent += 1;
        let idle = pool.idle.pop();
        drop(pool);
        Some(idle.unwrap_or_else(|| vec![0; LARGE_BYTES].into_boxed_slice()))
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool = self.pool.lock();
        f.debug_struct("Buffers")
            .field("lent", &pool.lent)
            .field("idle", &pool.idle.len())
            .finish()
    }
}

/// A buffer that returns to its pool when the last [`Bytes`] made of it is dropped.
pub struct Buffer {
    memory: Box<[u8]>,
    length: usize,
    pool: Option<Arc<Mutex<Pool>>>,
}

impl Buffer {
    /// Returns the place to read into.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.memory.deref_mut()[..self.length]
    }

    /// Turns the first `filled` bytes into shared, immutable bytes.
    pub fn freeze(mut self, filled: usize) -> Bytes {
        self.length = self.length.min(filled);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("length", &self.length)
            .finish()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(pool) = &self.pool else { return };
        let memory = std::mem::take(&mut self.memory);
        let mut pool = pool.lock();
        pool.lent -= 1;
        pool.idle.push(memory);
        if pool.lent == 0 && pool.idle.len() > MAX_IDLE {
            let surplus = pool.idle.split_off(MAX_IDLE);
            drop(pool);
            drop(surplus);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_return_when_their_last_bytes_go() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(LARGE_BYTES);
        buffer.space()[..3].copy_from_slice(b"abc");
        let bytes = buffer.freeze(3);
        let slice = bytes.slice(1..);
        drop(bytes);
        assert_eq!(buffers.pool.lock().lent, 1);
        assert_eq!(slice, "bc");
        drop(slice);
        let pool = buffers.pool.lock();
        assert_eq!((pool.lent, pool.idle.len()), (0, 1));
    }

    #[test]
    fn when_large_buffers_are_out_small_ones_serve() {
        let buffers = Buffers::default();
        let held: Vec<Buffer> = (0..MAX_LARGE).map(|_| buffers.take(LARGE_BYTES)).collect();
        let mut next = buffers.take(LARGE_BYTES);
        assert_eq!(next.space().len(), SMALL_BYTES);
        drop(held);
        assert_eq!(buffers.take(LARGE_BYTES).space().len(), LARGE_BYTES);
    }

    #[test]
    fn all_large_buffers_are_kept_while_one_is_out_and_few_when_none_is() {
        let buffers = Buffers::default();
        let mut held: Vec<Buffer> = (0..MAX_LARGE).map(|_| buffers.take(LARGE_BYTES)).collect();
        held.truncate(1);
        assert_eq!(buffers.pool.lock().idle.len(), MAX_LARGE - 1);
        drop(held);
        assert_eq!(buffers.pool.lock().idle.len(), MAX_IDLE);
    }

    #[test]
    fn short_reads_take_no_large_buffer() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(100);
        assert_eq!(buffer.space().len(), 100);
        assert_eq!(buffers.pool.lock().lent, 0);
    }
}
