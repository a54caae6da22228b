//! Settings of TLS: `http.tls`, in the words of the Docker registry.

use std::path::PathBuf;

use serde::Deserialize;

/// Which files, and what is asked of clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// PEM file of the chain, the node's own certificate first; absent means no TLS.
    pub certificate: Option<PathBuf>,
    /// PEM file of its private key.
    pub key: Option<PathBuf>,
    /// PEM files of the authorities that sign client certificates; empty asks for none.
    pub clientcas: Vec<PathBuf>,
    /// Whether a client must have a certificate. Absent: it must, unless passwords are configured
    /// as well; then either lets a client in.
    pub clientauth: Option<ClientAuth>,
    /// Oldest version that is spoken, default 1.2.
    pub minimumtls: MinimumTls,
    /// Whether clients may also speak plain HTTP on this address, default false. Then nothing
    /// protects the passwords and the content of those who do.
    pub allow_plain: bool,
}

impl Config {
    /// Whether a chain is configured; the Docker registry takes an empty path for none.
    pub fn is_on(&self) -> bool {
        let is_named = |path: &Option<PathBuf>| {
            path.as_ref()
                .is_some_and(|path| !path.as_os_str().is_empty())
        };
        is_named(&self.certificate) || is_named(&self.key)
    }
}

/// Whether a client must have a certificate; the words are those of the Docker registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ClientAuth {
    /// Without a certificate there is no connection.
    #[serde(rename = "require-and-verify-client-cert")]
    Require,
    /// Who has one is known by it; who has none may do without.
    #[serde(rename = "verify-client-cert-if-given")]
    IfGiven,
}

/// Oldest version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum MinimumTls {
    /// 1.2 and 1.3.
    #[default]
    #[serde(rename = "tls1.2")]
    Tls12,
    /// 1.3 alone.
    #[serde(rename = "tls1.3")]
    Tls13,
}
