//! Settings of the listeners: `http`.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::Error as _;

use crate::registry::UnavailableBlob;
use crate::{tls, units};

/// Settings of the clients' and the operators' door.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Where clients are answered, default `127.0.0.1:5000`. Without authentication, anyone who
    /// reaches it may read.
    pub addr: ListenAddr,
    /// A further listener for this host, without TLS and authentication; none by default.
    pub local: LocalConfig,
    /// TLS on `addr`; none by default.
    pub tls: tls::Config,
    /// How long running answers may take to finish after SIGTERM, default 30 s. Too short cuts
    /// pulls off, too long delays a restart.
    #[serde(with = "units::duration")]
    pub draintimeout: Duration,
    /// What a blob that cannot be had right now is answered with.
    pub unavailable_blob: UnavailableBlob,
    /// The operators' door.
    pub debug: DebugConfig,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            addr: ListenAddr::new("127.0.0.1", 5000),
            local: LocalConfig::default(),
            tls: tls::Config::default(),
            draintimeout: Duration::from_secs(30),
            unavailable_blob: UnavailableBlob::default(),
            debug: DebugConfig::default(),
        }
    }
}

/// Settings of the listener for this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalConfig {
    /// A loopback address, or `unix:` and the path of a socket; absent means no such listener.
    pub addr: Option<LocalAddr>,
}

/// Where only this host comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalAddr {
    /// A port on a loopback address.
    Port(ListenAddr),
    /// A socket in the file system.
    Socket(PathBuf),
}

impl fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(addr) => addr.fmt(f),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for LocalAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let path = text
            .strip_prefix("unix:")
            .or(text.starts_with('/').then_some(&text));
        if let Some(path) = path {
            if path.starts_with('/') {
                return Ok(Self::Socket(path.into()));
            }
            let message = format_args!("expected unix: and a path from the root, found `{text}`");
            return Err(D::Error::custom(message));
        }
        let addr: ListenAddr = text.parse().map_err(D::Error::custom)?;
        if addr.is_loopback() {
            return Ok(Self::Port(addr));
        }
        Err(D::Error::custom(format_args!(
            "expected a loopback address or unix:/path, found `{text}`: whoever reaches this \
             listener reads without TLS and authentication"
        )))
    }
}

/// Settings of the debug address: `/metrics`, `/healthz`, `/readyz`, `/status`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DebugConfig {
    /// Where operators are answered, default `127.0.0.1:5001`. It shows names of repositories.
    pub addr: ListenAddr,
    /// Whether and where metrics are.
    pub prometheus: PrometheusConfig,
}

impl Default for DebugConfig {
    fn default() -> Self {
        Self {
            addr: ListenAddr::new("127.0.0.1", 5001),
            prometheus: PrometheusConfig::default(),
        }
    }
}

/// Settings of the metrics on the debug address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrometheusConfig {
    /// Whether there are metrics, default true (the Docker registry's default is false).
    pub enabled: bool,
    /// Their path, default `/metrics`; begins with `/`.
    #[serde(deserialize_with = "path")]
    pub path: String,
}

impl Default for PrometheusConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            path: "/metrics".to_owned(),
        }
    }
}

fn path<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let path = String::deserialize(deserializer)?;
    // Axum gives `{` a meaning in routes.
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
    if ["/healthz", "/readyz", "/status"].contains(&path.as_str()) {
        let message = format_args!("`{path}` is taken; choose a path such as /metrics");
        return Err(D::Error::custom(message));
    }
    if path.starts_with('/') && path.len() > 1 && path.chars().all(plain) {
        return Ok(path);
    }
    Err(D::Error::custom(format_args!(
        "expected a path such as /metrics, found `{path}`"
    )))
}

/// Address to listen on: `host:port`, or `:port` for every interface.
///
/// The host may be a name; it is looked up when the listener is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddr {
    host: Option<String>,
    port: u16,
}

impl ListenAddr {
    /// Returns the address `host:port`.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        let host = Some(host.into());
        Self { host, port }
    }

    /// Returns the port; 0 means any free one.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Looks the host up; the first address that can be bound is the one to listen on.
    ///
    /// Without a host these are all interfaces with IPv6, which on Linux takes IPv4 too, then
    /// those with IPv4 for hosts that have no IPv6. Blocks while a name is looked up.
    ///
    /// # Errors
    /// When the name cannot be looked up.
    pub fn socket_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        match &self.host {
            None => Ok(vec![
                (Ipv6Addr::UNSPECIFIED, self.port).into(),
                (Ipv4Addr::UNSPECIFIED, self.port).into(),
            ]),
            Some(host) => Ok((host.as_str(), self.port).to_socket_addrs()?.collect()),
        }
    }

    /// Returns `host:port` by which this host reaches it.
    pub fn contact(&self) -> String {
        let host = match self.host.as_deref() {
            None | Some("0.0.0.0") => "127.0.0.1".to_owned(),
            Some("::") => "[::1]".to_owned(),
            Some(host) if host.contains(':') => format!("[{host}]"),
            Some(host) => host.to_owned(),
        };
        format!("{host}:{}", self.port)
    }

    /// Whether only this host can reach it.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.as_deref();
        host.is_some_and(|host| match host.parse::<std::net::IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => host == "localhost",
        })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            None => write!(f, ":{}", self.port),
            Some(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Some(host) => write!(f, "{host}:{}", self.port),
        }
    }
}

/// The text is no address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address such as 127.0.0.1:5000, [::1]:5000 or :5000, found `{text}`")]
pub struct ListenAddrError {
    text: String,
}

impl FromStr for ListenAddr {
    type Err = ListenAddrError;

    fn from_str(text: &str) -> Result<Self, ListenAddrError> {
        let mistake = || ListenAddrError {
            text: text.to_owned(),
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(mistake)?;
        let port = port.parse().map_err(|_| mistake())?;
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(address) => {
                let _: Ipv6Addr = address.parse().map_err(|_| mistake())?;
                Some(address.to_owned())
            }
            None if host.is_empty() => None,
            None => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                let plain = host.chars().all(plain);
                Some(plain.then(|| host.to_owned()).ok_or_else(mistake)?)
            }
        };
        Ok(Self { host, port })
    }
}

impl<'de> Deserialize<'de> for ListenAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_registry_reads_them() {
        for (text, contact, loopback) in [
            (":5000", "127.0.0.1:5000", false),
            ("0.0.0.0:5000", "127.0.0.1:5000", false),
            ("localhost:0", "localhost:0", true),
            ("127.0.0.1:5000", "127.0.0.1:5000", true),
            ("[::1]:5000", "[::1]:5000", true),
            ("[::]:5000", "[::1]:5000", false),
            ("build1.corp:5000", "build1.corp:5000", false),
        ] {
            let addr: ListenAddr = text.parse().expect(text);
            assert_eq!(addr.to_string(), text);
            assert_eq!(addr.contact(), contact);
            assert_eq!(addr.is_loopback(), loopback, "{text}");
            if text.starts_with('b') {
                continue;
            }
            assert!(!addr.socket_addrs().expect("no name").is_empty());
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "5000",
            "::1:5000",
            "host",
            "host:",
            "host:70000",
            "http://h:1",
            "[h]:1",
            "a b:1",
        ] {
            text.parse::<ListenAddr>().expect_err(text);
        }
    }
}
