//! The benchmark of one node: what a pull costs, against the rivals, as one table.
//!
//! `make bench` builds and runs it. Every figure is the median of runs in which the rival took
//! turns with us, because absolute figures of a shared machine mean little. It judges against the
//! targets but fails only when it could not measure, unless it is told to be strict.
//!
//! ```text
//! options    the command line
//! subject    what is measured: millrace, or the Docker registry in its place
//! warm_blob, manifest, cold_blob, stampede, memory: the rows
//! ```

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;

use millrace_cluster_tests::load::machine;
use millrace_cluster_tests::load::table::{Figure, Table};
use options::{Options, Row};

mod cold_blob;
mod manifest;
mod memory;
mod options;
mod stampede;
mod subject;
mod warm_blob;

/// The exit status of `--strict` when a target was missed.
const MISSED: u8 = 2;

// Children end with the thread that started them and clients bring threads of their own: so one
// thread drives everything, and blocks while it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    let mut table = Table::default();
    let mut failed = false;
    println!("{}\n{}", options.describe(), machine::describe());
    for row in options.rows() {
        eprintln!("measuring {row}");
        match measure(row, &options).await {
            Ok(figures) => {
                eprintln!("{}", Table::of(figures.clone()));
                table.extend(figures);
            }
            Err(error) => {
                eprintln!("{row} could not be measured: {error:?}");
                failed = true;
            }
        }
    }
    println!("{table}");
    match (failed, options.strict && table.missed()) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(MISSED),
        (false, false) => ExitCode::SUCCESS,
    }
}

async fn measure(row: Row, options: &Options) -> Result<Vec<Figure>> {
    match row {
        Row::WarmBlob1 => warm_blob::measure(options, 1).await,
        Row::WarmBlob32 => warm_blob::measure(options, 32).await,
        Row::ManifestTag => manifest::by_tag(options).await,
        Row::ManifestDigest => manifest::by_digest(options).await,
        Row::ColdBlob => cold_blob::over_loopback(options).await,
        Row::ColdBlobLink => cold_blob::over_a_link(options).await,
        Row::Stampede => stampede::measure(options).await,
        Row::MemoryIdle => memory::idle(options).await,
        Row::MemoryWarm => memory::warm_streams(options).await,
        Row::MemoryCold => memory::cold_streams(options).await,
    }
}
