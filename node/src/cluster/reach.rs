//! Where others reach this node, and where this node looks for others.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use futures_util::future::join_all;
use millrace_protocol::membership::MAX_ADDRESSES;
use tokio::sync::watch;

use super::config::{Config, JoinAddress};

/// How often names are resolved again: as DNS answers of a headless service live.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

/// The same after a failure: at a start of the whole host, the resolver may come later.
const RESOLVE_AGAIN: Duration = Duration::from_secs(2);

/// How long the resolver may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Most addresses that are taken from one name.
const MAX_RESOLVED: usize = 256;

/// The addresses that a node announces.
#[derive(Clone, Debug)]
pub(super) struct OwnAddresses {
    /// Best first.
    known: Vec<SocketAddr>,
    /// The port, as long as the addresses are to be found out.
    open: Option<u16>,
}

impl OwnAddresses {
    /// Knows what the configuration says: `listening` is where this node listens.
    pub(super) fn new(config: &Config, listening: SocketAddr) -> Self {
        if let Some(advertise) = config.advertise {
            let known = vec![advertise];
            return Self { known, open: None };
        }
        match listening.ip().is_unspecified() {
            true => Self {
                known: Vec::new(),
                open: Some(listening.port()),
            },
            false => Self {
                known: vec![listening],
                open: None,
            },
        }
    }

    pub(super) fn get(&self) -> &[SocketAddr] {
        &self.known
    }

    /// Notes an address of this host at which others have reached it, or from which it reaches
    /// others. Returns whether that is news.
    pub(super) fn learn(&mut self, ip: IpAddr) -> bool {
        let Some(port) = self.open else { return false };
        let address = SocketAddr::new(ip.to_canonical(), port);
        let useless = is_useless(&address.ip());
        if useless || self.known.len() >= MAX_ADDRESSES || self.known.contains(&address) {
            return false;
        }
        self.known.push(address);
        // Only nodes on the same host reach the loopback address.
        self.known.sort_by_key(|address| address.ip().is_loopback());
        true
    }
}

/// Whether an address means nothing to another host, or needs to be told which interface is meant.
fn is_useless(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_unicast_link_local(),
    }
}

/// Returns the address of this host from which packets to `remote` leave; sends none.
///
/// # Errors
/// What the system said, for example that there is no route.
pub(super) fn local_ip_towards(remote: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

/// What a configured address to join has led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) join: JoinAddress,
    /// What the last answer said. It stays while the resolver fails: it is still worth trying.
    pub(super) addresses: Vec<SocketAddr>,
    /// Why there is no answer now.
    pub(super) failure: Option<String>,
}

impl Resolved {
    /// Returns what is known of an address before anybody was asked.
    fn pending(join: &JoinAddress) -> Self {
        Self {
            join: join.clone(),
            addresses: Vec::new(),
            failure: Some("being looked up".to_owned()),
        }
    }

    fn update(&mut self, outcome: Result<Vec<SocketAddr>, String>) {
        match outcome {
            Ok(addresses) => (self.addresses, self.failure) = (addresses, None),
            Err(failure) => self.failure = Some(failure),
        }
    }
}

/// Resolves the configured addresses over and over, until nobody listens any more.
///
/// Each is resolved by itself and published when its answer is there, so that a name server that
/// does not answer keeps nobody from joining by another address. Entries are in the order of
/// `joins`.
pub(super) async fn keep_resolving(joins: Vec<JoinAddress>, found: watch::Sender<Vec<Resolved>>) {
    found.send_replace(joins.iter().map(Resolved::pending).collect());
    let each = joins.iter().enumerate();
    join_all(each.map(|(index, join)| keep_resolving_one(join, index, &found))).await;
}

async fn keep_resolving_one(
    join: &JoinAddress,
    index: usize,
    found: &watch::Sender<Vec<Resolved>>,
) {
    while !found.is_closed() {
        let outcome = tokio::select! {
            outcome = resolve(join) => outcome,
            () = found.closed() => return,
        };
        let failed = outcome.is_err();
        found.send_modify(|resolved| resolved[index].update(outcome));
        let pause = if failed { RESOLVE_AGAIN } else { RESOLVE_EVERY };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = found.closed() => {}
        }
    }
}

async fn resolve(join: &JoinAddress) -> Result<Vec<SocketAddr>, String> {
    let looking = tokio::net::lookup_host(join.name());
    match tokio::time::timeout(RESOLVE_TIMEOUT, looking).await {
        Ok(Ok(found)) => Ok(found.take(MAX_RESOLVED).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the name server does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn what_is_configured_is_what_is_announced() {
        let listening: SocketAddr = "10.0.0.1:5050".parse().expect("an address");
        let mut config = Config::default();
        let mut own = OwnAddresses::new(&config, listening);
        assert!(!own.learn(ip("10.0.0.2")));
        assert_eq!(own.get(), [listening]);
        config.advertise = "203.0.113.9:7000".parse().ok();
        let own = OwnAddresses::new(&config, listening);
        assert_eq!(own.get(), [SocketAddr::new(ip("203.0.113.9"), 7000)]);
    }

    #[test]
    fn an_open_address_is_found_out_and_loopback_comes_last() {
        let listening: SocketAddr = "0.0.0.0:5050".parse().expect("an address");
        let mut own = OwnAddresses::new(&Config::default(), listening);
        assert!(own.get().is_empty());
        assert!(own.learn(ip("127.0.0.1")));
        assert!(own.learn(ip("10.0.0.1")));
        assert!(!own.learn(ip("10.0.0.1")));
        assert!(!own.learn(ip("::ffff:10.0.0.1")), "the same address");
        assert!(!own.learn(ip("fe80::1")));
        let own: Vec<IpAddr> = own.get().iter().map(SocketAddr::ip).collect();
        assert_eq!(own, [ip("10.0.0.1"), ip("127.0.0.1")]);
    }

    #[test]
    fn what_a_resolver_said_outlives_its_failures_and_not_its_next_answer() {
        let addresses = |port| vec![SocketAddr::new(ip("10.0.0.1"), port)];
        let join = "build1:5050".parse().expect("an address");
        let mut resolved = Resolved::pending(&join);
        assert!(resolved.failure.is_some(), "nobody has answered yet");
        resolved.update(Ok(addresses(1)));
        assert_eq!(
            (&resolved.addresses, &resolved.failure),
            (&addresses(1), &None)
        );
        resolved.update(Err("no answer".to_owned()));
        assert_eq!(resolved.addresses, addresses(1));
        assert_eq!(resolved.failure.as_deref(), Some("no answer"));
        resolved.update(Ok(addresses(2)));
        assert_eq!(
            (&resolved.addresses, &resolved.failure),
            (&addresses(2), &None)
        );
    }

    #[test]
    fn the_way_to_loopback_is_loopback() {
        let remote: SocketAddr = "127.0.0.1:9".parse().expect("an address");
        assert_eq!(local_ip_towards(remote).expect("a route"), ip("127.0.0.1"));
    }
}
