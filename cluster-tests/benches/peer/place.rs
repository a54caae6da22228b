//! Where the two sides are: both on loopback, or in network namespaces of their own with a link
//! between them. Namespaces and links are removed with the value.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use millrace_cluster_tests::process::run;
use tokio::process::Command;

/// How long a command of the system may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which of the two.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    Sender,
    Receiver,
}

/// A place for two processes.
#[derive(Debug)]
pub(crate) struct Place {
    /// Namespaces of sender and receiver; none for loopback.
    namespaces: Option<[String; 2]>,
}

impl Place {
    pub(crate) fn loopback() -> Self {
        Self { namespaces: None }
    }

    /// Makes two namespaces with a link of MTU 1500, limited to `rate` in each direction.
    ///
    /// # Errors
    /// When this process may not do that, or `ip` and `tc` are missing.
    pub(crate) async fn link(rate: Option<&str>) -> Result<Self> {
        let id = std::process::id();
        let names = ["s", "r"].map(|side| format!("mrp{id}{side}"));
        // Removes what was made, also when a later command fails.
        let place = Self {
            namespaces: Some(names.clone()),
        };
        let [sender, receiver] = &names;
        for name in &names {
            ip(&format!("netns add {name}")).await?;
        }
        ip(&format!(
            "link add v0 netns {sender} mtu 1500 type veth peer name v0 netns {receiver} mtu 1500"
        ))
        .await?;
        for (name, host) in names.iter().zip([1, 2]) {
            ip(&format!("-n {name} address add 10.77.0.{host}/24 dev v0")).await?;
            ip(&format!("-n {name} link set v0 up")).await?;
            if let Some(rate) = rate {
                // A burst of two large TCP segments, and a queue of 8 ms.
                let limit = format!("tbf rate {rate} burst 128kb limit 1mb");
                let line = format!("tc -n {name} qdisc add dev v0 root {limit}");
                execute(&line).await?;
            }
        }
        Ok(place)
    }

    /// Returns the address that the sender listens on.
    pub(crate) fn listen(&self) -> SocketAddr {
        match self.namespaces {
            None => SocketAddr::from(([127, 0, 0, 1], 0)),
            Some(_) => SocketAddr::from(([10, 77, 0, 1], 0)),
        }
    }

    /// Returns the command that runs `program` on one side.
    pub(crate) fn command(&self, side: Side, program: &Path) -> Command {
        let Some([sender, receiver]) = &self.namespaces else {
            return Command::new(program);
        };
        let name = match side {
            Side::Sender => sender,
            Side::Receiver => receiver,
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name]).arg(program);
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for name in self.namespaces.iter().flatten() {
            // Not there when making it failed.
            let _ = std::process::Command::new("ip")
                .args(["netns", "delete", name])
                .output();
        }
    }
}

async fn ip(arguments: &str) -> Result<()> {
    execute(&format!("ip {arguments}")).await
}

async fn execute(line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let mut command = std::process::Command::new(words.next().unwrap_or_default());
    command.args(words);
    run(&command, PATIENCE).await?;
    Ok(())
}
