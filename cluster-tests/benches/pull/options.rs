//! The command line, and the sizes that follow from it.

use std::fmt;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

/// The content of all blobs follows from this number, the blob's size and its use.
pub(crate) const SEED: u64 = 2;

/// Measures one node against its rivals and prints one table.
#[derive(Debug, Parser)]
#[command(name = "pull")]
pub(crate) struct Options {
    /// Measure only this row; may be given several times.
    #[arg(long = "row", value_name = "ROW")]
    only: Vec<Row>,
    /// How many interleaved runs the medians are taken over.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Run everything once with little data: shows that it works, its figures mean nothing.
    #[arg(long)]
    pub(crate) quick: bool,
    /// End with status 2 when a target is missed.
    #[arg(long)]
    pub(crate) strict: bool,
    /// What is measured.
    #[arg(long, value_enum, default_value_t = SubjectKind::Millrace)]
    pub(crate) subject: SubjectKind,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
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
        let value = self.to_possible_value().expect("no row is hidden");
        formatter.write_str(value.get_name())
    }
}

impl fmt::Display for SubjectKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no subject is hidden");
        formatter.write_str(value.get_name())
    }
}

impl Options {
    /// Returns the rows to measure, in the order of the table.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let all = Row::value_variants().iter().copied();
        all.filter(|row| self.only.is_empty() || self.only.contains(row))
            .collect()
    }

    /// Returns how many runs a median is taken over.
    pub(crate) fn runs(&self) -> usize {
        if self.quick {
            return 1;
        }
        self.runs.into()
    }

    /// Says what is measured, in a line or two.
    pub(crate) fn describe(&self) -> String {
        let note = if self.quick {
            "\nQUICK: little data, one run; the figures mean nothing"
        } else {
            ""
        };
        let (subject, runs) = (self.subject, self.runs());
        format!("subject {subject}, {runs} runs, seed {SEED}{note}")
    }

    /// Returns the size of the blob that is pulled warm and cold.
    pub(crate) fn blob_bytes(&self) -> u64 {
        if self.quick { 8 * MIB } else { 256 * MIB }
    }

    /// Returns the size of the blob that 64 clients want at once.
    pub(crate) fn stampede_bytes(&self) -> u64 {
        if self.quick { 4 * MIB } else { 64 * MIB }
    }

    /// Returns how long requests are counted.
    pub(crate) fn rate_duration(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 2 })
    }

    /// Returns the number of streams at once of which memory is measured.
    pub(crate) fn streams(&self) -> usize {
        if self.quick { 100 } else { 1000 }
    }
}
