//! Hosts of their own on this machine: network namespaces whose links have a rate, break, and lie
//! at two sites far from each other.
//!
//! Every host has two links. `data0` carries what nodes say to each other and what they fetch; its
//! rate is limited, its packets are dropped, its traffic is captured. `door0` is the test's own
//! way to the node: clients, metrics and status, never limited. Packets between sites travel
//! through a [`Wan`], because the kernels that tests run on have no `netem`.
//!
//! ```text
//!   test (root namespace)        site 0: 198.18.s.0/24             site 1: 198.18.s+1.0/24
//!   198.19.s.254 ── door bridge ── hosts' door0
//!   198.18.s.254 ───────────────── bridge ── hosts' data0 ··wan0·· bridge ── hosts' data0
//!   198.18.s+1.254 ──────────────────────────────────────────────── bridge
//! ```
//!
//! It needs root. What it made it removes when it is dropped, also by a panic; what a killed test
//! left behind is removed by the next. The addresses are those that RFC 2544 sets aside for tests.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

mod command;
mod host;
mod names;
mod wan;

pub(crate) use command::with_resolver;
pub use host::Host;
pub use names::NameServer;
pub use wan::Wan;

use command::{ip, ip_batch};

/// Namespaces of all tests begin with this.
const PREFIX: &str = "millrace-";

/// The third byte of addresses is a slot: two neighbouring ones per network, one per site.
const SLOTS: u8 = 255;

/// Sites of one network at most: a WAN has two ends.
const MAX_SITES: usize = 2;

/// Hosts begin at this last byte; lower ones are the bridges' own.
const FIRST_HOST: u8 = 10;

/// Hosts of one site at most: up to .253, since .254 is the test's.
const MAX_HOSTS: usize = 244;

/// Networks that this process has made, for their names.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A network of hosts; removed with the value.
#[derive(Debug)]
pub struct Net {
    name: String,
    slot: u8,
    sites: usize,
    hosts: Vec<Host>,
    wan: Option<Wan>,
}

impl Net {
    /// Makes one site of `hosts` hosts.
    ///
    /// # Errors
    /// When the test does not run as root, or a tool is missing.
    pub async fn of(hosts: usize) -> Result<Self> {
        Self::of_sites(&[hosts]).await
    }

    /// Makes sites of that many hosts each, two at most; hosts are numbered through.
    ///
    /// # Errors
    /// When the test does not run as root, or a tool is missing.
    pub async fn of_sites(sites: &[usize]) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces need root: run the tests as root"
        );
        ensure!((1..=MAX_SITES).contains(&sites.len()), "one site or two");
        ensure!(
            sites.iter().all(|hosts| *hosts <= MAX_HOSTS),
            "too many hosts"
        );
        remove_abandoned()?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let mut net = Self {
            name: format!("{PREFIX}{}-{number}", std::process::id()),
            slot: 0,
            sites: sites.len(),
            hosts: Vec::new(),
            wan: None,
        };
        net.make_doors()?;
        for (site, hosts) in sites.iter().enumerate() {
            net.make_site(site)?;
            for _ in 0..*hosts {
                net.make_host(site)?;
            }
        }
        if sites.len() > 1 {
            net.join_sites().await?;
        }
        Ok(net)
    }

    /// Returns the hosts, those of the first site first.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Returns the address of the test itself as hosts of `site` reach it over `data0`: where
    /// upstreams listen. Its link is not limited, and no packet to it crosses the WAN.
    pub fn upstream_address(&self, site: usize) -> Ipv4Addr {
        self.data_address(site, 254)
    }

    /// Returns what lies between the two sites.
    ///
    /// # Panics
    /// When there is only one.
    pub fn wan(&self) -> &Wan {
        self.wan.as_ref().expect("a network of two sites")
    }

    /// Drops every packet between the hosts `left` and `right`, silently, as a broken switch does.
    ///
    /// # Errors
    /// When nft is missing.
    pub fn split(&self, left: &[usize], right: &[usize]) -> Result<()> {
        self.between(left, right, Host::ignore)
    }

    /// Refuses TCP connections between the hosts `left` and `right` that are not there yet; what is
    /// sent over UDP goes through.
    ///
    /// # Errors
    /// When nft is missing.
    pub fn refuse_tcp(&self, left: &[usize], right: &[usize]) -> Result<()> {
        self.between(left, right, Host::refuse_tcp)
    }

    /// Sets a rule at each host of either side about all of the other side.
    fn between(
        &self,
        left: &[usize],
        right: &[usize],
        rule: fn(&Host, &[Ipv4Addr]) -> Result<()>,
    ) -> Result<()> {
        for (here, there) in [(left, right), (right, left)] {
            let there: Vec<Ipv4Addr> = there.iter().map(|host| self.hosts[*host].data()).collect();
            for host in here {
                rule(&self.hosts[*host], &there)?;
            }
        }
        Ok(())
    }

    /// Ends every [`Net::split`].
    ///
    /// # Errors
    /// When nft is missing.
    pub fn heal(&self) -> Result<()> {
        self.hosts.iter().try_for_each(|host| host.ignore(&[]))
    }

    fn door_bridge(&self) -> String {
        format!("{}-doors", self.name)
    }

    fn site(&self, site: usize) -> String {
        format!("{}-site{site}", self.name)
    }

    fn data_address(&self, site: usize, last: u8) -> Ipv4Addr {
        let slot = self.slot + u8::try_from(site).expect("at most two sites");
        Ipv4Addr::new(198, 18, slot, last)
    }

    /// Makes the bridge of the doors, and with it claims a slot: the name of an interface of the
    /// root namespace can be taken only once.
    fn make_doors(&mut self) -> Result<()> {
        let doors = self.door_bridge();
        ip(&["netns", "add", &doors])?;
        ip_batch(
            Some(&doors),
            "link add bridge type bridge\nlink set bridge up\n",
        )?;
        let step = u8::try_from(MAX_SITES).expect("a small number");
        let mut slots = (0..SLOTS - 1).step_by(step.into());
        let slot = slots.find(|slot| {
            if is_being_removed(*slot) {
                return false;
            }
            let link = format!("mrdoor{slot}");
            let words = [
                "link", "add", &link, "type", "veth", "peer", "name", "test", "netns",
            ];
            ip(&[&words[..], &[&doors]].concat()).is_ok()
        });
        self.slot = slot.context("no free slot for a network, or links cannot be made")?;
        let slot = self.slot;
        ip_batch(Some(&doors), "link set test master bridge up\n")?;
        ip_batch(
            None,
            &format!("addr add 198.19.{slot}.254/24 dev mrdoor{slot}\nlink set mrdoor{slot} up\n"),
        )
    }

    /// Makes the bridge of a site and the test's own link to it.
    fn make_site(&self, site: usize) -> Result<()> {
        let namespace = self.site(site);
        ip(&["netns", "add", &namespace])?;
        let address = self.data_address(site, 1);
        ip_batch(
            Some(&namespace),
            &format!(
                "link add bridge type bridge\naddr add {address}/24 dev bridge\nlink set bridge up\n"
            ),
        )?;
        let link = data_link(self.slot, site);
        let test = self.data_address(site, 254);
        ip_batch(
            None,
            &format!(
                "link add {link} type veth peer name test netns {namespace}\n\
                 addr add {test}/24 dev {link}\nlink set {link} up\n"
            ),
        )?;
        ip_batch(Some(&namespace), "link set test master bridge up\n")
    }

    fn make_host(&mut self, site: usize) -> Result<()> {
        let in_site = self.hosts.iter().filter(|host| host.site() == site).count();
        let last = |count: usize| FIRST_HOST + u8::try_from(count).expect("at most MAX_HOSTS");
        let number = self.hosts.len();
        let host = Host::new(
            format!("{}-host{number}", self.name),
            (self.site(site), format!("host{number}")),
            site,
            self.data_address(site, last(in_site)),
            Ipv4Addr::new(198, 19, self.slot, last(number)),
        );
        host.make(&self.door_bridge(), self.data_address(site, 1))?;
        self.hosts.push(host);
        Ok(())
    }

    /// Lets packets to the other site go through the WAN.
    async fn join_sites(&mut self) -> Result<()> {
        for site in [0, 1] {
            // Else the line, which knows IPv4 alone, would count what the kernel says in IPv6 by itself.
            let quiet = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6";
            self.in_site(site, quiet)?;
        }
        let wan = Wan::between(&self.site(0), &self.site(1)).await?;
        for (here, there) in [(0, 1), (1, 0)] {
            let network = self.data_address(there, 0);
            let namespace = self.site(here);
            ip_batch(
                Some(&namespace),
                &format!("route add {network}/24 dev wan0\n"),
            )?;
            self.in_site(here, "echo 1 > /proc/sys/net/ipv4/ip_forward")?;
        }
        self.wan = Some(wan);
        Ok(())
    }

    /// Runs a line of shell in the namespace of a site.
    fn in_site(&self, site: usize, line: &str) -> Result<()> {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]);
        command::run(&command::inside(&self.site(site), &shell)?)?;
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.wan = None;
        let hosts = self.hosts.iter().map(|host| host.namespace().to_owned());
        let sites = (0..self.sites).map(|site| self.site(site));
        // A link ends with the namespace of either end.
        for namespace in hosts.chain(sites).chain([self.door_bridge()]) {
            // Missing when making it had failed.
            let _ = ip(&["netns", "del", &namespace]);
        }
    }
}

/// Returns the name of the test's own link to a site.
fn data_link(slot: u8, site: usize) -> String {
    format!("mrdata{}", usize::from(slot) + site)
}

/// Whether links of the network that had this slot are still there: the kernel takes down what is in a
/// removed namespace later, and in any order.
fn is_being_removed(slot: u8) -> bool {
    let mut links = (0..MAX_SITES).map(|site| data_link(slot, site));
    links.any(|link| ip(&["link", "show", &link]).is_ok())
}

/// Removes namespaces of tests that were killed before they could do it themselves.
fn remove_abandoned() -> Result<()> {
    let Ok(folder) = Path::new("/run/netns").read_dir() else {
        // No namespace was ever named on this machine.
        return Ok(());
    };
    for entry in folder {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let maker = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if maker.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            // Another test may have been quicker.
            let _ = ip(&["netns", "del", name]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::{Duration, Instant};

    use super::*;

    /// Longer than anything here takes on a busy machine; only for what must not arrive it is
    /// waited out, so those waits are shorter.
    const LIMIT: Duration = Duration::from_secs(10);
    const NEVER: Duration = Duration::from_millis(300);

    /// A socket of `host` at its port 9.
    fn udp(host: &Host) -> UdpSocket {
        let bound = host.run(|| Ok(UdpSocket::bind((host.data(), 9))?));
        bound.expect("a socket of the host")
    }

    /// Tells whether a datagram from one host reaches the other, and how long it took.
    fn reaches(from: &UdpSocket, to: &UdpSocket, limit: Duration) -> Option<Duration> {
        let start = Instant::now();
        let address = to.local_addr().expect("bound");
        from.send_to(b"hello", address).expect("sent");
        to.set_read_timeout(Some(limit)).expect("a limit");
        to.recv(&mut [0; 16]).ok().map(|_| start.elapsed())
    }

    /// Sends `size` bytes over TCP and returns how long that took.
    fn send(from: &Host, to: &Host, size: usize) -> Result<Duration> {
        let listener = to.run(|| Ok(TcpListener::bind((to.data(), 0))?))?;
        let address = listener.local_addr()?;
        std::thread::scope(|scope| {
            let receiver = scope.spawn(move || -> Result<usize> {
                let (mut stream, _) = listener.accept()?;
                Ok(stream.read_to_end(&mut Vec::new())?)
            });
            let start = Instant::now();
            let mut stream = from.run(|| Ok(TcpStream::connect_timeout(&address, LIMIT)?))?;
            stream.write_all(&vec![7; size])?;
            drop(stream);
            let received = receiver.join().expect("no panic")?;
            ensure!(received == size, "{received} bytes");
            Ok(start.elapsed())
        })
    }

    #[tokio::test]
    async fn a_split_is_silent_and_heals_and_a_firewall_stops_udp_alone() -> Result<()> {
        let net = Net::of(3).await?;
        let hosts = net.hosts();
        let sockets: Vec<UdpSocket> = hosts.iter().map(udp).collect();
        net.split(&[0], &[1])?;
        assert_eq!(reaches(&sockets[0], &sockets[1], NEVER), None);
        assert_eq!(reaches(&sockets[1], &sockets[0], NEVER), None);
        reaches(&sockets[2], &sockets[1], LIMIT).expect("host 2 is not split off");
        net.heal()?;
        reaches(&sockets[0], &sockets[1], LIMIT).expect("healed");

        hosts[2].block_udp()?;
        assert_eq!(reaches(&sockets[0], &sockets[2], NEVER), None);
        send(&hosts[0], &hosts[2], 1000)?;
        hosts[2].allow_udp()?;
        reaches(&sockets[0], &sockets[2], LIMIT).expect("allowed again");
        Ok(())
    }

    #[tokio::test]
    async fn hosts_refuse_connections_and_take_datagrams() -> Result<()> {
        let net = Net::of(3).await?;
        let hosts = net.hosts();
        let sockets: Vec<UdpSocket> = hosts.iter().map(udp).collect();
        net.refuse_tcp(&[0], &[1])?;
        for (from, to) in [(0, 1), (1, 0)] {
            let to_host = &hosts[to];
            let listener = to_host.run(|| Ok(TcpListener::bind((to_host.data(), 0))?))?;
            let address = listener.local_addr()?;
            let refused = hosts[from].run(|| Ok(TcpStream::connect_timeout(&address, LIMIT)?));
            let refused = refused.expect_err("a connection");
            let refused: std::io::Error = refused.downcast()?;
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            reaches(&sockets[from], &sockets[to], LIMIT).expect("UDP goes through");
        }
        send(&hosts[0], &hosts[2], 1000)?;
        Ok(())
    }

    #[tokio::test]
    async fn a_limited_link_carries_no_more_than_its_rate() -> Result<()> {
        let net = Net::of(2).await?;
        let hosts = net.hosts();
        hosts[1].limit(20_000_000)?;
        // 2 MB at 2.5 MB/s are 0.8 s, less the burst of 64 KiB.
        let limited = send(&hosts[0], &hosts[1], 2_000_000)?;
        assert!(limited > Duration::from_millis(700), "{limited:?}");
        let other_way = send(&hosts[1], &hosts[0], 2_000_000)?;
        assert!(other_way > Duration::from_millis(700), "{other_way:?}");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn packets_between_sites_are_late_counted_and_cut() -> Result<()> {
        let net = Net::of_sites(&[1, 1]).await?;
        let [left, right] = [0, 1].map(|host| udp(&net.hosts()[host]));
        reaches(&left, &right, LIMIT).expect("the sites are joined");
        net.wan().set_round_trip(Duration::from_millis(80));
        let late = reaches(&left, &right, LIMIT).expect("carried");
        assert!(late >= Duration::from_millis(40), "{late:?}");
        let before = net.wan().carried_bytes();
        reaches(&right, &left, LIMIT).expect("carried");
        // 20 bytes of IPv4, 8 of UDP, 5 of content.
        assert_eq!(net.wan().carried_bytes() - before, 33);
        net.wan().cut(true);
        assert_eq!(reaches(&left, &right, NEVER), None);
        Ok(())
    }

    #[test]
    fn a_slot_is_left_alone_until_the_links_of_its_last_network_are_gone() -> Result<()> {
        // So many networks at a time that one has this slot are never there.
        let slot = SLOTS - 1 - u8::try_from(MAX_SITES)?;
        for link in [data_link(slot, 0), data_link(slot, 1)] {
            assert!(!is_being_removed(slot), "{link}");
            ip(&[
                "link", "add", &link, "type", "veth", "peer", "name", "mrpeer",
            ])?;
            let is_seen = is_being_removed(slot);
            ip(&["link", "del", &link])?;
            assert!(is_seen, "{link}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_network() -> Result<()> {
        let net = Net::of(1).await?;
        let namespace = Path::new("/run/netns").join(net.hosts()[0].namespace());
        assert!(namespace.exists());
        drop(net);
        assert!(!namespace.exists());
        Ok(())
    }
}
