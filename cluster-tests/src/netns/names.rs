//! A name server on a host: dnsmasq with the records that a test states.
//!
//! It knows the names below `test` only, and refuses all others. Nodes ask it that are started with
//! [`crate::node::NodeBuilder::name_server`].

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use super::Host;
use crate::component;
use crate::process::Process;

/// The file with the records, as `/etc/hosts` has them.
const RECORDS: &str = "records";

/// A running name server.
#[derive(Debug)]
pub struct NameServer {
    process: Process,
    address: Ipv4Addr,
    folder: TempDir,
}

impl NameServer {
    /// Starts a name server on `host`, at the address by which other hosts reach it, whose `name`
    /// has these addresses.
    ///
    /// # Errors
    /// When dnsmasq is missing or does not listen.
    pub async fn start(host: &Host, name: &str, addresses: &[IpAddr]) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("millrace-names-")
            .tempdir()?;
        write_records(&folder, name, addresses)?;
        let mut dnsmasq = Command::new(component::find("dnsmasq")?);
        // Nothing of this machine: neither its settings, nor its name servers, nor its hosts.
        dnsmasq
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file",
            ])
            .args(["--no-resolv", "--no-hosts", "--local=/test/"])
            .args(["--user=root", "--group=root", "--log-facility=-"])
            .args(["--bind-interfaces", "--except-interface=lo"])
            .arg(format!("--listen-address={}", host.data()))
            .arg(format!(
                "--addn-hosts={}",
                folder.path().join(RECORDS).display()
            ));
        let mut process = Process::start("dnsmasq", &host.command(&dnsmasq)?, folder.path())?;
        let log = folder.path().join("dnsmasq.err");
        process
            .ready(async || {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                log.contains(RECORDS).then_some(())
            })
            .await?;
        Ok(Self {
            process,
            address: host.data(),
            folder,
        })
    }

    /// Returns where it answers, at port 53.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Gives `name` these addresses, and no other name any.
    ///
    /// # Errors
    /// When the records cannot be written.
    pub fn change(&self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        write_records(&self.folder, name, addresses)?;
        // It reads the file anew.
        self.process.signal(Signal::HUP);
        Ok(())
    }
}

fn write_records(folder: &TempDir, name: &str, addresses: &[IpAddr]) -> Result<()> {
    let mut records = String::new();
    for address in addresses {
        writeln!(records, "{address} {name}")?;
    }
    std::fs::write(folder.path().join(RECORDS), records).context("writing the records of a name")
}
