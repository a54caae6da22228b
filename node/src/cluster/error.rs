//! Why a node cannot take part in a cluster.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::config::InvalidConfig;
use super::secrets::SecretError;

/// Why the cluster cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration makes no sense.
    #[error("cluster.{key}: {error}")]
    Config {
        /// The key below `cluster`.
        key: &'static str,
        /// What is wrong with it.
        error: InvalidConfig,
    },
    /// There is no usable secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The list of denied nodes cannot be used.
    #[error("cannot use {}, which is cluster.deny_file", path.display())]
    DenyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}, which is cluster.listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A file of this room in the data folder cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The control plane cannot be set up.
    #[error("cannot set up the control plane: {0}")]
    Setup(String),
}
