//! What the fuzz target does with its input; `tests/frame.rs` does the same with bytes of its own.

use std::fmt;

use millrace_protocol::wire::frame::{self, FrameError, HEADER_BYTES, Message};
use millrace_protocol::wire::message::{Answer, Question};

/// Reads a stream of hostile bytes as both kinds of message, the way that a node does.
///
/// # Panics
/// When something is accepted that does not come out of `encode` as it went in.
pub(crate) fn read_frames(bytes: &[u8]) {
    read_as::<Question>(bytes);
    read_as::<Answer>(bytes);
}

/// Reads frames up to the first that is not one.
fn read_as<M: Message + PartialEq + fmt::Debug>(mut bytes: &[u8]) {
    while let Ok(Some((message, rest))) = read_one::<M>(bytes) {
        let again = frame::encode(&message).expect("what was accepted can be sent");
        let (same, _) = read_one::<M>(&again)
            .expect("what was sent is accepted")
            .expect("and is whole");
        assert_eq!(same, message);
        bytes = rest;
    }
}

/// Reads one frame; `None` when the bytes end before it does.
pub(crate) fn read_one<M: Message>(bytes: &[u8]) -> Result<Option<(M, &[u8])>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = frame::length::<M>(*header)?;
    let Some((message, rest)) = rest.split_at_checked(length) else {
        return Ok(None);
    };
    Ok(Some((frame::decode(message)?, rest)))
}
