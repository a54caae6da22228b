//! Origin registries: how this node asks them, and what it believes of their answers.
//!
//! `pull` calls [`Upstream`] for what no nearer source has. This room knows challenges, tokens,
//! redirects, deadlines, retries, fallbacks and rate limits; it does not know what is cached, does
//! not verify content, and knows neither clients nor peers.
//!
//! One request goes through the files like this: `manifest`, `blob` or `listing` say what is asked;
//! `fetch` waits for its turn (`turns`) and chooses an endpoint; `attempt` authenticates (`challenge`,
//! `token`, `credential`, within the bounds of `confine`) and follows redirects; `transport`
//! carries each exchange, to strangers only at public addresses (`address`), through a proxy where the
//! environment names one (`proxies`), and knows when it is this node that lacks something
//! (`shortage`). `breaker` and
//! `budget` remember, per `endpoint`, what the answers say about tomorrow; `shared` exchanges
//! budgets with other nodes.

mod address;
mod attempt;
mod blob;
mod breaker;
mod budget;
mod builtin;
mod challenge;
mod check;
pub mod config;
mod confine;
mod credential;
mod endpoint;
pub mod error;
mod fetch;
mod listing;
mod manifest;
mod metrics;
mod names;
mod proxies;
mod quota;
mod secret;
mod shared;
mod shortage;
mod status;
mod token;
mod transport;
mod turns;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_protocol::oci::{Digest, Reference, RepositoryName};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::task::Tasks;

pub use blob::BlobBody;
pub use breaker::BreakerState;
pub use budget::Allowance;
pub use config::{AccessRule, Config, ConfigError, TagPolicy, TagRule, UpstreamConfig};
pub use credential::CredentialId;
pub use error::{Defect, Fault, FetchError, Limit, Outage, Retry, SetupError, Subject};
pub use listing::{Referrers, TagList};
pub use manifest::{FetchedManifest, ManifestHead};
pub use proxies::is_unusable_proxy;
pub use secret::Secret;
pub use shortage::Shortage;
pub use status::{EndpointStatus, LastError, LimitStatus, Status};
pub use turns::Turn;

use config::Timeouts;
use confine::Confines;
use credential::Credentials;
use endpoint::Endpoint;
use metrics::{Metrics, UpstreamMetrics};
use token::{TokenService, Tokens};
use transport::{ClientPool, Clients};
use turns::Turns;

/// All configured upstreams; clones share them.
#[derive(Clone, Debug)]
pub struct Upstreams {
    /// In order of their names.
    all: Arc<[Upstream]>,
    by_name: Arc<HashMap<String, Upstream>>,
    default: Upstream,
    metrics: Metrics,
}

impl Upstreams {
    /// Sets up the upstreams; none of them is contacted.
    ///
    /// The process-wide rustls crypto provider must be installed before.
    /// # Errors
    /// [`SetupError`] when the configuration is wrong or a `ca` file cannot be used.
    pub fn new(config: &Config, tasks: &Tasks) -> Result<Self, SetupError> {
        let metrics = Metrics::default();
        let mut clients = ClientPool::default();
        let mut all = HashMap::new();
        for (name, entry) in &config.upstreams {
            let clients = clients.clients(name, entry)?;
            let inner = Inner::new(name, entry, clients, metrics.of(name), tasks)?;
            all.insert(
                name.clone(),
                Upstream {
                    inner: Arc::new(inner),
                },
            );
        }
        let mut by_name: HashMap<String, Upstream> = HashMap::new();
        for (alias, name) in config.names()? {
            by_name.insert(alias, all[&name].clone());
        }
        let default = by_name
            .get(&config.default)
            .cloned()
            .ok_or_else(|| ConfigError {
                key: "upstreams".to_owned(),
                problem: config::Problem::UnknownDefault {
                    name: config.default.clone(),
                },
            })?;
        let mut all: Vec<Upstream> = all.into_values().collect();
        all.sort_by(|one, other| one.name().cmp(other.name()));
        Ok(Self {
            all: all.into(),
            by_name: Arc::new(by_name),
            default,
            metrics,
        })
    }

    /// Returns the upstream that is named exactly so, by its canonical name or an alias.
    pub fn find(&self, name_or_alias: &str) -> Option<Upstream> {
        self.by_name.get(name_or_alias).cloned()
    }

    /// Returns the upstream that a request without any name means.
    pub fn default_upstream(&self) -> Upstream {
        self.default.clone()
    }

    /// Returns what is known of every upstream now, in order of their names.
    pub fn status(&self) -> Vec<Status> {
        self.all
            .iter()
            .map(|upstream| upstream.inner.status())
            .collect()
    }

    /// Adds the metrics of this room to `registry`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}

/// One configured registry; clones share its connections, tokens and limits.
#[derive(Clone)]
pub struct Upstream {
    inner: Arc<Inner>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upstream").field(&self.inner.name).finish()
    }
}

#[derive(Debug)]
struct Inner {
    name: Arc<str>,
    credential: CredentialId,
    /// The primary one first.
    endpoints: Vec<Endpoint>,
    confines: Confines,
    clients: Clients,
    credentials: Arc<Credentials>,
    tokens: Tokens,
    timeouts: Timeouts,
    turns: Turns,
    /// Whether the last attempt at any endpoint failed.
    last_failed: AtomicBool,
    last_error: Mutex<Option<LastError>>,
    metrics: UpstreamMetrics,
}

impl Inner {
    fn new(
        name: &str,
        entry: &UpstreamConfig,
        clients: Clients,
        metrics: UpstreamMetrics,
        tasks: &Tasks,
    ) -> Result<Self, SetupError> {
        let urls = entry.check(name)?;
        let credentials = Arc::new(Credentials::new(entry, names::host_and_port(&urls[0])));
        let confines = Confines::new(
            urls.clone(),
            entry.redirect_hosts.clone(),
            entry.token_hosts.clone(),
        );
        let service = TokenService {
            clients: clients.clone(),
            confines: confines.clone(),
            credentials: credentials.clone(),
            patience: entry.timeouts.response,
            metrics: metrics.clone(),
        };
        Ok(Self {
            name: name.into(),
            credential: CredentialId::of(name, entry),
            endpoints: urls.into_iter().map(Endpoint::new).collect(),
            confines,
            clients,
            credentials,
            tokens: Tokens::new(service, tasks.clone()),
            timeouts: entry.timeouts.clone(),
            turns: Turns::new(entry.max_requests, entry.max_downloads),
            last_failed: AtomicBool::new(false),
            last_error: Mutex::default(),
            metrics,
        })
    }

    fn is_away(&self) -> bool {
        let open = |endpoint: &Endpoint| endpoint.breaker_state() != BreakerState::Closed;
        self.last_failed.load(Ordering::Relaxed) || self.endpoints.iter().all(open)
    }

    fn gives_blobs(&self) -> bool {
        let asked = |endpoint: &Endpoint| {
            endpoint.breaker_state() == BreakerState::Closed && !endpoint.is_stopped()
        };
        !self.is_away() && self.endpoints.iter().any(asked)
    }
}

impl Upstream {
    /// Returns the canonical name, such as `docker.io`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Returns which credentials its content is fetched with.
    pub fn credential(&self) -> &CredentialId {
        &self.inner.credential
    }

    /// Returns the one spelling of a repository: at Docker Hub a single component is below
    /// `library/`.
    pub fn canonical(&self, name: RepositoryName) -> RepositoryName {
        if self.name() != builtin::DOCKER_HUB || name.as_str().contains('/') {
            return name;
        }
        // A name that is too long with its prefix is none that Docker Hub has.
        format!("library/{name}").parse().unwrap_or(name)
    }

    /// Whether it cannot be counted on now: all breakers are open or the last attempt failed.
    ///
    /// A 404, 401, 403 or 429 is an answer; a stalled or broken body is a failure.
    pub fn is_away(&self) -> bool {
        self.inner.is_away()
    }

    /// Whether blobs can be counted on now: it is not away, and some endpoint has no limit of
    /// requests in force, which stops blobs as well. A limit of pulls does not.
    pub fn gives_blobs(&self) -> bool {
        self.inner.gives_blobs()
    }

    /// Whether it runs as many requests as it may, so that others wait.
    pub fn is_saturated(&self) -> bool {
        self.inner.turns.are_taken()
    }

    /// Returns how many downloads run if those are as many as may, so that a blob waits for the end
    /// of one.
    pub fn crowd(&self) -> Option<usize> {
        self.inner.turns.crowd()
    }

    /// Asks what a tag or digest means, which does not count as a pull.
    ///
    /// All fields are `None` when the upstream does not support `HEAD`.
    /// # Errors
    /// Any [`FetchError`] but `TooLarge`.
    /// # Cancel safety
    /// Dropping the future ends the request. Source: OCI end-3.
    pub async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        deadline: Instant,
    ) -> Result<ManifestHead, FetchError> {
        self.inner
            .head_manifest(repository, reference, deadline)
            .await
    }

    /// Fetches a manifest, whole and unverified, at most 8 MiB.
    ///
    /// # Errors
    /// Any [`FetchError`].
    /// # Cancel safety
    /// Dropping the future ends the request. Source: OCI end-3.
    pub async fn fetch_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        deadline: Instant,
    ) -> Result<FetchedManifest, FetchError> {
        self.inner
            .fetch_manifest(repository, reference, deadline)
            .await
    }

    /// Opens a blob at `offset`, in bytes; the deadline is for the headers.
    ///
    /// The body starts at 0 when the upstream ignores the offset: see [`BlobBody::offset`].
    /// # Errors
    /// Any [`FetchError`] but `TooLarge`.
    /// # Cancel safety
    /// Dropping the future or the body ends the request. Source: OCI end-2.
    pub async fn open_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
        deadline: Instant,
    ) -> Result<BlobBody, FetchError> {
        self.inner
            .open_blob(repository, digest, offset, deadline)
            .await
    }

    /// Waits until it is a blob's turn to be asked for, behind all who asked before.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue.
    pub async fn blob_turn(&self) -> Turn {
        self.inner.turns.take(true).await
    }

    /// Opens a blob like [`Upstream::open_blob`], whose turn it is; the headers may take 20 s.
    ///
    /// # Errors
    /// Any [`FetchError`] but `TooLarge` and `Busy`.
    /// # Cancel safety
    /// Dropping the future ends the request.
    pub async fn open_blob_in_turn(
        &self,
        turn: Turn,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobBody, FetchError> {
        self.inner
            .open_blob_in_turn(turn, repository, digest, offset)
            .await
    }

    /// Asks whether a blob exists, by its first byte; returns its size in bytes if that is stated.
    ///
    /// # Errors
    /// Any [`FetchError`] but `TooLarge`.
    /// # Cancel safety
    /// Dropping the future ends the request. Source: CLIENT-CONTRACT U8.
    pub async fn probe_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Option<u64>, FetchError> {
        self.inner.probe_blob(repository, digest, deadline).await
    }

    /// Fetches one page of tags; `query` is passed on as it is.
    ///
    /// # Errors
    /// Any [`FetchError`].
    /// # Cancel safety
    /// Dropping the future ends the request. Source: OCI end-8.
    pub async fn list_tags(
        &self,
        repository: &RepositoryName,
        query: &str,
        deadline: Instant,
    ) -> Result<TagList, FetchError> {
        self.inner.list_tags(repository, query, deadline).await
    }

    /// Fetches one page of what refers to `digest`; `query` is passed on as it is.
    ///
    /// An upstream without the API is asked for the tag that stands for it; without that tag
    /// either, nothing refers to the digest.
    /// # Errors
    /// Any [`FetchError`]; never an empty index in place of one.
    /// # Cancel safety
    /// Dropping the future ends the request. Source: OCI end-12.
    pub async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        query: &str,
        deadline: Instant,
    ) -> Result<Referrers, FetchError> {
        self.inner
            .referrers(repository, digest, query, deadline)
            .await
    }
}
