//! Nodes of a cluster on loopback, as far as this room goes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::cluster::{
    Cluster, Config, Files, Identity, Standing, StartError, View, fresh_secret,
};
use millrace::task::Tasks;
use millrace_protocol::node_id::NodeId;

/// Time for anything that is to happen by itself; a member is dead after 12 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// A cluster's secret in a file, and room for its nodes.
pub(crate) struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let site = Self { folder };
        site.write_secrets("secret", &[&fresh_secret().expect("random")]);
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write_secrets(&self, name: &str, secrets: &[&str]) {
        // Nodes may read the file at any time: they find the old or the new one.
        let (path, next) = (self.path(name), self.path("secret.next"));
        std::fs::write(&next, secrets.join("\n")).expect("written");
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o600)).expect("changed");
        std::fs::rename(&next, &path).expect("replaced");
    }

    pub(crate) fn config(&self, join: &[SocketAddr]) -> Config {
        Config {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            secret_file: Some(self.path("secret")),
            join: join
                .iter()
                .map(|address| address.to_string().parse().expect("valid"))
                .collect(),
            ..Config::default()
        }
    }

    /// Starts the node whose data folder has this name.
    pub(crate) fn host(&self, name: &str, join: &[SocketAddr]) -> Host {
        Host::start(&self.path(name), &self.config(join)).expect("started")
    }
}

/// One node.
pub(crate) struct Host {
    pub(crate) id: NodeId,
    pub(crate) cluster: Cluster,
    tasks: Tasks,
}

impl Host {
    pub(crate) fn start(data: &Path, config: &Config) -> Result<Self, StartError> {
        let identity = Identity::open(data).expect("an identity");
        let tasks = Tasks::default();
        let files = Files::read(config)?;
        let cluster = Cluster::start(config, files, &identity, &tasks)?;
        let id = identity.id();
        Ok(Self { id, cluster, tasks })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.cluster.listen_address()
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.cluster.view()
    }

    /// Members that this node would ask, itself included.
    pub(crate) fn alive(&self) -> BTreeSet<NodeId> {
        let view = self.view();
        let members = view.members().iter();
        members
            .filter(|member| member.standing == Standing::Alive)
            .map(|member| member.id)
            .collect()
    }

    pub(crate) fn members(&self) -> BTreeSet<NodeId> {
        self.view()
            .members()
            .iter()
            .map(|member| member.id)
            .collect()
    }

    /// Ends without a word to the others.
    pub(crate) async fn crash(self) {
        assert_eq!(self.tasks.stop(PATIENCE).await, 0, "all tasks end");
    }

    pub(crate) async fn leave(self) {
        self.cluster.leave().await;
        self.crash().await;
    }
}

pub(crate) fn ids(hosts: &[&Host]) -> BTreeSet<NodeId> {
    hosts.iter().map(|host| host.id).collect()
}

/// Waits until all of these see all of these as alive, and nobody else as a member.
pub(crate) async fn together(hosts: &[&Host]) -> Duration {
    let expected = ids(hosts);
    let agree = |host: &&Host| host.alive() == expected && host.members() == expected;
    eventually("all find together", || hosts.iter().all(agree)).await
}

/// Waits until `done`; returns how long it took.
pub(crate) async fn eventually(what: &str, done: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{what}: {:?}", start.elapsed());
    start.elapsed()
}
