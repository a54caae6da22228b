//! The clients' door: the registry API over HTTP/1.1.
//!
//! A request goes through the files like this: `serve` accepts connections at a `door`, `greet`
//! begins one, `connection` carries its `stream` and `activity` watches it; `auth` knows who asks;
//! `routes` takes the URL apart and chooses `manifests`, `blobs` (with `multipart`), `tags` or
//! `referrers`, which ask the pull room and make an `answer`; `conditional` knows validators;
//! `respond` turns every failure into the answer that moves this client on; `body` counts the bytes
//! on their way out and writes the access log; `outlet` sends files past the HTTP library.
//!
//! This room decides nothing about where content comes from, and reads nothing that a client
//! sends beside the head of its requests.

mod activity;
mod answer;
pub mod auth;
mod blobs;
mod body;
mod conditional;
mod config;
mod connection;
mod door;
mod greet;
mod manifests;
mod metrics;
mod multipart;
mod outlet;
mod referrers;
mod respond;
mod routes;
mod serve;
mod stream;
mod tags;

use std::sync::Arc;

use crate::pull::Puller;
use crate::upstream::{Upstream, Upstreams};

pub use auth::{Admission, Htpasswd};
pub use body::Body;
pub use config::{Config, UnavailableBlob};
pub use door::{Door, Listener, Terms, UnixDoor, listen, listen_unix};
pub use outlet::Outgoing;
pub use serve::Running;

use metrics::Metrics;

/// The registry API of one node; clones share it.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    upstreams: Upstreams,
    default_upstream: Upstream,
    puller: Puller,
    metrics: Metrics,
}

impl Registry {
    /// Builds the room; [`Registry::serve`] opens it.
    pub fn new(config: Config, puller: Puller, upstreams: Upstreams) -> Self {
        let inner = Inner {
            config,
            default_upstream: upstreams.default_upstream(),
            upstreams,
            puller,
            metrics: Metrics::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Registers the room's metrics.
    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        self.inner.metrics.register(registry);
    }
}
