//! The command line, and the sizes that follow from it.

use std::fmt;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::choice::{Choice, name_of};

/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

/// The content of all blobs follows from this number, the blob's size and its use.
pub(crate) const SEED: u64 = 2;

/// Measures one node against its rivals and prints one table.
#[derive(Debug, Parser)]
#[command(name = "pull")]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) choice: Choice<Row>,
    /// How many interleaved runs the medians are taken over.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// What is measured.
    #[arg(long, value_enum, default_value_t = SubjectKind::Millrace)]
    pub(crate) subject: SubjectKind,
}

/// What stands in the place of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SubjectKind {
    /// The daemon as it was built.
    Millrace,
    /// The Docker registry in proxy mode: shows where the targets are from, and that the benchmark
    /// works without us.
    DockerRegistry,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    #[value(name = "warm-blob-1")]
    WarmBlob1,
    #[value(name = "warm-blob-32")]
    WarmBlob32,
    ManifestTag,
    ManifestDigest,
    ColdBlob,
    ColdBlobLink,
    Stampede,
    MemoryIdle,
    MemoryWarm,
    MemoryCold,
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&name_of(self))
    }
}

impl fmt::Display for SubjectKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&name_of(self))
    }
}

impl Options {
    /// Returns how many runs a median is taken over.
    pub(crate) fn runs(&self) -> usize {
        self.choice.runs(self.runs)
    }

    /// Says what is measured, in a line or two.
    pub(crate) fn describe(&self) -> String {
        let (subject, runs, note) = (self.subject, self.runs(), self.choice.note());
        format!("subject {subject}, {runs} runs, seed {SEED}{note}")
    }

    /// Returns the size of the blob that is pulled warm and cold.
    pub(crate) fn blob_bytes(&self) -> u64 {
        if self.choice.quick {
            8 * MIB
        } else {
            256 * MIB
        }
    }

    /// Returns the size of the blob that 64 clients want at once.
    pub(crate) fn stampede_bytes(&self) -> u64 {
        if self.choice.quick { 4 * MIB } else { 64 * MIB }
    }

    /// Returns how long requests are counted.
    pub(crate) fn rate_duration(&self) -> Duration {
        Duration::from_secs(if self.choice.quick { 1 } else { 2 })
    }

    /// Returns the number of streams at once of which memory is measured.
    pub(crate) fn streams(&self) -> usize {
        if self.choice.quick { 100 } else { 1000 }
    }
}
