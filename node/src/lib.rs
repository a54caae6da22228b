//! The Millrace daemon: one node that answers the registry API and goes upstream for what it lacks.
//!
//! The rooms of this crate and who may use whom; `tests/layers.rs` fails on any other arrow:
//!
//! ```text
//! L5  registry   admin                (main and node.rs see everything; nobody uses admin)
//! L4        pull
//! L3  peer   upstream                 (upstream knows neither cluster nor peer)
//! L2  cluster   store                 (they do not know each other)
//! L1  tls  telemetry  task  units     (know no room, but for tls, which uses watch)
//!     watch                           (files that change while the node runs)
//! L0  protocol                        (the crate millrace-protocol; no I/O)
//! ```

pub mod admin;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod node;
pub mod peer;
pub mod pull;
pub mod registry;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod tls;
pub mod units;
pub mod upstream;
pub mod watch;
