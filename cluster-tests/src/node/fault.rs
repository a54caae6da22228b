//! What can be wrong with a member that otherwise takes part: its answers to other nodes.
//!
//! Only the names; `examples/faulty.rs` is the node that behaves so.

use std::str::FromStr;

use anyhow::{Result, bail};

/// What a node of the fault [`Fault::Panic`] panics with.
pub const PANIC: &str = "this node has the fault of panicking";

/// How a node's answers to other nodes differ from those of a sound one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One bit of each chunk and manifest is flipped.
    Flip,
    /// One chunk is sent of those that were asked for, then nothing more; the node stays alive.
    Stall,
    /// Each answer with chunks is ended before the first one.
    Break,
    /// Each is ended behind the first chunk.
    BreakLate,
    /// Every value of a chain is wrong.
    Chain,
    /// Nothing is told of a chain, nor of its end.
    NoChain,
    /// Chain and chunks are those of other content: only the digest of the whole can tell.
    Content,
    /// A blob is stated to be one chunk longer than it is.
    Longer,
    /// A blob is stated to be one chunk shorter than it is.
    Shorter,
    /// Whoever is to answer what a blob is panics.
    Panic,
}

impl Fault {
    /// All there are.
    pub const ALL: [Self; 10] = [
        Self::Flip,
        Self::Stall,
        Self::Break,
        Self::BreakLate,
        Self::Chain,
        Self::NoChain,
        Self::Content,
        Self::Longer,
        Self::Shorter,
        Self::Panic,
    ];

    /// Returns the word by which the faulty node is told.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::Stall => "stall",
            Self::Break => "break",
            Self::BreakLate => "break-late",
            Self::Chain => "chain",
            Self::NoChain => "no-chain",
            Self::Content => "content",
            Self::Longer => "longer",
            Self::Shorter => "shorter",
            Self::Panic => "panic",
        }
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|fault| fault.name() == text) {
            Some(fault) => Ok(fault),
            None => bail!("no fault is called {text:?}"),
        }
    }
}
