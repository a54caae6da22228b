//! The program: arguments, configuration, node, signal, drain.
//!
//! Exit status: 0 after a drain, 1 when the node cannot run, 2 for a mistake in the arguments, the
//! configuration or a file that it names, 143 or 130 when a second signal ends it at once.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use millrace::cli::{self, Cli, Command, MISTAKE, ServeArgs};
use millrace::config::Loaded;
use millrace::node::{Node, StartError};
use millrace::telemetry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long the end waits for threads that are still busy. The drain has waited for all that matters;
/// a look-up at a name server that does not answer takes 10 s and more, and nothing ends it.
const BUSY_THREADS_PATIENCE: Duration = Duration::from_secs(1);

/// From how large a block the allocator learns: measured against the memory of many streams
/// (ARCHITECTURE, "Freed memory is kept").
const LARGEST_BLOCK: usize = 16 << 20;

fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("millrace: another TLS crypto provider is installed in this process");
        return ExitCode::FAILURE;
    }
    match Cli::parse().command {
        Command::Serve(arguments) => serve(&arguments),
        Command::Check(arguments) => cli::check(&arguments),
        Command::Status(arguments) => cli::status(&arguments),
        Command::Secret => cli::secret(),
        Command::User(command) => cli::user(&command),
    }
}

fn serve(arguments: &ServeArgs) -> ExitCode {
    let loaded = match cli::load(arguments.config.as_deref()) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let log = &loaded.config.log;
    let started = telemetry::start(&log.level, log.formatter).map_err(anyhow::Error::from);
    let result = started.and_then(|()| {
        raise_open_files();
        keep_freed_memory();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let result = runtime.block_on(run(loaded));
        runtime.shutdown_timeout(BUSY_THREADS_PATIENCE);
        result
    });
    result.unwrap_or_else(|error| failed(&error))
}

/// Says in one line why there is no node, and returns the status for it.
fn failed(error: &anyhow::Error) -> ExitCode {
    let start = error.downcast_ref::<StartError>();
    match start.and_then(StartError::advice) {
        Some(advice) => eprintln!("millrace: {error:#}; {advice}"),
        None => eprintln!("millrace: {error:#}"),
    }
    match start.is_some_and(StartError::is_mistake) {
        true => ExitCode::from(MISTAKE),
        false => ExitCode::FAILURE,
    }
}

/// Makes the allocator keep memory that was given back, for the next chunks that pass through.
///
/// glibc gives what is free at the end of a heap back to the system, from little on. With chunks that
/// come and go that was one page fault, and one page to clear, for each page of a blob. It learns what
/// a program needs from the largest block that was freed, and keeps twice as much from then on
/// (`mallopt(3)`, `M_MMAP_THRESHOLD`). No page of this block is ever touched, and other allocators take
/// no notice of it.
fn keep_freed_memory() {
    drop(black_box(Vec::<u8>::with_capacity(LARGEST_BLOCK)));
}

/// Lets this process open as many files as the system allows it: the usual 1,024 are kept low for
/// programs that use `select`, and each client, each fetch and each blob that is read takes one.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::debug!(?limit.maximum, "open files"),
        Err(error) => tracing::warn!(%error, ?limit.current, "few files can be open at a time"),
    }
}

/// Runs a node until a signal, then drains it.
async fn run(loaded: Loaded) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    for ignored in &loaded.ignored {
        tracing::warn!("{ignored}");
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let node = tokio::select! {
        node = Node::start(loaded.config) => node?,
        code = signals.next() => return Ok(code),
    };
    signals.next().await;
    tracing::info!("draining: no new connections; a second signal ends the node at once");
    tokio::select! {
        () = node.drain() => Ok(ExitCode::SUCCESS),
        code = signals.next() => {
            tracing::warn!("ended by a second signal");
            Ok(code)
        }
    }
}

/// The signals that end a node.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one and returns the status of a program that it ends.
    async fn next(&mut self) -> ExitCode {
        tokio::select! {
            _ = self.terminate.recv() => ExitCode::from(143),
            _ = self.interrupt.recv() => ExitCode::from(130),
        }
    }
}
