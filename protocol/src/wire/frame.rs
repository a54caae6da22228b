//! Frames: how a question or an answer stands on a stream.
//!
//! A frame is the version byte, the length of the message as four bytes, most significant first,
//! and the message in bincode's standard encoding. Bytes of chunks and manifests follow their
//! frame as they are. This file reads no stream: whoever does takes [`HEADER_BYTES`], asks
//! [`length`] how much belongs to them, and gives that to [`decode`].
//!
//! Whatever the bytes are, nothing here panics, and what is allocated stays within
//! [`DECODE_LIMIT_BYTES`] however long the frame says it is. Source: SPEC.md "Frames".

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bounds::BrokenBound;
use super::message::{Answer, Question};

/// The version of the peer protocol that this build speaks; the first byte of each frame.
pub const VERSION: u8 = 2;

/// Bytes before a message: the version and the message's length.
pub const HEADER_BYTES: usize = 1 + 4;

/// Longest question: 1024 digests of sha512 as text, which is more than 16 origins take.
pub const MAX_QUESTION_BYTES: usize = 160 * 1024;

/// Longest answer: 1024 values of sha512, nine bytes for each of their eight words.
pub const MAX_ANSWER_BYTES: usize = 96 * 1024;

/// What decoding one message may take in memory; small numbers take more there than on the wire.
pub const DECODE_LIMIT_BYTES: usize = 256 * 1024;

/// A message that can stand in a frame: [`Question`] or [`Answer`].
pub trait Message: Serialize + DeserializeOwned + fmt::Debug {
    /// Longest encoding.
    const MAX_BYTES: usize;

    /// Checks what the message holds.
    ///
    /// # Errors
    /// [`BrokenBound`] names the first bound that does not hold.
    fn check(&self) -> Result<(), BrokenBound>;
}

impl Message for Question {
    const MAX_BYTES: usize = MAX_QUESTION_BYTES;

    fn check(&self) -> Result<(), BrokenBound> {
        self.check_bounds()
    }
}

impl Message for Answer {
    const MAX_BYTES: usize = MAX_ANSWER_BYTES;

    fn check(&self) -> Result<(), BrokenBound> {
        self.check_bounds()
    }
}

/// Returns the whole frame of a message.
///
/// # Errors
/// [`FrameError::Bound`] when the message is more than the other side would accept.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, FrameError> {
    message.check().map_err(FrameError::Bound)?;
    let mut frame = vec![VERSION, 0, 0, 0, 0];
    let written = bincode::serde::encode_into_std_write(message, &mut frame, bincode_config())
        .map_err(|_| FrameError::Unencodable)?;
    let length = u32::try_from(written)
        .ok()
        .filter(|_| written <= M::MAX_BYTES)
        .ok_or(FrameError::TooLong {
            length: written,
            longest: M::MAX_BYTES,
        })?;
    frame[1..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// Returns how many bytes of message follow a header.
///
/// # Errors
/// [`FrameError::Version`] for another version's frame, [`FrameError::TooLong`] for a message
/// that nobody would send; the stream is of no further use.
pub fn length<M: Message>(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let [version, length @ ..] = header;
    if version != VERSION {
        return Err(FrameError::Version { theirs: version });
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > M::MAX_BYTES {
        return Err(FrameError::TooLong {
            length,
            longest: M::MAX_BYTES,
        });
    }
    Ok(length)
}

/// Returns the message that these bytes are, all of them.
///
/// # Errors
/// [`FrameError::Malformed`] for bytes that are no message or more than one,
/// [`FrameError::Bound`] for a message that holds more than it may.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, FrameError> {
    if bytes.len() > M::MAX_BYTES {
        return Err(FrameError::TooLong {
            length: bytes.len(),
            longest: M::MAX_BYTES,
        });
    }
    let (message, read): (M, usize) =
        bincode::serde::borrow_decode_from_slice(bytes, bincode_config())
            .map_err(|error| FrameError::Malformed(Box::new(error)))?;
    if read != bytes.len() {
        return Err(FrameError::Trailing {
            bytes: bytes.len() - read,
        });
    }
    message.check().map_err(FrameError::Bound)?;
    Ok(message)
}

/// Little-endian, numbers of variable length, and a bound on what decoding takes.
fn bincode_config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<DECODE_LIMIT_BYTES>()
}

/// Why bytes are not a frame, or a message cannot become one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The other side speaks another version of the protocol.
    #[error("peer speaks version {theirs} of the peer protocol, this node speaks {VERSION}")]
    Version {
        /// What the first byte of the frame says.
        theirs: u8,
    },
    /// A message of this kind is never so long.
    #[error("message of {length} bytes is longer than {longest}")]
    TooLong {
        /// What the header says, or what the message takes.
        length: usize,
        /// What is allowed.
        longest: usize,
    },
    /// The bytes are not a message of this kind.
    #[error("bytes are not a message")]
    Malformed(#[source] Box<bincode::error::DecodeError>),
    /// Something follows the message.
    #[error("{bytes} bytes follow the message")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// The message holds more than it may.
    #[error("message breaks a bound")]
    Bound(#[source] BrokenBound),
    /// The message has no encoding; no message of this protocol is like that.
    #[error("message cannot be encoded")]
    Unencodable,
}
