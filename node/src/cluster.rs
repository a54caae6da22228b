//! Who else is there: this node's identity, the members, and what each of them is responsible for.
//!
//! Readers take a [`View`], an immutable snapshot, and never wait for a lock. Which member is
//! suspect or dead is decided by `millrace_protocol::membership`, which placement by
//! `millrace_protocol::placement`; this room does their I/O, over libp2p. It carries no content:
//! that is the peer room's, which uses the identities and addresses that are found here.

mod admission;
mod config;
mod denied;
mod driver;
mod error;
mod file;
mod identity;
mod joining;
mod memory;
mod metrics;
mod names;
mod network;
mod publish;
mod reach;
mod reload;
mod secrets;
mod status;
mod view;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use millrace_protocol::membership::{BudgetWord, Contact, Membership};
use millrace_protocol::node_id::NodeId;
use prometheus_client::registry::Registry;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::info_span;

pub use config::{
    Config, DEFAULT_PORT, InvalidConfig, InvalidJoinAddress, JoinAddress, NodeIdText,
};
pub use error::StartError;
pub use identity::{Identity, IdentityError};
pub use reload::Files;
pub use secrets::{SecretError, SecretText, fresh_secret};
pub use status::{JoinStatus, MemberStatus, State, Status};
pub use view::{Member, Standing, View};

use admission::Admission;
use driver::{Command, Driver, Inputs, Me, Progress};
use memory::Memory;
use metrics::Metrics;
use publish::{Publisher, Shared};
use reach::OwnAddresses;

use crate::task::Tasks;

/// How long a node waits for a first view before it goes upstream by itself.
const FIRST_VIEW_PATIENCE: Duration = Duration::from_secs(5);

/// How long saying goodbye may take.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// Questions of handles that wait: there is one kind, and it ends the task.
const MAX_COMMANDS: usize = 4;

/// Changes of files that wait: each kind once.
const MAX_RELOADED: usize = 2;

/// Who knows of registries' rate limits, for the exchange with other members.
pub trait Budgets: Debug + Send + Sync + 'static {
    /// Returns what registries have told this node itself; nothing that is secret.
    fn words(&self) -> Vec<BudgetWord>;

    /// Counts what is to be told at once: another count means news.
    fn refusals(&self) -> u64;

    /// Takes in what registries have told the member `from`; must not block.
    fn hear(&self, from: NodeId, words: Vec<BudgetWord>);
}

/// This node's part in the cluster; clones share it.
#[derive(Clone, Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
    listen: SocketAddr,
    commands: mpsc::Sender<Command>,
}

impl Cluster {
    /// Listens, and begins to look for others.
    ///
    /// Counts a start of the node in its data folder, so it is to be called once in a process, by
    /// whoever holds the folder.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start(
        config: &Config,
        files: Files,
        identity: &Identity,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let (secrets, denied) = files.known.clone();
        let memory = Memory::new(identity.folder());
        let me = Me {
            id: identity.id(),
            instance: random_instance()?,
            zone: config.zone.clone(),
            weight: config.weight,
        };
        let metrics = Metrics::default();
        let admission = Admission::new(me.id, me.instance, secrets);
        let admission = Arc::new(admission);
        let (swarm, listen) = network::listen(
            config.listen_address(),
            identity,
            &admission,
            &metrics,
            tasks,
        )?;
        let generation = memory.next_generation()?;
        let mut membership = Membership::new(me.id, generation, me.instance, Instant::now());
        let contacts: Vec<Contact> = memory.contacts();
        let progress = Progress::new(config.join.is_empty() && contacts.is_empty());
        membership.handle_remembered(contacts, Instant::now());
        let shared = Arc::new(shared(&me, listen, metrics));
        let driver = Driver {
            swarm,
            membership,
            admission,
            publisher: Publisher::new(Arc::clone(&shared)),
            addresses: OwnAddresses::new(config, listen),
            memory,
            tasks: tasks.clone(),
            denied,
            progress,
            me,
        };
        let commands = spawn(driver, files, config, tasks);
        tracing::info!(id = %identity.id(), %listen, zone = config.zone, "taking part in a cluster");
        Ok(Self {
            shared,
            listen,
            commands,
        })
    }

    /// Returns the members and the placement of this moment; never waits.
    pub fn view(&self) -> Arc<View> {
        self.shared.view.load_full()
    }

    /// Returns the number of the newest view, and a way to wait for the next.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Returns the address that this node listens on, with its real port: the peer room uses UDP
    /// on the same number.
    pub fn listen_address(&self) -> SocketAddr {
        self.listen
    }

    /// Waits until everybody who was to be found has been heard or tried in vain; at most 5 s.
    ///
    /// A node that goes upstream before it knows the others fetches what they hold.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn first_view(&self) {
        let mut settled = self.shared.settled.subscribe();
        let waiting = settled.wait_for(|settled| *settled);
        if tokio::time::timeout(FIRST_VIEW_PATIENCE, waiting)
            .await
            .is_err()
        {
            tracing::warn!("nobody to join was found yet; going on alone and looking further");
        }
    }

    /// Says to all that this node leaves, so that it is asked nothing more.
    ///
    /// # Cancel safety
    /// Dropping the future does not take it back.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        let leaving = async {
            // Where the task has ended already, there is nobody to tell.
            if self.commands.send(Command::Leave(done)).await.is_ok() {
                let _ = left.await;
            }
        };
        if tokio::time::timeout(LEAVE_PATIENCE, leaving).await.is_err() {
            tracing::warn!("left without a word");
        }
    }

    /// Returns how busy a member has said it is, at most a second ago; 0 for a stranger.
    pub fn load(&self, id: &NodeId) -> u32 {
        let status = self.shared.status.load();
        let member = status.members.iter().find(|member| member.id == *id);
        member.map_or(0, |member| member.load)
    }

    /// Exchanges rate limits with the other members from now on; the first one given counts.
    pub fn share_budgets(&self, budgets: Arc<dyn Budgets>) {
        // There is one upstream room in a node.
        let _ = self.shared.budgets.set(budgets);
    }

    /// Tells others how busy this node is: blobs on their way to it or from it.
    pub fn set_load(&self, load: u32) {
        self.shared.load.store(load, Ordering::Relaxed);
    }

    /// Returns what an operator sees; at most a second old.
    pub fn status(&self) -> Status {
        (**self.shared.status.load()).clone()
    }

    /// Registers the metrics of this room.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
    }
}

fn shared(me: &Me, listen: SocketAddr, metrics: Metrics) -> Shared {
    let view = View::of(me.id, &me.zone, Vec::new());
    let status = Status {
        id: me.id,
        zone: me.zone.clone(),
        state: State::default(),
        listen,
        view: view.number(),
        placement: String::new(),
        members: Vec::new(),
        join: Vec::new(),
        denied: Vec::new(),
    };
    Shared {
        view: ArcSwap::from_pointee(view),
        status: ArcSwap::from_pointee(status),
        changes: watch::Sender::new(0),
        settled: watch::Sender::new(false),
        load: AtomicU32::new(0),
        budgets: OnceLock::new(),
        metrics,
    }
}

/// Starts the tasks of this room; returns the way to ask the driver.
fn spawn(driver: Driver, files: Files, config: &Config, tasks: &Tasks) -> mpsc::Sender<Command> {
    let (commands, asked) = mpsc::channel(MAX_COMMANDS);
    let (found, resolved) = watch::channel(Vec::new());
    let (changes, reloaded) = mpsc::channel(MAX_RELOADED);
    let inputs = Inputs {
        commands: asked,
        resolved,
        reloaded,
    };
    if !config.join.is_empty() {
        let resolving = reach::keep_resolving(config.join.clone(), found);
        tasks.spawn(info_span!("cluster.resolve"), resolving);
    }
    tasks.spawn(info_span!("cluster.reload"), files.keep_reading(changes));
    let driving = driver.run(inputs, tasks.stopping());
    tasks.spawn(info_span!("cluster"), driving);
    commands
}

fn random_instance() -> Result<u64, StartError> {
    let mut bytes = [0; 8];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| StartError::Setup("no random numbers".to_owned()))?;
    Ok(u64::from_le_bytes(bytes))
}
