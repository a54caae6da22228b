//! The receiving half of a stream: frames, and the bytes behind them.
//!
//! Nothing is copied: content stays in the buffers that packets were decrypted into. What is kept
//! is at most what was asked for, and the few packets that came with its end.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use millrace_protocol::wire::frame::{self, FrameError, HEADER_BYTES, Message};
use quinn::{ConnectionError, ReadError, RecvStream, VarInt};
use tokio::time::timeout;

/// Packets that are taken from the connection at a time; each time costs a lock.
const BATCH: usize = 64;

/// Reads what the other side says; each method may be dropped and called again.
#[derive(Debug)]
pub(super) struct Inbox {
    stream: RecvStream,
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
    /// Length of the message whose header was taken.
    begun: Option<usize>,
    patience: Duration,
}

/// Why nothing can be read.
#[derive(Debug)]
pub(super) enum ReadFailure {
    /// Nothing came for as long as the patience lasts.
    Silent,
    /// The stream ended within a frame or the bytes behind one.
    Truncated,
    /// The other side gave up the stream.
    Reset(VarInt),
    /// The connection ended.
    Lost(ConnectionError),
    /// What came is no frame.
    Frame(FrameError),
}

impl Inbox {
    /// Reads from `stream`; `patience` is how long the other side may say nothing.
    pub(super) fn new(stream: RecvStream, patience: Duration) -> Self {
        Self {
            stream,
            ready: VecDeque::new(),
            ready_bytes: 0,
            begun: None,
            patience,
        }
    }

    /// Reads the next message; `None` at the end of the stream.
    ///
    /// # Cancel safety
    /// Nothing is lost when dropped.
    pub(super) async fn message<M: Message>(&mut self) -> Result<Option<M>, ReadFailure> {
        let length = match self.begun {
            Some(length) => length,
            None => {
                if !self.wait_for(HEADER_BYTES).await? {
                    return match self.ready_bytes {
                        0 => Ok(None),
                        _ => Err(ReadFailure::Truncated),
                    };
                }
                let mut header = [0; HEADER_BYTES];
                self.copy_to(&mut header);
                let length = frame::length::<M>(header).map_err(ReadFailure::Frame)?;
                self.begun = Some(length);
                length
            }
        };
        if !self.wait_for(length).await? {
            return Err(ReadFailure::Truncated);
        }
        self.begun = None;
        let mut message = vec![0; length];
        self.copy_to(&mut message);
        let message = frame::decode(&message).map_err(ReadFailure::Frame)?;
        Ok(Some(message))
    }

    /// Reads exactly so many bytes.
    ///
    /// # Cancel safety
    /// Nothing is lost when dropped.
    pub(super) async fn bytes(&mut self, length: usize) -> Result<Vec<Bytes>, ReadFailure> {
        if !self.wait_for(length).await? {
            return Err(ReadFailure::Truncated);
        }
        let mut pieces = Vec::with_capacity(self.ready.len());
        let mut missing = length;
        while missing > 0
            && let Some(mut piece) = self.ready.pop_front()
        {
            if piece.len() > missing {
                self.ready.push_front(piece.split_off(missing));
            }
            missing -= piece.len();
            pieces.push(piece);
        }
        self.ready_bytes -= length;
        Ok(pieces)
    }

    /// Waits until so many bytes are ready; false when the stream ends before.
    async fn wait_for(&mut self, length: usize) -> Result<bool, ReadFailure> {
        while self.ready_bytes < length {
            let mut batch = [const { Bytes::new() }; BATCH];
            let reading = self.stream.read_chunks(&mut batch);
            let Ok(read) = timeout(self.patience, reading).await else {
                return Err(ReadFailure::Silent);
            };
            let Some(count) = read.map_err(ReadFailure::from)? else {
                return Ok(false);
            };
            for piece in batch.into_iter().take(count) {
                self.ready_bytes += piece.len();
                self.ready.push_back(piece);
            }
        }
        Ok(true)
    }

    /// Takes bytes that are ready.
    fn copy_to(&mut self, target: &mut [u8]) {
        let mut filled = 0;
        while filled < target.len()
            && let Some(piece) = self.ready.front_mut()
        {
            let take = piece.len().min(target.len() - filled);
            piece.copy_to_slice(&mut target[filled..filled + take]);
            filled += take;
            if piece.is_empty() {
                self.ready.pop_front();
            }
        }
        self.ready_bytes -= filled;
    }

    /// Tells the other side to stop, for this reason.
    pub(super) fn stop(&mut self, code: VarInt) {
        // It has stopped already, or the connection ended: both are what is wanted.
        let _ = self.stream.stop(code);
    }
}

impl From<ReadError> for ReadFailure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code),
            ReadError::ConnectionLost(error) => Self::Lost(error),
            // Early data is never sent, reads are ordered, and a stream that was stopped here is
            // not read again.
            ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Lost(ConnectionError::LocallyClosed),
        }
    }
}
