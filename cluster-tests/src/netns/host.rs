//! One host of a network: its links, what is limited and dropped there.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::command::{self, ip, ip_batch, nft};
use crate::component;
use crate::process::Process;

/// What leaves at once on a limited link. The kernel hands over packets of up to 64 KiB, and at
/// 20 Mbit/s this is 26 ms of the link.
const BURST: &str = "64kb";

/// How long a packet waits for its turn on a limited link before it is dropped: as much as cheap
/// switches keep.
const QUEUE: &str = "100ms";

/// A host; it ends with its network.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: String,
    /// Where the other end of `data0` is: the site's namespace and the link's name there.
    port: (String, String),
    site: usize,
    data: Ipv4Addr,
    door: Ipv4Addr,
}

impl Host {
    pub(super) fn new(
        namespace: String,
        port: (String, String),
        site: usize,
        data: Ipv4Addr,
        door: Ipv4Addr,
    ) -> Self {
        Self {
            namespace,
            port,
            site,
            data,
            door,
        }
    }

    /// Makes the namespace and both links.
    pub(super) fn make(&self, doors: &str, gateway: Ipv4Addr) -> Result<()> {
        let (namespace, (site, port)) = (&self.namespace, &self.port);
        ip(&["netns", "add", namespace])?;
        ip_batch(
            None,
            &format!(
                "link add data0 netns {namespace} type veth peer name {port} netns {site}\n\
                 link add door0 netns {namespace} type veth peer name {port} netns {doors}\n"
            ),
        )?;
        for bridged in [site, doors] {
            ip_batch(
                Some(bridged),
                &format!("link set {port} master bridge up\n"),
            )?;
        }
        let (data, door) = (self.data, self.door);
        ip_batch(
            Some(namespace),
            &format!(
                "link set lo up\naddr add {data}/24 dev data0\nlink set data0 up\n\
                 addr add {door}/24 dev door0\nlink set door0 up\nroute add default via {gateway}\n"
            ),
        )
    }

    /// Returns the name of the namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the number of the host's site.
    pub fn site(&self) -> usize {
        self.site
    }

    /// Returns the address by which other hosts reach it.
    pub fn data(&self) -> Ipv4Addr {
        self.data
    }

    /// Returns the address by which the test reaches it, whatever happens to `data0`.
    pub fn door(&self) -> Ipv4Addr {
        self.door
    }

    /// Returns `command` to be run on this host.
    ///
    /// # Errors
    /// When nsenter is missing.
    pub fn command(&self, command: &Command) -> Result<Command> {
        command::inside(&self.namespace, command)
    }

    /// Gives the host another address on its link to the others, usable at once.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn add_address(&self, address: Ipv6Addr) -> Result<()> {
        let (namespace, address) = (&self.namespace, format!("{address}/64"));
        // Nobody else has it, so nobody needs to be asked first.
        let add = ["addr", "add", &address, "dev", "data0", "nodad"];
        ip(&[&["-6", "-n", namespace][..], &add].concat())?;
        Ok(())
    }

    /// Runs `work` on this host, as a program there would: sockets that it opens are the host's.
    /// Blocks the calling thread.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or those of `work`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = File::open(format!("/run/netns/{}", self.namespace))
            .context("opening a network namespace")?;
        // A thread of its own, because it never comes back out of the namespace.
        let enter = || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network)
                .context("entering a network namespace")?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().expect("the work does not panic"))
    }

    /// Limits `data0` to `bits_per_second` each way.
    ///
    /// # Errors
    /// When tc is missing.
    pub fn limit(&self, bits_per_second: u64) -> Result<()> {
        let (site, port) = &self.port;
        for (namespace, link) in [(self.namespace.as_str(), "data0"), (site, port)] {
            let mut tc = Command::new(component::find("tc")?);
            tc.args(["-n", namespace, "qdisc", "replace", "dev", link, "root"])
                .args(["tbf", "rate", &format!("{bits_per_second}bit")])
                .args(["burst", BURST, "latency", QUEUE]);
            command::run(&tc)?;
        }
        Ok(())
    }

    /// Drops every packet that comes from `addresses`, and no longer those that were named before.
    pub(super) fn ignore(&self, addresses: &[Ipv4Addr]) -> Result<()> {
        let rule = if addresses.is_empty() {
            String::new()
        } else {
            format!("ip saddr {{ {} }} drop", list(addresses))
        };
        self.filter("split", &rule)
    }

    /// Refuses TCP connections from `addresses`, and no longer from those that were named before.
    pub(super) fn refuse_tcp(&self, addresses: &[Ipv4Addr]) -> Result<()> {
        // Its first packet alone: else the other end's refusals would be dropped here.
        let opening = "tcp flags & (syn | ack) == syn";
        let rule = format!(
            "ip saddr {{ {} }} {opening} reject with tcp reset",
            list(addresses)
        );
        self.filter("refusal", &rule)
    }

    /// Drops every UDP packet that comes in over `data0`, as a firewall does that knows TCP only.
    ///
    /// # Errors
    /// When nft is missing.
    pub fn block_udp(&self) -> Result<()> {
        self.filter("firewall", "iifname data0 meta l4proto udp drop")
    }

    /// Lets UDP packets in again.
    ///
    /// # Errors
    /// When nft is missing.
    pub fn allow_udp(&self) -> Result<()> {
        self.filter("firewall", "")
    }

    /// Replaces the rule called `name`.
    fn filter(&self, name: &str, rule: &str) -> Result<()> {
        // Declaring a table before deleting it makes deleting safe when there is none.
        let script = format!(
            "table inet {name}\ndelete table inet {name}\n\
             table inet {name} {{\nchain in {{\ntype filter hook input priority 0\n{rule}\n}}\n}}\n"
        );
        nft(Some(&self.namespace), &script)
    }

    /// Captures what passes `data0` into `<folder>/capture.pcap` until the process is dropped;
    /// `filter` is tcpdump's.
    ///
    /// # Errors
    /// When tcpdump is missing, or does not begin to listen.
    pub async fn capture(&self, folder: &Path, filter: &str) -> Result<Process> {
        let mut tcpdump = Command::new(component::find("tcpdump")?);
        // -U: each packet is written when it came; -s 0: whole packets; -Z: it keeps writing as root.
        tcpdump
            .args(["-i", "data0", "-U", "-s", "0", "-Z", "root", "-w"])
            .arg(folder.join("capture.pcap"))
            .arg(filter);
        let mut process = Process::start("capture", &self.command(&tcpdump)?, folder)?;
        let log = folder.join("capture.err");
        process
            .ready(async || {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                log.contains("listening on").then_some(())
            })
            .await?;
        Ok(process)
    }
}

/// Returns addresses as nft lists them.
fn list(addresses: &[Ipv4Addr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
    addresses.join(", ")
}
