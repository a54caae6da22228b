//! The benchmark of the exchange between two nodes: one blob from one to the other, against a
//! program that reads the file, sends it over TLS and TCP, hashes once and writes.
//!
//! `cargo bench -p millrace-cluster-tests --bench peer`. Sender and receiver are processes of
//! their own, made from this program; ours are the peer room with a file behind it, without the
//! store. Runs are interleaved; the table has medians. It fails only when it cannot measure.
//!
//! ```text
//! part     what a child process does: which side, whose program
//! ours     the two sides of the peer room
//! rival    the two sides of the TLS program
//! sink     hashing and writing, the same for both
//! place    loopback, or two network namespaces with a link between them
//! ```

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use millrace_cluster_tests::image::Noise;
use millrace_cluster_tests::load::meter::Moment;

use part::{Measured, Part, Program};
use place::Place;

mod ours;
mod part;
mod place;
mod rival;
mod sink;

const MIB: u64 = 1 << 20;

/// What UDP can carry on the limited link, in bytes per second: the limit counts whole frames, of which
/// Ethernet, IPv4 and UDP take 42 of 1514 bytes.
const GIGABIT_PAYLOAD: f64 = 1e9 / 8.0 * (1514.0 - 42.0) / 1514.0;

/// Seed of the source's content.
const SEED: u64 = 3;

/// Measures the exchange between two nodes against a TLS program and prints one table.
#[derive(Debug, Parser)]
#[command(name = "peer")]
struct Options {
    /// Where to measure; all places if none is given. All but loopback need root.
    #[arg(long = "place", value_enum)]
    only: Vec<Kind>,
    /// Interleaved runs that the medians are taken over.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Size of the blob in MiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    mebibytes: u64,
    /// What a child process is to do.
    #[command(subcommand)]
    part: Option<Part>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A place to measure at, and what must be reached there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// 127.0.0.1, whose packets may be large.
    Loopback,
    /// A link between two network namespaces, at an MTU of 1500.
    Veth,
    /// The same, limited to 1 Gbit/s.
    Gigabit,
}

impl Kind {
    /// The least share of the rival's rate, or of what the link can carry.
    fn target(self) -> f64 {
        match self {
            Self::Loopback => 0.9,
            Self::Veth => 0.55,
            Self::Gigabit => 0.95,
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        match &options.part {
            Some(part) => part.play().await,
            None => measure_all(&options).await,
        }
    })
}

async fn measure_all(options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let size = options.mebibytes * MIB;
    let source = folder.path().join("source");
    make_source(&source, size)?;
    println!("{size} bytes, {} runs, ours : rival, medians", options.runs);
    for kind in Kind::value_variants() {
        if options.only.contains(kind) {
            measure(*kind, options, &source).await?;
        } else if options.only.is_empty()
            && let Err(error) = measure(*kind, options, &source).await
        {
            // Without root there are no links to be made; the other places count all the same.
            println!("{kind:?}: could not be measured: {error}");
        }
    }
    Ok(())
}

/// Writes the file that both send.
fn make_source(path: &Path, size: u64) -> Result<()> {
    let mut file = File::create(path)?;
    io::copy(&mut Noise::new(SEED).take(size), &mut file)?;
    // Writing it back later would disturb what is measured.
    file.sync_all()?;
    Ok(())
}

async fn measure(kind: Kind, options: &Options, source: &Path) -> Result<()> {
    let place = match kind {
        Kind::Loopback => Place::loopback(),
        Kind::Veth => Place::link(None).await?,
        Kind::Gigabit => Place::link(Some("1gbit")).await?,
    };
    let (mut ours, mut rival, mut foreign) = (Vec::new(), Vec::new(), 0_f64);
    // The first run warms up and does not count.
    for run in 0..=options.runs {
        let mut order = [Program::Ours, Program::Rival];
        if run % 2 == 1 {
            order.reverse();
        }
        let moment = Moment::now()?;
        for program in order {
            let measured = part::measure(program, &place, source).await?;
            eprintln!("{kind:?} {program:?}: {measured}");
            match program {
                _ if run == 0 => {}
                Program::Ours => ours.push(measured),
                Program::Rival => rival.push(measured),
            }
        }
        foreign = foreign.max(moment.foreign_share()?);
    }
    println!("{}", row(kind, &ours, &rival, foreign)?);
    Ok(())
}

/// Returns one row of the table.
fn row(kind: Kind, ours: &[Measured], rival: &[Measured], foreign: f64) -> Result<String> {
    let rate = |runs: &[Measured]| median(runs.iter().map(|run| run.rate()));
    let cpu = |runs: &[Measured], side: fn(&Measured) -> f64| median(runs.iter().map(side));
    let (ours_rate, rival_rate) = (rate(ours)?, rate(rival)?);
    let (whole, of_what) = match kind {
        Kind::Loopback | Kind::Veth => (rival_rate, "the TLS program"),
        Kind::Gigabit => (GIGABIT_PAYLOAD, "what UDP can carry there"),
    };
    let share = ours_rate / whole;
    let verdict = if share < kind.target() {
        "MISSED"
    } else {
        "pass"
    };
    Ok(format!(
        "{kind:?}: {:.0} : {:.0} MB/s, {share:.2} of {of_what} (target {:.2}, {verdict}); \
         CPU-s/GiB sending {:.2} : {:.2}, receiving {:.2} : {:.2}; others used up to {:.0} %",
        ours_rate / 1e6,
        rival_rate / 1e6,
        kind.target(),
        cpu(ours, Measured::sender_cpu)?,
        cpu(rival, Measured::sender_cpu)?,
        cpu(ours, Measured::receiver_cpu)?,
        cpu(rival, Measured::receiver_cpu)?,
        foreign * 100.0,
    ))
}

fn median(values: impl Iterator<Item = f64>) -> Result<f64> {
    let mut values: Vec<f64> = values.collect();
    ensure!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    Ok(values[values.len() / 2])
}

/// Returns this program, to be started again as a child.
fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("this program's path")
}
