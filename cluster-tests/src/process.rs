//! A child process: started with a log, asked to end, killed when it is dropped.
//!
//! Every child leads its own process group, so that its helpers end with it, and gets SIGKILL
//! from the kernel when the test itself dies (a test runner kills a test that hangs). It does not
//! know what the child is for.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::component;
use crate::condition::{patience, within};

/// How much of a log is shown when a test fails.
const LOG_TAIL_BYTES: usize = 8 * 1024;

/// A running child and the file that holds what it printed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `<folder>/<name>.{out,err}`, appending.
    ///
    /// Start it from the test itself and not from a blocking thread: the child dies with the
    /// thread that started it.
    ///
    /// # Errors
    /// When the program cannot be started or the log cannot be opened.
    pub fn start(name: &str, command: &Command, folder: &Path) -> Result<Self> {
        let stdout = folder.join(format!("{name}.out"));
        let stderr = folder.join(format!("{name}.err"));
        let child = dying_with_parent(command)?
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(append(&stdout)?)
            .stderr(append(&stderr)?)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
        })
    }

    /// Returns the process id, which is its group's id as well.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns how the process ended, `None` while it runs.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("looking after {}", self.name))
    }

    /// Waits with the patience of tests until `answers` yields a value: the process is ready.
    ///
    /// # Errors
    /// When the process ends before, or is not ready in time; the message carries its log.
    pub async fn ready<T>(&mut self, mut answers: impl AsyncFnMut() -> Option<T>) -> Result<T> {
        let outcome = within(patience(), async || match self.child.try_wait() {
            Ok(None) => answers().await.map(Some),
            _ => Some(None),
        });
        match outcome.await {
            Some(Some(value)) => Ok(value),
            Some(None) => bail!("{} ended before it was ready:\n{}", self.name, self.log()),
            None => bail!(
                "{} is not ready after {:?}:\n{}",
                self.name,
                patience(),
                self.log()
            ),
        }
    }

    /// Sends `signal` to the whole process group; does nothing when it is gone.
    pub fn signal(&self, signal: Signal) {
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            // Fails only when the group has ended, which is what most callers want anyway.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Waits until the process has ended, at most `limit`.
    ///
    /// # Errors
    /// When it still runs then; it is left running.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        let ended = within(limit, || {
            std::future::ready(child.try_wait().ok().flatten())
        })
        .await;
        ended.with_context(|| format!("{} still runs after {limit:?}", self.name))
    }

    /// Asks the process group to end, blocks until the process has, and kills it after `limit`.
    ///
    /// For destructors, which cannot wait otherwise.
    pub fn stop_within(&mut self, limit: Duration) {
        self.signal(Signal::TERM);
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let handle = id.and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok());
        if let (Some(handle), Ok(limit)) = (handle, Timespec::try_from(limit)) {
            // Readable when the process has ended; whether it has or not, the rest is the same.
            let _ = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit));
        }
        self.kill();
    }

    /// Kills the process group and waits for its end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        // A killed process cannot refuse; an error means that it was waited for before.
        let _ = self.child.wait();
    }

    /// Returns what the process printed so far: standard output, then standard error.
    pub fn log(&self) -> String {
        format!("{}{}", read(&self.stdout), read(&self.stderr))
    }

    /// Returns what the process printed to standard output so far.
    pub fn output(&self) -> String {
        read(&self.stdout)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let start = log.ceil_char_boundary(log.len().saturating_sub(LOG_TAIL_BYTES));
            eprintln!(
                "--- the end of the log of {} ---\n{}",
                self.name,
                &log[start..]
            );
        }
    }
}

/// Runs `command` to its end with the patience of a client and returns what it printed to
/// standard output.
///
/// # Errors
/// When it fails or takes longer than `limit`; the message carries both outputs.
pub async fn run(command: &Command, limit: Duration) -> Result<String> {
    let mut command: tokio::process::Command = dying_with_parent(command)?.into();
    let line = format!("{:?}", command.as_std());
    let output = command
        .process_group(0)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(limit, output)
        .await
        .with_context(|| format!("still running after {limit:?}: {line}"))?
        .with_context(|| format!("starting {line}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        output.status.success(),
        "{line}\nended with {}\n{text}{error}",
        output.status
    );
    Ok(text)
}

/// Returns the address by which this machine leaves it; no packet is sent.
///
/// # Errors
/// When it has loopback only.
pub fn machine_address() -> Result<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // A documentation address: any that is not here would do.
    socket
        .connect((Ipv4Addr::new(203, 0, 113, 1), 9))
        .context("this machine has no address but loopback")?;
    Ok(socket.local_addr()?.ip())
}

/// Returns `wrapped` with `command` and its environment behind it.
pub(crate) fn behind(mut wrapped: Command, command: &Command) -> Command {
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// Wraps `command` so that the kernel kills it when the thread that starts it ends.
pub(crate) fn dying_with_parent(command: &Command) -> Result<Command> {
    let mut wrapped = Command::new(component::find("setpriv")?);
    wrapped
        .args(["--pdeathsig", "KILL", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(key, value),
            None => wrapped.env_remove(key),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    Ok(wrapped)
}

fn append(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_process_takes_its_children_along() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 600 & echo $!; wait"]);
        let process = Process::start("shell", &shell, folder.path()).expect("sh starts");
        let child: i32 = within(Duration::from_secs(10), async || {
            process.output().trim().parse().ok()
        })
        .await
        .expect("the shell prints the id of its child");
        drop(process);
        let child = Pid::from_raw(child).expect("an id above zero");
        let gone = within(Duration::from_secs(10), || {
            std::future::ready(
                rustix::process::test_kill_process(child)
                    .is_err()
                    .then_some(()),
            )
        });
        assert_eq!(gone.await, Some(()));
    }

    #[tokio::test]
    async fn a_failing_command_tells_what_it_printed() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo out; echo err >&2; exit 3"]);
        let error = run(&shell, Duration::from_secs(10))
            .await
            .expect_err("it exits with 3");
        let text = error.to_string();
        assert!(
            text.contains("out") && text.contains("err") && text.contains('3'),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_command_that_takes_too_long_is_an_error() {
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        let error = run(&sleep, Duration::from_millis(50))
            .await
            .expect_err("it takes too long");
        assert!(error.to_string().contains("still running"), "{error}");
    }
}
