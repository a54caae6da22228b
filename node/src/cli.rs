//! The command line: what the words mean, and the commands that end by themselves.
//!
//! `main` matches on [`Command`]: `check` and `status` are done here, `serve` loads its
//! configuration here and is run by `node`. Exit status: 0 done, 1 failed, 2 a mistake in the
//! arguments, the configuration or a file that it names, for which nothing was started.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

mod user;

use crate::cluster;
use crate::config::{Config, ListenAddr, Loaded};

pub use user::{FileArgs, NameArgs, UserCommand, user};

/// Status for a mistake in the arguments, the configuration or a file that it names: another attempt
/// would end the same way. clap uses it as well.
pub const MISTAKE: u8 = 2;

/// How long a node may take to tell its status.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// Pull-through cache for container registries.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node until SIGTERM or SIGINT
    Serve(ServeArgs),
    /// Check a configuration and say what it means, without starting anything
    Check(CheckArgs),
    /// Ask the node on this host how it is
    Status(StatusArgs),
    /// Make a secret for a cluster and print it
    Secret,
    /// Change the users of an htpasswd file
    #[command(subcommand)]
    User(UserCommand),
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Configuration file; without it, defaults for this host alone
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file; without it, the defaults and the environment
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Configuration file of the node, for its debug address
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Debug address of the node, instead of the one in the configuration
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<ListenAddr>,
    /// How to write it
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// How a status is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

impl Output {
    /// Returns the word of the argument and of the query.
    fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Loads the configuration of a command; prints what is wrong with it.
///
/// # Errors
/// The status to exit with.
pub fn load(file: Option<&Path>) -> Result<Loaded, ExitCode> {
    Config::load(file, Config::environment()).map_err(|error| {
        complain(&error);
        ExitCode::from(MISTAKE)
    })
}

/// Runs `check`.
pub fn check(args: &CheckArgs) -> ExitCode {
    let file = args.config.as_deref();
    match load(file) {
        Ok(loaded) => print(&summary(file, &loaded)),
        Err(code) => code,
    }
}

/// Runs `status`.
///
/// The process-wide rustls crypto provider must be installed before.
pub fn status(args: &StatusArgs) -> ExitCode {
    let address = match &args.address {
        Some(address) => address.clone(),
        None => match load(args.config.as_deref()) {
            Ok(loaded) => loaded.config.http.debug.addr,
            Err(code) => return code,
        },
    };
    match ask(&address, args.output) {
        Ok(text) => print(&text),
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Runs `secret`.
pub fn secret() -> ExitCode {
    match cluster::fresh_secret() {
        Ok(secret) => print(&format!("{secret}\n")),
        Err(_) => {
            complain(&"the system gives no random numbers");
            ExitCode::FAILURE
        }
    }
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("cannot ask: {0}")]
    Setup(#[source] std::io::Error),
    #[error("no node answers at {url}: {reason}; is it running, and is this its http.debug.addr?")]
    Silent { url: String, reason: String },
    #[error("{url} answers {status}: this is not the debug address of a node")]
    NotANode {
        url: String,
        status: http::StatusCode,
    },
}

fn ask(address: &ListenAddr, output: Output) -> Result<String, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AskError::Setup)?;
    let url = format!(
        "http://{}/status?output={}",
        address.contact(),
        output.as_str()
    );
    runtime.block_on(async {
        let silent = |error: reqwest::Error| AskError::Silent {
            url: url.clone(),
            reason: root_cause(&error),
        };
        // The node is asked itself, whatever proxy the environment names.
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(STATUS_PATIENCE)
            .build()
            .map_err(silent)?;
        let answer = client.get(&url).send().await.map_err(silent)?;
        let status = answer.status();
        if !status.is_success() {
            let url = url.clone();
            return Err(AskError::NotANode { url, status });
        }
        answer.text().await.map_err(silent)
    })
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// What `check` says of a configuration without mistakes.
fn summary(file: Option<&Path>, loaded: &Loaded) -> String {
    let config = &loaded.config;
    let name = file.map_or("defaults".to_owned(), |file| file.display().to_string());
    let mut lines = vec![format!("{name}: ok")];
    lines.extend(loaded.warnings.iter().map(|w| format!("warning: {w}")));
    lines.extend(loaded.ignored.iter().map(ToString::to_string));
    let reach = |addr: &ListenAddr| match addr.is_loopback() {
        true => "this host only",
        false => "reachable from outside",
    };
    let (clients, debug) = (&config.http.addr, &config.http.debug.addr);
    let guard = guard(config);
    lines.push(format!(
        "clients    {clients} ({}){}",
        reach(clients),
        guard.unwrap_or_default()
    ));
    if let Some(local) = &config.http.local.addr {
        lines.push(format!("local      {local} (this host only)"));
    }
    lines.push(format!("debug      {debug} ({})", reach(debug)));
    let root = config.storage.rootdirectory.display();
    lines.push(format!("data       {root}"));
    lines.extend(cluster_line(&config.cluster));
    for (name, upstream) in &config.upstreams.upstreams {
        let mut line = format!("upstream   {name}");
        if let Some(url) = &upstream.url {
            write!(line, " at {url}").expect("writing to a string");
        }
        if *name == config.upstreams.default {
            line.push_str(", the default");
        }
        if upstream.username.is_some() || upstream.exec.is_some() {
            line.push_str(", with credentials");
            if !clients.is_loopback() && guard.is_none() {
                line.push_str(": who reaches the listener reads what they can read");
            }
        }
        lines.push(line);
    }
    lines.push(String::new());
    lines.join("\n")
}

/// What a node would be in a cluster; nothing if there is none.
fn cluster_line(config: &cluster::Config) -> Option<String> {
    let join: Vec<String> = config.join.iter().map(ToString::to_string).collect();
    let join = match join.is_empty() {
        true => "waits to be joined".to_owned(),
        false => format!("joins {}", join.join(", ")),
    };
    let (listen, zone) = (config.listen_address(), &config.zone);
    config
        .is_enabled()
        .then(|| format!("cluster    {listen}, zone {zone}, {join}"))
}

/// Who is let in at the clients' address, unless it is everybody.
fn guard(config: &Config) -> Option<&'static str> {
    match (
        config.auth.htpasswd.is_some(),
        !config.http.tls.clientcas.is_empty(),
    ) {
        (true, true) => Some(", for users and holders of client certificates"),
        (true, false) => Some(", for users of the htpasswd file"),
        (false, true) => Some(", for holders of client certificates"),
        (false, false) => None,
    }
}

/// Prints to standard output; a reader that went away is no failure of ours.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format_args!("cannot write: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn complain(message: &dyn fmt::Display) {
    // Where standard error is closed nobody can be told.
    let _ = writeln!(std::io::stderr(), "{message}");
}
