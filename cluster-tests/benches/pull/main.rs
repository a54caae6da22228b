//! The benchmark of one node: what a pull costs, against the rivals, as one table.
//!
//! `make bench` builds and runs it. Every figure is the median of runs in which the rival took
//! turns with us, because absolute figures of a shared machine mean little. It judges against the
//! targets but fails only when it could not measure or took too much memory, unless it is told to be
//! strict.
//!
//! ```text
//! options    the command line; `choice` has what the tables have in common
//! subject    what is measured: millrace, or the Docker registry in its place
//! warm_blob, manifest, cold_blob, stampede, memory: the rows
//! ```

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;

use millrace_cluster_tests::load::machine;
use millrace_cluster_tests::load::table::{self, Figure};
use options::{Options, Row};

#[path = "../shared/choice.rs"]
mod choice;
mod cold_blob;
mod manifest;
mod memory;
mod options;
mod stampede;
mod subject;
mod warm_blob;

// Children end with the thread that started them and clients bring threads of their own: so one
// thread drives everything, and blocks while it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    println!("{}\n{}", options.describe(), machine::describe());
    let measure = async |row| measure(row, &options).await;
    table::measure_all(options.choice.rows(), options.choice.strict, measure).await
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
