//! A real `millrace` process: started, observed, killed, restarted.
//!
//! Its data folder outlives restarts and ends with the [`Node`]. What it is started with is
//! `builder`'s; what tests ask of it is not known here: see [`crate::http`] and the clients.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::component;
use crate::condition::{eventually, patience};
use crate::http::{Answer, Request};
use crate::netns::{self, Host};
use crate::process::Process;
use crate::trace::{self, Trace};

mod builder;
mod fault;
mod kept;
mod panics;

pub(crate) use builder::HOST_PORT;
pub use builder::NodeBuilder;
pub use fault::{Fault, PANIC};
pub use kept::is_damaged;

/// A node, running or stopped.
pub struct Node {
    process: Option<Process>,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    host: Option<Host>,
    name_server: Option<Ipv4Addr>,
    fault: Option<Fault>,
    traced: bool,
    address: SocketAddr,
    debug: SocketAddr,
    /// Whether the test knows of its panics; they fail any other.
    may_panic: bool,
    owned: Option<TempDir>,
}

impl fmt::Debug for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Node")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Returns a builder with nothing but addresses and data folder configured.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    fn prepare(builder: &NodeBuilder, folder: &TempDir) -> Result<Self> {
        let (address, debug) = builder.addresses()?;
        let folder = folder.path().to_owned();
        let configuration = builder.configuration(address, debug, &folder.join("data"));
        std::fs::write(
            folder.join("config.yml"),
            serde_json::to_vec_pretty(&configuration)?,
        )
        .context("writing the configuration of the node")?;
        Ok(Self {
            process: None,
            folder,
            environment: builder.environment.clone(),
            host: builder.host.clone(),
            name_server: builder.name_server,
            fault: builder.fault,
            traced: builder.traced,
            address,
            debug,
            may_panic: false,
            owned: None,
        })
    }

    fn keep(mut self, folder: TempDir) -> Self {
        self.owned = Some(folder);
        self
    }

    /// Starts the process and waits until it is ready.
    async fn launch(&mut self) -> Result<()> {
        self.launch_until("/readyz").await
    }

    /// Starts the process again as [`Node::restart`] does, and waits only until it tells its state.
    ///
    /// # Errors
    /// When it tells nothing within the patience.
    pub async fn relaunch(&mut self) -> Result<()> {
        self.kill();
        self.launch_until("/status").await
    }

    /// Starts the process and waits until `path` is answered 200 at the operators' door.
    async fn launch_until(&mut self, path: &str) -> Result<()> {
        self.launch_unready()?;
        let debug = self.debug;
        let process = self.process.as_mut().context("the node was started")?;
        process
            .ready(async || {
                let answer = Request::get(path).send(debug).await;
                answer
                    .is_ok_and(|answer| answer.status() == 200)
                    .then_some(())
            })
            .await
    }

    /// Starts the process without waiting for it.
    ///
    /// # Errors
    /// When the program is missing, or what is to be around it cannot be made.
    pub fn launch_unready(&mut self) -> Result<()> {
        let mut command = match self.fault {
            None => Command::new(component::millrace()?),
            Some(fault) => {
                let mut command = Command::new(component::faulty()?);
                command.arg(fault.name());
                command
            }
        };
        command
            .arg("serve")
            .arg("--config")
            .arg(self.folder.join("config.yml"));
        // A proxy of the machine must not come between the node and registries on loopback.
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        // Settings of the tests are none of the node's.
        for (name, _) in std::env::vars_os() {
            let is_ours = |name: &str| name.starts_with("MILLRACE_TEST_");
            if name.to_str().is_some_and(is_ours) {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if self.traced {
            command = trace::of(&self.trace_file(), &command)?;
        }
        if let Some(address) = self.name_server {
            let file = self.folder.join("resolv.conf");
            std::fs::write(&file, format!("nameserver {address}\n"))
                .context("writing whom the node asks for names")?;
            command = netns::with_resolver(&file, &command)?;
        }
        if let Some(host) = &self.host {
            command = host.command(&command)?;
        }
        self.process = Some(Process::start("millrace", &command, &self.folder)?);
        Ok(())
    }

    /// Returns the address where clients are answered.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of metrics, health and status.
    pub fn debug_address(&self) -> SocketAddr {
        self.debug
    }

    /// Returns the folder in which the node keeps its data.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Returns what the last run did to its files, if it is traced; the run must have ended.
    ///
    /// # Errors
    /// When nothing was recorded.
    pub fn trace(&self) -> Result<Trace> {
        Trace::read(&self.trace_file(), &self.data())
    }

    fn trace_file(&self) -> PathBuf {
        self.folder.join("trace")
    }

    /// Returns the process id.
    ///
    /// # Panics
    /// When the node is stopped.
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().expect("the node runs").id()
    }

    /// Tells whether the process was started and neither stopped nor killed since.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Returns what all runs of the node printed so far.
    pub fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        read("millrace.out") + &read("millrace.err")
    }

    /// Sends `request` to the clients' address.
    ///
    /// # Errors
    /// As [`Request::send`].
    pub async fn send(&self, request: Request) -> Result<Answer> {
        request.send(self.address).await
    }

    /// Sends SIGTERM and does not wait.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends a signal and does not wait; SIGSTOP and SIGCONT make a node hang and come back.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// When it still runs after `limit`, or is stopped already.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let process = self
            .process
            .as_mut()
            .context("the node is stopped already")?;
        let status = process.wait(limit).await?;
        self.process = None;
        Ok(status)
    }

    /// Asks the process to end by SIGTERM, and waits until it takes no new connection.
    ///
    /// # Panics
    /// When it does so all the time.
    pub async fn drain(&self) {
        self.terminate();
        eventually("a draining node refuses new connections", async || {
            self.send(Request::get("/v2/")).await.is_err()
        })
        .await;
    }

    /// Ends the process by SIGTERM and waits for it.
    ///
    /// # Errors
    /// When it does not end within the patience.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.terminate();
        self.ended(patience()).await
    }

    /// Ends the process by SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts the process again, with the same data, configuration and addresses.
    ///
    /// # Errors
    /// When it is not ready within the patience.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.launch().await
    }

    /// Changes the configuration, from the next start on; `settings` sees what was set so far.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn reconfigure(&mut self, settings: impl FnOnce(NodeBuilder) -> NodeBuilder) -> Result<()> {
        let file = self.folder.join("config.yml");
        let builder = settings(NodeBuilder {
            settings: serde_json::from_slice(&std::fs::read(&file)?)?,
            environment: std::mem::take(&mut self.environment),
            at: None,
            host: self.host.clone(),
            name_server: self.name_server,
            fault: self.fault,
            traced: self.traced,
        });
        self.environment = builder.environment;
        std::fs::write(&file, serde_json::to_vec_pretty(&builder.settings)?)
            .context("writing the configuration of the node")
    }

    /// Returns the value of a metric, summed over all label sets that contain all of `labels`.
    ///
    /// `labels` are `name="value"` pairs as exposed. `None` when the node exposes no such series.
    ///
    /// # Errors
    /// When `/metrics` is not readable.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<Option<f64>> {
        let answer = Request::get("/metrics").send(self.debug).await?;
        anyhow::ensure!(
            answer.status() == 200,
            "/metrics answered {}",
            answer.status()
        );
        Ok(sum_of(&String::from_utf8_lossy(&answer.body), name, labels))
    }

    /// Returns what `/status` says.
    ///
    /// # Errors
    /// When it is not readable JSON.
    pub async fn status(&self) -> Result<Value> {
        let answer = Request::get("/status").send(self.debug).await?;
        anyhow::ensure!(
            answer.status() == 200,
            "/status answered {}",
            answer.status()
        );
        answer.json()
    }
}

/// Sums the samples of `name` in an exposition that carry all `labels`.
fn sum_of(exposition: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let values = exposition.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (set, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once('}')?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let carried: Vec<&str> = set.split(',').collect();
        let matches = labels.iter().all(|label| carried.contains(label));
        let value = value.split_whitespace().next()?;
        matches.then(|| value.parse::<f64>().ok()).flatten()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_matching_labels() {
        let exposition = "# HELP a x\na_total{source=\"local\",kind=\"blob\"} 2\n\
                          a_total{source=\"peer\",kind=\"blob\"} 3\nab_total 7\n";
        assert_eq!(sum_of(exposition, "a_total", &[]), Some(5.0));
        assert_eq!(
            sum_of(exposition, "a_total", &["source=\"peer\""]),
            Some(3.0)
        );
        assert_eq!(sum_of(exposition, "ab_total", &[]), Some(7.0));
        assert_eq!(sum_of(exposition, "b_total", &[]), None);
    }
}
