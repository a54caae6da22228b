//! Files that go from the page cache to a client's socket, past the HTTP library.
//!
//! The library knows bytes in memory only. So the body of an answer gives it a *placeholder* as
//! long as the range of a file, in its place among the other bytes; the library hands that to the
//! connection's stream, which knows it by its address and sends the file instead (`sendfile`).
//! Everything that the library does with lengths, order and partial writes holds for files too.
//!
//! What the placeholder contains never leaves the node. The library may pass a placeholder only as
//! far as its file was sent: if it copied one, or let go of one before its end, the outlet is
//! *broken*, and the connection ends before another byte is written. Only a body that
//! was given the outlet of its own connection makes placeholders, and only a plain TCP stream has
//! one.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;

use crate::store::FileRange;

/// Longest stretch of a placeholder that the HTTP library sees at a time, in bytes: the longest
/// that goes out in one call. Nothing reads these zeros, so they take no memory.
const PLACEHOLDER_BYTES: usize = 1024 * 1024;

/// Where placeholders lie.
static PLACEHOLDER: [u8; PLACEHOLDER_BYTES] = [0; PLACEHOLDER_BYTES];

/// Where the files of one connection's answers go out; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Outlet {
    ledger: Arc<Mutex<Ledger>>,
}

/// Sends some bytes from the start of a range, at most so many, and takes them off it.
type SendRange = Box<dyn FnMut(&mut FileRange, &TcpStream, usize) -> io::Result<usize> + Send>;

/// What is on its way through an outlet.
struct Ledger {
    /// What belongs in the place of placeholders, in their order. The HTTP library holds few at a
    /// time: it asks for no more while it has as many bytes as its buffer may have.
    ranges: VecDeque<FileRange>,
    /// Bytes of a file that were sent and that the HTTP library has not passed yet, which it does
    /// before it writes on.
    sent: usize,
    /// A read of what the page cache lacks, or what the file system cannot send.
    reading: Option<Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>>,
    /// What was read so and not sent yet.
    read: Bytes,
    /// How files are sent; otherwise only where a test has a disk fail.
    send: SendRange,
    /// Whether the file system refused to send.
    only_reads: bool,
    /// Whether a placeholder did not go the way of its file.
    is_broken: bool,
}

/// Bytes of an answer, as the HTTP library gets them.
#[derive(Debug)]
pub struct Outgoing(Content);

#[derive(Debug)]
enum Content {
    Memory(Bytes),
    File(Placeholder),
}

/// The place of a range of a file.
#[derive(Debug)]
struct Placeholder {
    outlet: Outlet,
    /// Bytes that the HTTP library has not passed.
    remaining: usize,
}

impl Outlet {
    /// Makes a place for the range; places must be sent in the order in which they were made.
    pub(super) fn place(&self, range: FileRange) -> Outgoing {
        let placeholder = Placeholder {
            outlet: self.clone(),
            remaining: range.len(),
        };
        self.ledger.lock().ranges.push_back(range);
        Outgoing(Content::File(placeholder))
    }

    /// Writes some of these bytes, in their order, with files in the place of placeholders.
    ///
    /// Returns how many were written. Not to be used with another stream than the connection's.
    ///
    /// # Errors
    /// The client is gone, a file cannot be read, or the outlet is broken.
    pub(super) fn poll_write(
        &self,
        stream: &mut TcpStream,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut ledger = self.ledger.lock();
        if ledger.is_broken || ledger.sent > 0 {
            return Poll::Ready(Err(lost()));
        }
        let place = slices.iter().position(|slice| is_placeholder(slice));
        let (before, place) = slices.split_at(place.unwrap_or(slices.len()));
        match place.first() {
            Some(place) if before.iter().all(|slice| slice.is_empty()) => {
                ledger.poll_send(stream, context, place.len())
            }
            _ => Pin::new(stream).poll_write_vectored(context, before),
        }
    }
}

/// Whether these bytes stand for those of a file.
fn is_placeholder(slice: &[u8]) -> bool {
    !slice.is_empty() && PLACEHOLDER.as_ptr_range().contains(&slice.as_ptr())
}

impl Ledger {
    /// Sends at most `limit` bytes of the file that comes next.
    fn poll_send(
        &mut self,
        stream: &mut TcpStream,
        context: &mut Context<'_>,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        let sent = loop {
            let Some(range) = self.ranges.front_mut() else {
                return Poll::Ready(Err(lost()));
            };
            if !self.read.is_empty() {
                let bytes = &self.read[..limit.min(self.read.len())];
                let sent = ready!(Pin::new(stream).poll_write(context, bytes))?;
                self.read.advance(sent);
                range.advance(sent);
                break sent;
            }
            if let Some(reading) = &mut self.reading {
                let read = ready!(reading.as_mut().poll(context));
                self.reading = None;
                self.read = read.inspect_err(log_unreadable)?;
                continue;
            }
            ready!(stream.poll_write_ready(context))?;
            if self.only_reads || !range.is_cached() {
                self.reading = Some(Box::pin(range.read()));
                continue;
            }
            match stream.try_io(Interest::WRITABLE, || (self.send)(range, &*stream, limit)) {
                Ok(sent) => break sent,
                // Reading it finds what still can be read, and drops the file for what cannot.
                Err(error) if FileRange::is_failure_of_the_file(&error) => {
                    self.reading = Some(Box::pin(range.read()));
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => {
                        self.only_reads = true;
                    }
                    _ => return Poll::Ready(Err(error)),
                },
            }
        };
        self.sent += sent;
        if self.ranges.front().is_some_and(FileRange::is_empty) {
            self.ranges.pop_front();
        }
        Poll::Ready(Ok(sent))
    }
}

fn lost() -> io::Error {
    io::Error::other("a place for a file was lost")
}

fn log_unreadable(error: &io::Error) {
    let error = error as &dyn std::error::Error;
    tracing::error!(error, "a file cannot be read: the answer is cut short");
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            ranges: VecDeque::new(),
            sent: 0,
            reading: None,
            read: Bytes::new(),
            send: Box::new(|range, stream, limit| range.send(stream, limit)),
            only_reads: false,
            is_broken: false,
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("ranges", &self.ranges)
            .field("sent", &self.sent)
            .field("is_broken", &self.is_broken)
            .finish_non_exhaustive()
    }
}

impl From<Bytes> for Outgoing {
    fn from(bytes: Bytes) -> Self {
        Self(Content::Memory(bytes))
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        match &self.0 {
            Content::Memory(bytes) => bytes.remaining(),
            Content::File(placeholder) => placeholder.remaining,
        }
    }

    fn chunk(&self) -> &[u8] {
        match &self.0 {
            Content::Memory(bytes) => bytes.chunk(),
            Content::File(placeholder) => {
                &PLACEHOLDER[..placeholder.remaining.min(PLACEHOLDER_BYTES)]
            }
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.0 {
            Content::Memory(bytes) => bytes.advance(count),
            Content::File(placeholder) => placeholder.advance(count),
        }
    }
}

impl Placeholder {
    /// Passes bytes, which the outlet must have sent.
    fn advance(&mut self, count: usize) {
        self.remaining = self
            .remaining
            .checked_sub(count)
            .expect("a buffer is not advanced beyond its end");
        let mut ledger = self.outlet.ledger.lock();
        match ledger.sent.checked_sub(count) {
            Some(sent) => ledger.sent = sent,
            None => ledger.is_broken = true,
        }
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        if self.remaining > 0 {
            self.outlet.ledger.lock().is_broken = true;
        }
    }
}

#[cfg(test)]
mod tests;
