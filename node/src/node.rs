//! The composition root: builds the rooms, opens the listeners, and takes all down again.
//!
//! Start is linear and so is drain, from the door inward. First the files are read that the
//! configuration names: where one cannot be used, nothing was begun. Then addresses are bound, so that
//! a taken port is told at once; clients are answered once the store is open. An upstream that cannot
//! be reached does not keep a node from starting.

mod doors;
mod error;
mod neighbourhood;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, Listener, NodeStatus, Readiness, StatusSource};
use crate::config::{CacheConfig, Config, ListenAddr};
use crate::peer::Handler;
use crate::pull::{self, Puller, Supplier};
use crate::registry::{self, Htpasswd, Registry};
use crate::store::{self, Store};
use crate::task::Tasks;
use crate::telemetry::Metrics;
use crate::tls::Tls;
use crate::upstream::Upstreams;

pub use error::StartError;

use doors::Doors;
use neighbourhood::Neighbourhood;

/// Time that background work gets to stop after the last client was served.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What the operators' door waits for until the node is ready.
const OPENING_STORE: &str = "the store";
const FINDING_OTHERS: &str = "the cluster";

/// A running node.
#[derive(Debug)]
pub struct Node {
    tasks: Tasks,
    readiness: Readiness,
    neighbourhood: Option<Neighbourhood>,
    puller: Puller,
    door: registry::Running,
    admin_stop: CancellationToken,
}

impl Node {
    /// Starts a node; returns when it answers clients.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then, except for what ends with the runtime.
    /// # Cancel safety
    /// Dropping the future may leave listeners open until the runtime ends.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_disguised(config, |own| own).await
    }

    /// As [`Node::start`], but tells other nodes what `disguise` makes of its own answers: for
    /// tests of what they do about a member that is broken.
    ///
    /// # Errors
    /// As [`Node::start`].
    /// # Cancel safety
    /// As [`Node::start`].
    pub async fn start_disguised(
        config: Config,
        disguise: impl FnOnce(Arc<dyn Handler>) -> Arc<dyn Handler>,
    ) -> Result<Self, StartError> {
        let tasks = Tasks::default();
        let upstreams = Upstreams::new(&config.upstreams, &tasks)?;
        let files = Neighbourhood::files(&config)?;
        let doors = Doors::open(&config).await?;
        let debug = bind(&config.http.debug.addr, "http.debug.addr").await?;
        let mut listeners = doors.describe();
        listeners.push(listener("debug", &debug, "everyone who reaches it"));

        doors.watch(&tasks);
        let store = Store::open(&store_config(&config), &tasks).await?;
        let join = |files| Neighbourhood::join(&config, files, &tasks);
        let neighbourhood = files.map(join).transpose()?;
        let ways = neighbourhood.as_ref().map(Neighbourhood::ways);
        let puller = Puller::new(pull_config(&config), store.clone(), ways, &tasks);
        let registry = Registry::new(registry_config(&config), puller.clone(), upstreams.clone());

        let metrics = Metrics::new(|metrics| {
            store.register_metrics(metrics);
            upstreams.register_metrics(metrics);
            puller.register_metrics(metrics);
            registry.register_metrics(metrics);
            if let Some(neighbourhood) = &neighbourhood {
                neighbourhood.register_metrics(metrics);
            }
        });
        let readiness = Readiness::starting([OPENING_STORE, FINDING_OTHERS]);
        let prometheus = config.http.debug.prometheus;
        let admin = Admin {
            source: Arc::new(Sources {
                started: SystemTime::now(),
                listeners: listeners.clone(),
                tls: doors.public.tls.clone(),
                htpasswd: doors.public.admission.htpasswd.clone(),
                store,
                puller: puller.clone(),
                upstreams: upstreams.clone(),
                neighbourhood: neighbourhood.clone(),
            }),
            readiness: readiness.clone(),
            metrics: prometheus.enabled.then_some((prometheus.path, metrics)),
        };
        let admin_stop = serve_admin(&tasks, debug, admin);
        readiness.done(OPENING_STORE);
        if let Some(neighbourhood) = &neighbourhood {
            let answers = Supplier::new(puller.clone(), upstreams.clone());
            neighbourhood.serve(disguise(Arc::new(answers)));
            neighbourhood.open(&puller, &upstreams, &tasks).await;
        }
        let door = registry.serve(doors.all());
        readiness.done(FINDING_OTHERS);
        listeners.iter().for_each(log_listener);
        Ok(Self {
            tasks,
            readiness,
            neighbourhood,
            puller,
            door,
            admin_stop,
        })
    }

    /// Takes no new connection, finishes what is being served, then stops the rest.
    ///
    /// # Cancel safety
    /// Not to be cancelled, except to end the process.
    pub async fn drain(self) {
        self.readiness.drain();
        // Who leaves is asked for nothing any more: others begin elsewhere what they waited for.
        self.puller.end_orphans();
        if let Some(neighbourhood) = &self.neighbourhood {
            neighbourhood.cluster.leave().await;
        }
        self.door.drain().await;
        if let Some(neighbourhood) = &self.neighbourhood {
            neighbourhood.peers.close().await;
        }
        self.admin_stop.cancel();
        let left = self.tasks.stop(STOP_PATIENCE).await;
        if left > 0 {
            tracing::warn!(tasks = left, "stopped before all background work had ended");
        }
        tracing::info!("drained");
    }
}

/// Opens the first of an address's possibilities that can be bound.
async fn bind(address: &ListenAddr, key: &'static str) -> Result<TcpListener, StartError> {
    let error = |source| StartError::Listen {
        address: address.to_string(),
        key,
        source,
    };
    let wanted = address.clone();
    let addresses = tokio::task::spawn_blocking(move || wanted.socket_addrs()).await;
    let addresses = addresses
        .map_err(io::Error::other)
        .and_then(|found| found)
        .map_err(error)?;
    let mut refused = io::ErrorKind::AddrNotAvailable.into();
    for address in addresses {
        match registry::listen(address) {
            Ok(listener) => return Ok(listener),
            Err(why) => refused = why,
        }
    }
    Err(error(refused))
}

fn listener(name: &'static str, listener: &TcpListener, admits: &'static str) -> Listener {
    let address = listener.local_addr();
    Listener {
        name,
        address: address.map_or_else(|error| error.to_string(), |address| address.to_string()),
        admits,
    }
}

fn log_listener(listener: &Listener) {
    tracing::info!(
        address = %listener.address, admits = listener.admits,
        "listening for {}", listener.name
    );
}

/// Serves the operators' door until what is returned is cancelled.
fn serve_admin(tasks: &Tasks, listener: TcpListener, admin: Admin) -> CancellationToken {
    let router = admin.router();
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    tasks.spawn(tracing::info_span!("admin"), async move {
        let serving = axum::serve(listener, router).with_graceful_shutdown(stopped);
        if let Err(error) = serving.await {
            tracing::error!(%error, "the debug address is no longer served");
        }
    });
    stop
}

fn store_config(config: &Config) -> store::Config {
    store::Config {
        root: config.storage.rootdirectory.clone(),
        max_size: config.cache.max_size.map(|size| size.as_u64()),
        min_free: config.cache.min_free.map(|size| size.as_u64()),
    }
}

fn pull_config(config: &Config) -> pull::Config {
    let all = || config.upstreams.upstreams.iter();
    let CacheConfig {
        revalidate,
        stale_slow,
        stale_away,
        stale_denied,
        negative_ttl,
        access_ttl,
        access_grace,
        ref tags,
        ..
    } = config.cache;
    pull::Config {
        upstream_tags: all()
            .map(|(name, upstream)| (name.clone(), upstream.tags.clone()))
            .collect(),
        tags: tags.clone(),
        revalidate,
        stale_slow,
        stale_away,
        stale_denied,
        negative_ttl,
        replicas: config.cluster.replicas as usize,
        access: all()
            .map(|(name, upstream)| (name.clone(), upstream.access.clone()))
            .collect(),
        has_credentials: all().any(|(_, up)| up.username.is_some() || up.exec.is_some()),
        access_ttl,
        access_grace,
        ..pull::Config::default()
    }
}

fn registry_config(config: &Config) -> registry::Config {
    registry::Config {
        drain_timeout: config.http.draintimeout,
        unavailable_blob: config.http.unavailable_blob,
        ..registry::Config::default()
    }
}

/// Where the operators' door looks.
struct Sources {
    started: SystemTime,
    listeners: Vec<Listener>,
    tls: Option<Tls>,
    htpasswd: Option<Htpasswd>,
    store: Store,
    puller: Puller,
    upstreams: Upstreams,
    neighbourhood: Option<Neighbourhood>,
}

impl StatusSource for Sources {
    fn status(&self) -> NodeStatus {
        let neighbourhood = self.neighbourhood.as_ref();
        NodeStatus {
            version: env!("CARGO_PKG_VERSION"),
            started: self.started,
            uptime: self.started.elapsed().unwrap_or_default(),
            listeners: self.listeners.clone(),
            tls: self.tls.as_ref().map(Tls::status),
            htpasswd: self.htpasswd.as_ref().map(Htpasswd::status),
            store: Some(self.store.status()),
            pull: Some(self.puller.status()),
            upstreams: self.upstreams.status(),
            cluster: neighbourhood.map(|part| part.cluster.status()),
            peers: neighbourhood.map(|part| part.peers.status()),
        }
    }
}
