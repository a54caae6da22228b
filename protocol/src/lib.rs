//! What registry clients and Millrace nodes say to each other, and the decisions that need no I/O.
//!
//! This crate is layer 0: it opens no socket and no file, reads no clock and draws no randomness.
//! Time and random numbers are arguments.
//!
//! ```text
//! L5  registry   admin                (main and node.rs see everything; nobody uses admin)
//! L4        pull
//! L3  peer   upstream                 (upstream knows neither cluster nor peer)
//! L2  cluster   store                 (they do not know each other)
//! L1  tls  telemetry  task  units     (know no room)
//! L0  protocol                        (this crate; no I/O)
//! ```
#![warn(missing_docs)]

pub mod access;
pub mod byte_range;
pub mod chunk;
pub mod membership;
pub mod node_id;
pub mod oci;
pub mod placement;
pub mod transfer;
pub mod wire;
