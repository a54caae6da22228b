//! What the command lines of the tables have in common: which rows are measured, how thoroughly, and
//! whether a target that is missed is a failure.
//!
//! What the rows are, and how much data each takes, is each benchmark's own.

use clap::{Args, ValueEnum};

/// Which rows, and how.
#[derive(Debug, Args)]
pub(crate) struct Choice<R: ValueEnum + Send + Sync + 'static> {
    /// Measure only this row; may be given several times.
    #[arg(long = "row", value_name = "ROW")]
    only: Vec<R>,
    /// Run everything once with little data: shows that it works, its figures mean nothing.
    #[arg(long)]
    pub(crate) quick: bool,
    /// End with status 2 when a target is missed.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl<R: ValueEnum + PartialEq + Send + Sync> Choice<R> {
    /// Returns the rows to measure, in the order of the table.
    pub(crate) fn rows(&self) -> Vec<R> {
        let all = R::value_variants().iter().cloned();
        all.filter(|row| self.only.is_empty() || self.only.contains(row))
            .collect()
    }

    /// Returns how many runs a median is taken over, of which `asked` are asked for.
    pub(crate) fn runs(&self, asked: u16) -> usize {
        if self.quick { 1 } else { asked.into() }
    }

    /// Says what follows from it, with a line break before it; empty where nothing does.
    pub(crate) fn note(&self) -> &'static str {
        if self.quick {
            "\nQUICK: little data, one run; the figures mean nothing"
        } else {
            ""
        }
    }
}

/// Returns how a row is called on the command line.
pub(crate) fn name_of<R: ValueEnum>(row: &R) -> String {
    let value = row.to_possible_value().expect("no row is hidden");
    value.get_name().to_owned()
}
