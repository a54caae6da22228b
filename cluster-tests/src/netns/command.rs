//! Running the tools that make networks.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::component;

/// Returns `command` to be run in the network namespace `namespace`.
pub(super) fn inside(namespace: &str, command: &Command) -> Result<Command> {
    let mut wrapped = Command::new(component::find("nsenter")?);
    wrapped
        .arg(format!("--net=/run/netns/{namespace}"))
        .arg("--")
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    Ok(wrapped)
}

/// Runs `command` to its end.
pub(super) fn run(command: &Command) -> Result<()> {
    feed(command, "")
}

/// Runs `ip` with `words`.
pub(super) fn ip(words: &[&str]) -> Result<()> {
    let mut command = Command::new(component::find("ip")?);
    command.args(words);
    run(&command)
}

/// Runs lines of `ip` commands, in a namespace or in the test's own.
pub(super) fn ip_batch(namespace: Option<&str>, lines: &str) -> Result<()> {
    let mut command = Command::new(component::find("ip")?);
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command.args(["-batch", "-"]);
    feed(&command, lines)
}

/// Runs a script of `nft`, whole or not at all.
pub(super) fn nft(namespace: Option<&str>, script: &str) -> Result<()> {
    let mut command = Command::new(component::find("nft")?);
    command.args(["-f", "-"]);
    match namespace {
        Some(namespace) => feed(&inside(namespace, &command)?, script),
        None => feed(&command, script),
    }
}

/// Runs `command` to its end with `input`.
fn feed(command: &Command, input: &str) -> Result<()> {
    let line = format!("{command:?}");
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    let mut child = copy
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {line}"))?;
    let mut stdin = child.stdin.take().context("standard input was asked for")?;
    stdin
        .write_all(input.as_bytes())
        .with_context(|| format!("feeding {line}"))?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{line}\n{input}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
