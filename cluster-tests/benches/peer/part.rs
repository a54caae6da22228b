//! The children: each sends or receives, as one of the two programs.
//!
//! A child says one line when it is ready (a sender: its address) and one when it is done (a
//! receiver: seconds and digest), and ends when its standard input does. So its CPU time can be
//! read after the work and before its end.

use std::fmt;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Subcommand, ValueEnum};
use millrace_cluster_tests::load::{machine, meter};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::place::{Place, Side};
use crate::sink::Received;
use crate::{ours, rival, this_program};

/// How long one transfer may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Whose program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Program {
    Ours,
    Rival,
}

/// What a child does.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// Serves a file to one receiver.
    #[command(hide = true)]
    Send {
        program: Program,
        source: PathBuf,
        listen: SocketAddr,
        folder: PathBuf,
    },
    /// Receives it.
    #[command(hide = true)]
    Receive {
        program: Program,
        target: PathBuf,
        from: SocketAddr,
        folder: PathBuf,
    },
}

impl Part {
    /// Does it, and waits for the end of the standard input.
    pub(crate) async fn play(&self) -> Result<()> {
        match self {
            Self::Send {
                program: Program::Ours,
                source,
                listen,
                folder,
            } => ours::send(source, *listen, folder).await,
            Self::Send {
                source,
                listen,
                folder,
                ..
            } => rival::send(source, *listen, folder).await,
            Self::Receive {
                program,
                target,
                from,
                folder,
            } => {
                let received = match program {
                    Program::Ours => ours::receive(target, *from, folder).await?,
                    Program::Rival => rival::receive(target, *from, folder).await?,
                };
                println!("{received}");
                told_to_end().await
            }
        }
    }
}

/// Waits until the parent has seen enough.
pub(crate) async fn told_to_end() -> Result<()> {
    let reading = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    reading.await??;
    Ok(())
}

/// What one transfer took.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    received: Received,
    sender_cpu: Duration,
    receiver_cpu: Duration,
}

impl Measured {
    /// Bytes per second.
    pub(crate) fn rate(&self) -> f64 {
        self.received.bytes as f64 / self.received.seconds
    }

    /// CPU seconds per GiB.
    pub(crate) fn sender_cpu(&self) -> f64 {
        self.per_gib(self.sender_cpu)
    }

    /// CPU seconds per GiB.
    pub(crate) fn receiver_cpu(&self) -> f64 {
        self.per_gib(self.receiver_cpu)
    }

    fn per_gib(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * f64::from(1 << 30) / self.received.bytes as f64
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sender, receiver) = (self.sender_cpu(), self.receiver_cpu());
        let rate = self.rate() / 1e6;
        write!(f, "{rate:.0} MB/s, CPU-s/GiB {sender:.2} + {receiver:.2}")
    }
}

/// Lets a program move the source once, and checks what arrived.
pub(crate) async fn measure(program: Program, place: &Place, source: &Path) -> Result<Measured> {
    let expected = std::fs::metadata(source)?.len();
    machine::settle(expected);
    let folder = source.parent().context("a folder")?;
    let target = folder.join("target");
    let program_name = program.to_possible_value().context("a name")?;
    let common = |side: &str| vec![side.to_owned(), program_name.get_name().to_owned()];

    let mut arguments = common("send");
    arguments.extend([text(source)?, place.listen().to_string(), text(folder)?]);
    let mut sender = Started::start(place, Side::Sender, &arguments)?;
    let address = sender.line().await?;

    let mut arguments = common("receive");
    arguments.extend([text(&target)?, address, text(folder)?]);
    let mut receiver = Started::start(place, Side::Receiver, &arguments)?;
    let received: Received = receiver.line().await?.parse()?;

    let measured = Measured {
        received,
        sender_cpu: sender.cpu_time()?,
        receiver_cpu: receiver.cpu_time()?,
    };
    receiver.end().await?;
    sender.end().await?;
    ensure!(measured.received.bytes == expected, "not all has arrived");
    Ok(measured)
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().context("a path that is text")?;
    Ok(text.to_owned())
}

/// A child at work; killed if it is dropped.
struct Started {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Started {
    fn start(place: &Place, side: Side, arguments: &[String]) -> Result<Self> {
        let mut command = place.command(side, &this_program()?);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("starting a child")?;
        let stdout = child.stdout.take().context("its output")?;
        let lines = BufReader::new(stdout).lines();
        Ok(Self { child, lines })
    }

    async fn line(&mut self) -> Result<String> {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        line.context("a child in time")??
            .context("a line of a child")
    }

    fn cpu_time(&self) -> Result<Duration> {
        meter::cpu_time(self.child.id().context("a living child")?)
    }

    async fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = timeout(PATIENCE, self.child.wait()).await??;
        ensure!(status.success(), "a child ended with {status}");
        Ok(())
    }
}
