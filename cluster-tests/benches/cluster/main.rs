//! The benchmark of whole clusters: real nodes on hosts of their own, what leaves the upstream, what
//! crosses the line between two sites, and how long it takes, as one table.
//!
//! `cargo bench -p millrace-cluster-tests --bench cluster` after a release build of the daemon; as
//! root, because hosts are network namespaces. Where links have a rate the machine must not be the
//! bound: a row during which it was busier than 80 % is void. It judges against the targets but
//! fails only when it could not measure, unless it is told to be strict.
//!
//! ```text
//! options    the command line; `choice` has what the tables have in common
//! storm      16 nodes on slow links, one cold blob, with and without deaths
//! sites      two zones that are 80 ms from each other
//! join       a node that comes to a cluster full of blobs
//! members    30 nodes: agreement after a crash, what being a member costs
//! warm       what a cluster costs a node that has everything
//! copy       a whole node that takes 1 GiB from another, against the TLS program of `peer`
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser as _;
use millrace_cluster_tests::load::machine;
use millrace_cluster_tests::load::table::{self, Figure};

use options::{Options, Row};

#[path = "../shared/choice.rs"]
mod choice;
mod copy;
mod join;
mod members;
mod options;
mod sites;
mod storm;
mod warm;

// The TLS program comes from the benchmark of the exchange alone, with its child processes.
#[path = "../peer/ours.rs"]
mod ours;
#[path = "../peer/part.rs"]
mod part;
#[path = "../peer/place.rs"]
#[expect(dead_code, reason = "both sides are on loopback here")]
mod place;
#[path = "../peer/rival.rs"]
mod rival;
#[path = "../peer/sink.rs"]
mod sink;

// Children end with the thread that started them: one thread drives everything.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(part) = &options.part {
        return match part.play().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:?}");
                ExitCode::FAILURE
            }
        };
    }
    measure_all(&options).await
}

async fn measure_all(options: &Options) -> ExitCode {
    println!("{}\n{}", options.describe(), machine::describe());
    let measure = async |row| measure(row, options).await;
    table::measure_all(options.choice.rows(), options.choice.strict, measure).await
}

async fn measure(row: Row, options: &Options) -> Result<Vec<Figure>> {
    match row {
        Row::Storm => storm::whole(options).await,
        Row::StormDeaths => storm::with_deaths(options).await,
        Row::Sites => sites::measure(options).await,
        Row::Join => join::measure(options).await,
        Row::Members => members::measure(options).await,
        Row::Warm => warm::measure(options).await,
        Row::Copy => copy::measure(options).await,
    }
}

/// Returns this program, to be started again as a child.
fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("this program's path")
}
