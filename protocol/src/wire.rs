//! The peer protocol: what nodes say to each other over QUIC.
//!
//! `message` has the questions and answers, `bounds` how much each may hold, `frame` their bytes.
//! SPEC.md is the description for whoever writes another implementation. Nothing here does I/O.

pub mod bounds;
pub mod frame;
mod gradual;
pub mod message;
