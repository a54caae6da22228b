//! This node's part in the cluster, put together: who is there, and the exchange with them.

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::membership::BudgetWord;
use millrace_protocol::node_id::NodeId;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::info_span;

use super::StartError;
use crate::cluster::{Budgets, Cluster, Files, Identity, View};
use crate::config::Config;
use crate::peer::{self, Handler, Members, Peers};
use crate::pull::Puller;
use crate::task::Tasks;
use crate::upstream::Upstreams;

/// How often the load is taken; it leaves with the announcements, one in a second.
const LOAD_INTERVAL: Duration = Duration::from_secs(1);

/// The cluster and the exchange of content with its members.
#[derive(Clone, Debug)]
pub(super) struct Neighbourhood {
    pub(super) cluster: Cluster,
    pub(super) peers: Peers,
}

impl Members for Cluster {
    fn view(&self) -> Arc<View> {
        self.view()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes()
    }

    fn load(&self, id: &NodeId) -> u32 {
        self.load(id)
    }
}

impl Budgets for Upstreams {
    fn words(&self) -> Vec<BudgetWord> {
        self.budget_words()
    }

    fn refusals(&self) -> u64 {
        self.budget_refusals()
    }

    fn hear(&self, from: NodeId, words: Vec<BudgetWord>) {
        self.hear_budgets(from, &words);
    }
}

impl Neighbourhood {
    /// Reads what the cluster is entered with, if there is to be one.
    ///
    /// # Errors
    /// A file cannot be used.
    pub(super) fn files(config: &Config) -> Result<Option<Files>, StartError> {
        let is_enabled = config.cluster.is_enabled();
        let read = is_enabled.then(|| Files::read(&config.cluster));
        Ok(read.transpose()?)
    }

    /// Takes part. The store is open by then: its lock keeps other processes away from the identity
    /// as well.
    ///
    /// # Errors
    /// [`StartError`].
    pub(super) fn join(config: &Config, files: Files, tasks: &Tasks) -> Result<Self, StartError> {
        let identity = Identity::open(&config.storage.rootdirectory)?;
        let cluster = Cluster::start(&config.cluster, files, &identity, tasks)?;
        let peer_config = peer::Config {
            listen: cluster.listen_address(),
            ..peer::Config::default()
        };
        let members = Arc::new(cluster.clone());
        let peers = Peers::bind(&peer_config, &identity, members, tasks)?;
        Ok(Self { cluster, peers })
    }

    /// Returns what the pull room asks others through.
    pub(super) fn ways(&self) -> (Arc<dyn Members>, Peers) {
        (Arc::new(self.cluster.clone()), self.peers.clone())
    }

    /// Begins to answer peers.
    pub(super) fn serve(&self, answers: Arc<dyn Handler>) {
        self.peers.serve(answers);
    }

    /// Begins to tell the others what this node knows, then waits for a first view.
    pub(super) async fn open(&self, puller: &Puller, upstreams: &Upstreams, tasks: &Tasks) {
        let (part, loaded, stopping) = (self.clone(), puller.clone(), tasks.stopping());
        tasks.spawn(info_span!("load"), async move {
            tokio::select! {
                () = part.keep_telling_load(loaded) => {}
                () = stopping => {}
            }
        });
        self.cluster.share_budgets(Arc::new(upstreams.clone()));
        self.cluster.first_view().await;
    }

    /// Tells the others how busy this node is.
    async fn keep_telling_load(self, puller: Puller) {
        let mut ticks = interval(LOAD_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let load = puller.transfers() + self.peers.uploads();
            self.cluster
                .set_load(u32::try_from(load).unwrap_or(u32::MAX));
        }
    }

    pub(super) fn register_metrics(&self, registry: &mut Registry) {
        self.cluster.register_metrics(registry);
        self.peers.register_metrics(registry);
    }
}
