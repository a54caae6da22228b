//! The sending half of a stream: frames, and the bytes behind them.

use std::time::Duration;

use bytes::Bytes;
use millrace_protocol::wire::frame::{self, Message};
use quinn::{SendStream, VarInt, WriteError};
use tokio::time::timeout;

/// Why a stream is given up, as SPEC.md "Codes" has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// The question is no longer of interest, or the answer cannot be completed.
    Cancelled = 0,
    /// The bytes are not a question.
    Malformed = 1,
    /// They are of another version of the protocol.
    Version = 2,
    /// The question did not come in time.
    Late = 3,
    /// Nothing was taken in for too long.
    Stalled = 4,
    /// The work on the answer does not get on, and waits for nobody else.
    Stuck = 5,
}

impl Code {
    pub(super) fn number(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// Says things on a stream; what is said is sent in order.
#[derive(Debug)]
pub(super) struct Outbox {
    stream: SendStream,
    stall: Duration,
}

/// Why nothing more can be said.
#[derive(Debug)]
pub(super) enum WriteFailure {
    /// The other side has gone, or does not want to hear more.
    Gone,
    /// It takes in nothing.
    Stalled,
    /// The message breaks a bound of the protocol: a mistake of whoever made it.
    Unsayable(frame::FrameError),
}

impl Outbox {
    /// Writes to `stream`; `stall` is how long the other side may take in nothing.
    pub(super) fn new(stream: SendStream, stall: Duration) -> Self {
        Self { stream, stall }
    }

    /// Says one message with bytes behind it, without copying them.
    ///
    /// # Cancel safety
    /// A part may have been sent when dropped: the stream is then of no further use.
    pub(super) async fn say_with<M: Message>(
        &mut self,
        message: &M,
        bytes: Vec<Bytes>,
    ) -> Result<(), WriteFailure> {
        // No message carries a secret; the tests search these lines for what one might.
        tracing::trace!(?message, "said");
        let frame = frame::encode(message).map_err(WriteFailure::Unsayable)?;
        self.write(frame, bytes).await
    }

    /// Writes a message that is encoded, and bytes behind it.
    ///
    /// # Cancel safety
    /// As [`Outbox::say_with`].
    pub(super) async fn write(
        &mut self,
        frame: Vec<u8>,
        bytes: Vec<Bytes>,
    ) -> Result<(), WriteFailure> {
        let mut pieces = Vec::with_capacity(1 + bytes.len());
        pieces.push(Bytes::from(frame));
        pieces.extend(bytes);
        let mut rest = &mut pieces[..];
        while !rest.is_empty() {
            let Ok(written) = timeout(self.stall, self.stream.write_chunks(rest)).await else {
                return Err(WriteFailure::Stalled);
            };
            rest = &mut rest[written?.chunks..];
        }
        Ok(())
    }

    /// Says that this was all.
    pub(super) fn finish(&mut self) {
        // The other side has stopped listening: it knows.
        let _ = self.stream.finish();
    }

    /// Waits, behind [`Outbox::finish`], until the other side has everything, is gone, or does not want
    /// to hear more: then nothing more of what was said is sent. Who drops a stream that was finished
    /// leaves all of it to be sent, megabytes that nobody reads where a line is slow.
    pub(super) async fn heard(&mut self) {
        if let Ok(Some(code)) = self.stream.stopped().await {
            // Everything was heard meanwhile.
            let _ = self.stream.reset(code);
        }
    }

    /// Gives up the stream for this reason.
    pub(super) fn reset(&mut self, code: Code) {
        // Likewise.
        let _ = self.stream.reset(code.number());
    }

    /// Sends this stream before others of its connection.
    pub(super) fn hurry(&self) {
        // The stream has ended: nothing left to send.
        let _ = self.stream.set_priority(1);
    }

    /// Resolves when the other side does not want to hear more, or has gone.
    pub(super) fn unheard(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.stream.stopped();
        async move {
            // The code does not matter, nor whether it was the stream or the connection.
            let _ = stopped.await;
        }
    }
}

impl From<WriteError> for WriteFailure {
    fn from(_: WriteError) -> Self {
        Self::Gone
    }
}
