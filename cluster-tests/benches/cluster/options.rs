//! The command line, and the sizes that follow from it.

use std::fmt;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::choice::{Choice, name_of};
use crate::part::Part;

/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

/// The content of all blobs follows from this number, the blob's size and its use.
pub(crate) const SEED: u64 = 5;

/// Measures whole clusters and prints one table.
#[derive(Debug, Parser)]
#[command(name = "cluster")]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) choice: Choice<Row>,
    /// How many runs the medians are taken over.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// How many nodes a storm has; its targets are for 16.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(3..=200))]
    nodes: u16,
    /// What a child process is to do.
    #[command(subcommand)]
    pub(crate) part: Option<Part>,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    Storm,
    StormDeaths,
    Sites,
    Join,
    Members,
    Warm,
    Copy,
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&name_of(self))
    }
}

impl Options {
    /// Says what is measured, in a line or two.
    pub(crate) fn describe(&self) -> String {
        format!("{} runs, seed {SEED}{}", self.runs(), self.choice.note())
    }

    /// Returns how many runs a median is taken over.
    pub(crate) fn runs(&self) -> usize {
        self.choice.runs(self.runs)
    }

    /// Returns how many nodes want a blob at once.
    pub(crate) fn storm_nodes(&self) -> usize {
        self.nodes.into()
    }

    /// Returns the size of the blob that everybody wants at once.
    pub(crate) fn storm_bytes(&self) -> u64 {
        if self.choice.quick { 8 * MIB } else { 64 * MIB }
    }

    /// Returns the sizes of the layers that two sites want.
    pub(crate) fn layer_bytes(&self) -> [u64; 4] {
        let sizes = if self.choice.quick {
            [1, 1, 2, 4]
        } else {
            [2, 8, 16, 38]
        };
        sizes.map(|mebibytes| mebibytes * MIB)
    }

    /// Returns how many blobs a cluster holds when another node comes.
    pub(crate) fn held_blobs(&self) -> u64 {
        if self.choice.quick { 50 } else { 1000 }
    }

    /// Returns how many nodes are watched when one of them dies.
    pub(crate) fn members(&self) -> usize {
        if self.choice.quick { 6 } else { 30 }
    }

    /// Returns how long it is measured what being a member costs.
    pub(crate) fn idle_duration(&self) -> Duration {
        Duration::from_secs(if self.choice.quick { 2 } else { 20 })
    }

    /// Returns how long requests are counted.
    pub(crate) fn rate_duration(&self) -> Duration {
        Duration::from_secs(if self.choice.quick { 1 } else { 3 })
    }

    /// Returns the size of the blob that a node has already.
    pub(crate) fn warm_bytes(&self) -> u64 {
        if self.choice.quick {
            8 * MIB
        } else {
            256 * MIB
        }
    }

    /// Returns the size of the blob that one node takes from another.
    pub(crate) fn copy_bytes(&self) -> u64 {
        if self.choice.quick {
            64 * MIB
        } else {
            1024 * MIB
        }
    }
}
