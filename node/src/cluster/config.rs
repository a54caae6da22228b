//! Settings of the cluster: `cluster` in the configuration.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use millrace_protocol::membership::{MAX_DENIED, is_zone};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::placement::MAX_WEIGHT;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::secrets::{SecretError, SecretSource, SecretText};

/// Where a node listens that is told to join but not where to listen.
pub const DEFAULT_PORT: u16 = 5050;

/// Settings of the cluster; without `listen` and `join` there is none.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address to listen on: TCP for control, UDP for content. Default with `join`:
    /// `0.0.0.0:5050`. Peers must reach it; one that they do not reach is passed over.
    pub listen: Option<SocketAddr>,
    /// Where others reach this node. Default: the addresses of this host that others have reached
    /// it at. Needed behind address translation, as in a container with a network of its own.
    pub advertise: Option<SocketAddr>,
    /// File of secrets, one a line, at most four: the first is preferred, all admit. Read anew
    /// while the node runs. It must not be usable by every user.
    pub secret_file: Option<PathBuf>,
    /// The secret itself, for the environment: `MILLRACE_CLUSTER_SECRET`.
    pub secret: Option<SecretText>,
    /// Any nodes of the cluster; all others are learnt from them. Names are resolved again every
    /// 30 s, all their addresses are tried.
    pub join: Vec<JoinAddress>,
    /// Nodes of one zone are near each other, default `default`. Content crosses from one zone to
    /// another once; a wrong zone sends it over slow links.
    pub zone: String,
    /// Share of the ring relative to other nodes, default 1, at most 16; 0 for hosts that come and
    /// go: a full member that owns nothing.
    pub weight: u32,
    /// Copies that owners keep in each zone, default 1, at most 3. More survive more nodes, and
    /// take as much more of everybody's disk.
    pub replicas: u32,
    /// Ids of nodes that are kept out, whatever they know; all members heed it. Read at start:
    /// who is to be kept out without a restart belongs into `deny_file`. The secret should be
    /// replaced as well.
    pub deny: Vec<NodeIdText>,
    /// File of further such ids, one a line, read anew while the node runs.
    pub deny_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            advertise: None,
            secret_file: None,
            secret: None,
            join: Vec::new(),
            zone: "default".to_owned(),
            weight: 1,
            replicas: 1,
            deny: Vec::new(),
            deny_file: None,
        }
    }
}

/// Most copies that can be asked for: owners are chosen from three.
const MAX_REPLICAS: u32 = 3;

/// Why a configuration of the cluster cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// The zone is no name.
    #[error("expected a name of letters, digits, `.`, `_` and `-`, at most 64")]
    Zone,
    /// The weight is too great.
    #[error("more than {MAX_WEIGHT}")]
    Weight,
    /// There cannot be so many copies, or so few.
    #[error("expected a number from 1 to {MAX_REPLICAS}")]
    Replicas,
    /// Nobody can reach the advertised address.
    #[error("expected an address and a port that others can reach")]
    Advertise,
    /// Too many nodes are denied.
    #[error("more than {MAX_DENIED} nodes")]
    Denied,
}

impl Config {
    /// Whether there is to be a cluster.
    pub fn is_enabled(&self) -> bool {
        self.listen.is_some() || !self.join.is_empty()
    }

    /// Returns the key and the first thing that is wrong with it.
    ///
    /// # Errors
    /// [`InvalidConfig`].
    pub fn check(&self) -> Result<(), (&'static str, InvalidConfig)> {
        let unreachable =
            |address: &SocketAddr| address.port() == 0 || address.ip().is_unspecified();
        if !is_zone(&self.zone) {
            return Err(("zone", InvalidConfig::Zone));
        }
        if self.weight > MAX_WEIGHT {
            return Err(("weight", InvalidConfig::Weight));
        }
        if !(1..=MAX_REPLICAS).contains(&self.replicas) {
            return Err(("replicas", InvalidConfig::Replicas));
        }
        if self.advertise.as_ref().is_some_and(unreachable) {
            return Err(("advertise", InvalidConfig::Advertise));
        }
        if self.deny.len() > MAX_DENIED {
            return Err(("deny", InvalidConfig::Denied));
        }
        Ok(())
    }

    /// Returns where to listen.
    pub fn listen_address(&self) -> SocketAddr {
        let default = SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT));
        self.listen.unwrap_or(default)
    }

    /// Returns where the secrets come from; a file wins.
    pub(super) fn secret_source(&self) -> Result<SecretSource, SecretError> {
        match (&self.secret_file, &self.secret) {
            (Some(path), _) => Ok(SecretSource::File(path.clone())),
            (None, Some(text)) => Ok(SecretSource::Text(text.clone())),
            (None, None) => Err(SecretError::Unset),
        }
    }
}

/// A node to join: `host:port`, or `dns:name:port`; all addresses of the name are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinAddress {
    host: String,
    port: u16,
}

/// A text names no node to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected host:port or dns:name:port, such as build1.corp:5050")]
pub struct InvalidJoinAddress;

impl JoinAddress {
    /// Returns what the resolver is asked.
    pub(super) fn name(&self) -> (&str, u16) {
        (&self.host, self.port)
    }
}

impl FromStr for JoinAddress {
    type Err = InvalidJoinAddress;

    fn from_str(text: &str) -> Result<Self, InvalidJoinAddress> {
        let text = text.strip_prefix("dns:").unwrap_or(text);
        let (host, port) = text.rsplit_once(':').ok_or(InvalidJoinAddress)?;
        let port = port.parse().map_err(|_| InvalidJoinAddress)?;
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        // An IPv6 address without brackets would lose its last part to the port.
        let ambiguous = bracketed.is_none() && host.contains(':');
        let printable = host.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || ambiguous || !printable || port == 0 {
            return Err(InvalidJoinAddress);
        }
        let host = host.to_owned();
        Ok(Self { host, port })
    }
}

impl fmt::Display for JoinAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl<'de> Deserialize<'de> for JoinAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A node's id as people write it: 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdText(pub NodeId);

impl<'de> Deserialize<'de> for NodeIdText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_addresses_are_hosts_with_ports() {
        for (text, shown) in [
            ("build1.corp:5050", "build1.corp:5050"),
            ("dns:millrace.default.svc:5050", "millrace.default.svc:5050"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("[fd00::1]:5050", "[fd00::1]:5050"),
        ] {
            let address: JoinAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), shown);
        }
        for text in [
            "",
            "build1",
            "build1:",
            "build1:0",
            ":5050",
            "fd00::1:5050",
            "a b:1",
            "a:99999",
        ] {
            assert_eq!(
                text.parse::<JoinAddress>(),
                Err(InvalidJoinAddress),
                "{text}"
            );
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_key() {
        let wrong = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().map_err(|(key, _)| key)
        };
        assert_eq!(wrong(|_| ()), Ok(()));
        assert_eq!(wrong(|config| config.zone = "a b".into()), Err("zone"));
        assert_eq!(wrong(|config| config.weight = 17), Err("weight"));
        assert_eq!(wrong(|config| config.replicas = 0), Err("replicas"));
        let nowhere = |config: &mut Config| config.advertise = "0.0.0.0:1".parse().ok();
        assert_eq!(wrong(nowhere), Err("advertise"));
    }

    #[test]
    fn a_cluster_begins_with_an_address() {
        let mut config = Config::default();
        assert!(!config.is_enabled());
        config.join.push("build1:5050".parse().expect("an address"));
        assert!(config.is_enabled());
        assert_eq!(config.listen_address().port(), DEFAULT_PORT);
    }
}
