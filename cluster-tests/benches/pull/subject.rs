//! What is measured: a node of ours, or the Docker registry in its place.

use std::net::SocketAddr;

use anyhow::Result;
use millrace_cluster_tests::node::Node;
use millrace_cluster_tests::upstream::Upstream;

use crate::options::SubjectKind;

/// The repository of all blobs.
pub(crate) const REPOSITORY: &str = "bench/blobs";

/// A pull-through cache in front of one upstream, with an empty data folder of its own.
#[derive(Debug)]
pub(crate) enum Subject {
    Millrace(Node),
    DockerRegistry(Upstream),
}

impl Subject {
    /// Starts it in front of the registry at `upstream`.
    ///
    /// # Errors
    /// When it is not built, not installed, or does not start.
    pub(crate) async fn start(kind: SubjectKind, upstream: SocketAddr) -> Result<Self> {
        let url = format!("http://{upstream}");
        Ok(match kind {
            SubjectKind::Millrace => {
                let node = Node::builder()
                    .set("proxy/remoteurl", url)
                    .set("log/level", "warn");
                Self::Millrace(node.start().await?)
            }
            SubjectKind::DockerRegistry => {
                Self::DockerRegistry(Upstream::start_mirror_of(&url).await?)
            }
        })
    }

    /// Returns where clients are answered.
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Millrace(node) => node.address(),
            Self::DockerRegistry(registry) => registry.address(),
        }
    }

    /// Returns the id of the process whose time and memory count.
    pub(crate) fn process_id(&self) -> u32 {
        match self {
            Self::Millrace(node) => node.process_id(),
            Self::DockerRegistry(registry) => registry.process_id(),
        }
    }
}
