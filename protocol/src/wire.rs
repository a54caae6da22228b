//! The peer protocol: what nodes say to each other over QUIC.
//!
//! `message` has the questions and answers, `frame` their bytes and bounds. SPEC.md is the
//! description for whoever writes another implementation. Nothing here does I/O.

pub mod message;
