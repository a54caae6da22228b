//! Running the tools that make networks.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::component;
use crate::process::behind;

/// Returns `command` to be run in the network namespace `namespace`.
pub(super) fn inside(namespace: &str, command: &Command) -> Result<Command> {
    let mut nsenter = Command::new(component::find("nsenter")?);
    nsenter.arg(format!("--net=/run/netns/{namespace}"));
    nsenter.arg("--");
    Ok(behind(nsenter, command))
}

/// Returns `command` to be run with `file` in the place of `/etc/resolv.conf`, which stays as it is
/// for everybody else.
pub(crate) fn with_resolver(file: &Path, command: &Command) -> Result<Command> {
    component::find("mount")?;
    let mut unshare = Command::new(component::find("unshare")?);
    let script = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;
    unshare.args(["--mount", "--", "sh", "-c", script]);
    unshare.arg(file);
    Ok(behind(unshare, command))
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
