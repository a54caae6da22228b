//! The task of this room: carries what is heard to the rules, and what they decide to the network.
//!
//! One task owns the network and the rules, so nothing here is locked; readers get views and
//! statuses that it publishes.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use libp2p::Swarm;
use libp2p::futures::StreamExt as _;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use millrace_protocol::membership::{
    ANNOUNCE_EVERY, Announcement, Contact, Greeting, Membership, Presence, TICK_EVERY, encode,
};
use millrace_protocol::node_id::NodeId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::admission::Admission;
use super::joining::Joining;
use super::memory::Memory;
use super::names::{peer_id, tcp};
use super::network::{Behaviour, topic};
use super::publish::Publisher;
use super::reach::{OwnAddresses, Resolved};
use super::reload::Reloaded;
use super::status::State;
use crate::task::Tasks;

mod budgets;
mod events;

/// Ticks between two announcements.
const TICKS_PER_ANNOUNCEMENT: u64 = (ANNOUNCE_EVERY.as_millis() / TICK_EVERY.as_millis()) as u64;

/// Ticks between two words on rate limits without news: 10 s.
const TICKS_PER_BUDGETS: u64 = 40;

/// Ticks between two looks at whether contacts are to be saved: 1 s. Who is killed soon after it met
/// the others must know them at its next start.
const TICKS_PER_SAVE: u64 = 4;

/// How long the last announcement may take to leave.
const LEAVE_PATIENCE: std::time::Duration = std::time::Duration::from_millis(300);

/// What the handle asks of the task.
#[derive(Debug)]
pub(super) enum Command {
    /// Say that this node leaves, then end.
    Leave(oneshot::Sender<()>),
}

/// What is fixed about this node.
#[derive(Clone, Debug)]
pub(super) struct Me {
    pub(super) id: NodeId,
    pub(super) instance: u64,
    pub(super) zone: String,
    pub(super) weight: u32,
}

/// What comes in from other tasks.
pub(super) struct Inputs {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) resolved: watch::Receiver<Vec<Resolved>>,
    pub(super) reloaded: mpsc::Receiver<Reloaded>,
}

/// The state of the task.
pub(super) struct Driver {
    pub(super) me: Me,
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) membership: Membership,
    pub(super) admission: Arc<Admission>,
    pub(super) publisher: Publisher,
    pub(super) addresses: OwnAddresses,
    pub(super) memory: Memory,
    pub(super) tasks: Tasks,
    /// Whom the configuration keeps out.
    pub(super) denied: Vec<NodeId>,
    pub(super) progress: Progress,
}

/// What changes while it runs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    sequence: u64,
    ticks: u64,
    dials: HashMap<ConnectionId, Dial>,
    joining: Joining,
    /// Whether anybody has greeted this node.
    greeted: bool,
    /// Whether there is nobody to wait for.
    alone: bool,
    saved: Vec<Contact>,
    saving: Option<tokio::task::JoinHandle<()>>,
    gate_keeps_out: BTreeSet<NodeId>,
    /// Refusals of registries that others have been told of.
    refusals_told: u64,
}

impl Progress {
    /// Begins; `alone` says that there is nobody to wait for.
    pub(super) fn new(alone: bool) -> Self {
        Self {
            alone,
            ..Self::default()
        }
    }
}

/// What a dial is for.
#[derive(Clone, Copy, Debug)]
enum Dial {
    Member(NodeId),
    Join(SocketAddr),
    /// To see whether this node's identity is used there as well: the gate says so.
    Twin,
}

impl Driver {
    /// Runs until the node leaves or stops, or another node turns out to use its identity.
    pub(super) async fn run(mut self, mut inputs: Inputs, stopping: impl Future<Output = ()>) {
        tokio::pin!(stopping);
        let mut ticker = tokio::time::interval(TICK_EVERY);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
        self.membership.handle_denied(self.denied.iter().copied());
        self.publish().await;
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle_event(event),
                _ = ticker.tick() => self.handle_tick(),
                Ok(()) = inputs.resolved.changed() => {
                    let resolved = inputs.resolved.borrow_and_update().clone();
                    self.progress.joining.resolve(resolved, Instant::now());
                }
                Some(reloaded) = inputs.reloaded.recv() => self.handle_reloaded(reloaded),
                Some(Command::Leave(done)) = inputs.commands.recv() => {
                    self.leave().await;
                    // Whoever asked may have given up waiting.
                    let _ = done.send(());
                    return;
                }
                () = &mut stopping => return,
            }
            if self.admission.has_duplicate() {
                return self.give_up();
            }
            self.publish().await;
        }
    }

    fn handle_tick(&mut self) {
        let now = Instant::now();
        self.membership.handle_tick(now);
        let cuts: Vec<NodeId> = self.membership.poll_cuts().collect();
        cuts.iter().for_each(|id| self.cut(id));
        for contact in self.membership.poll_dials(now) {
            self.dial_member(&contact, now);
        }
        let membership = &self.membership;
        let connected = |id: &NodeId| membership.is_connected(id);
        for address in self.progress.joining.poll_dials(now, connected) {
            self.dial_join(address);
        }
        if self.progress.ticks.is_multiple_of(TICKS_PER_ANNOUNCEMENT) {
            self.announce(Presence::Here);
            self.publish_status();
        }
        if self.progress.ticks % TICKS_PER_SAVE == TICKS_PER_SAVE - 1 {
            self.save_contacts();
        }
        self.tell_budgets_if_due();
        self.progress.ticks += 1;
    }

    fn handle_reloaded(&mut self, reloaded: Reloaded) {
        match reloaded {
            Reloaded::Secrets(secrets) => {
                tracing::info!(
                    count = secrets.iter().len(),
                    "secrets of the cluster replaced"
                );
                for id in self.admission.set_secrets(secrets) {
                    self.cut(&id);
                }
            }
            Reloaded::Denied(denied) => {
                tracing::info!(count = denied.len(), "list of denied nodes replaced");
                self.membership.handle_denied(denied.iter().copied());
                self.denied = denied;
                self.announce(Presence::Here);
            }
        }
    }

    /// Says to all what this node is.
    fn announce(&mut self, presence: Presence) {
        if self.addresses.get().is_empty() {
            return;
        }
        let announcement = self.announcement(presence);
        tracing::trace!(?announcement, "announced");
        let bytes = encode(&announcement);
        // Nobody listens yet, or somebody's queue is full: the next one comes in a second.
        let published = self.swarm.behaviour_mut().gossip.publish(topic(), bytes);
        if let Err(error) = published {
            tracing::trace!(%error, "not announced");
        }
    }

    fn announcement(&mut self, presence: Presence) -> Announcement {
        self.progress.sequence += 1;
        Announcement {
            generation: self.membership.generation(),
            sequence: self.progress.sequence,
            instance: self.me.instance,
            presence,
            zone: self.me.zone.clone(),
            addresses: self.addresses.get().to_vec(),
            weight: self.me.weight,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wire_version: millrace_protocol::wire::frame::VERSION,
            load: self.publisher.load(),
            placement: self.publisher.fingerprint(),
            denied: self.denied.clone(),
        }
    }

    fn greeting(&mut self, to: &NodeId) -> Greeting {
        let greeting = Greeting {
            announcement: self.announcement(Presence::Here),
            you: self.membership.last_heard(to),
            contacts: self.membership.contacts(),
        };
        tracing::trace!(?greeting, peer.id = %to, "greeted");
        greeting
    }

    fn dial_member(&mut self, contact: &Contact, now: Instant) {
        let dialling = peer_id(&contact.id).is_some_and(|peer| {
            let addresses = contact.addresses.iter().copied().map(tcp).collect();
            // From a port of its own: two nodes that dial each other from the ports on which they
            // listen would end up with one connection that both believe to have dialled.
            let options = DialOpts::peer_id(peer)
                .addresses(addresses)
                .condition(PeerCondition::Disconnected)
                .allocate_new_port()
                .build();
            self.dial(options, Dial::Member(contact.id)).is_ok()
        });
        if !dialling {
            self.membership.handle_dial_failed(contact.id, now);
        }
    }

    fn dial_join(&mut self, address: SocketAddr) {
        let options = DialOpts::unknown_peer_id();
        let options = options.address(tcp(address)).allocate_new_port().build();
        if let Err(error) = self.dial(options, Dial::Join(address)) {
            self.handle_dial_failed(Dial::Join(address), &error);
        }
    }

    /// Goes where others say that a later start of this node is.
    fn look_for_twin(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            let options = DialOpts::unknown_peer_id();
            let options = options.address(tcp(*address)).allocate_new_port().build();
            // There is nobody, or it is this node.
            let _ = self.dial(options, Dial::Twin);
        }
    }

    fn dial(&mut self, options: DialOpts, purpose: Dial) -> Result<(), DialError> {
        let connection = options.connection_id();
        self.swarm.dial(options)?;
        self.progress.dials.insert(connection, purpose);
        Ok(())
    }

    fn cut(&mut self, id: &NodeId) {
        if let Some(peer) = peer_id(id) {
            // That there is no connection any more is what is wanted.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    /// Lets readers see what has changed.
    async fn publish(&mut self) {
        if self.membership.denied() != &self.progress.gate_keeps_out {
            let denied = self.membership.denied().clone();
            self.progress.gate_keeps_out.clone_from(&denied);
            self.admission.set_denied(denied);
            let cuts: Vec<NodeId> = self.membership.poll_cuts().collect();
            cuts.iter().for_each(|id| self.cut(id));
        }
        if self.membership.poll_changed() || !self.publisher.has_published() {
            let members = self
                .publisher
                .members(&self.me, &self.addresses, &self.membership);
            let healed = self.membership.healed();
            self.publisher.publish(members, healed).await;
            self.publish_status();
        }
        let nobody_else = self.progress.alone || self.progress.joining.leads_nowhere_else();
        let is_settled = self.membership.is_settled(Instant::now());
        if is_settled && (self.progress.greeted || nobody_else) {
            self.publisher.settle();
        }
    }

    fn publish_status(&mut self) {
        let join = self.progress.joining.status();
        let connected = self.swarm.connected_peers().count();
        self.publisher
            .publish_status(&self.membership, join, connected);
    }

    /// Keeps whom this node knows; at most one save is under way.
    fn save_contacts(&mut self) {
        let contacts = self.membership.contacts();
        let saving = self.progress.saving.as_ref();
        let busy = saving.is_some_and(|saving| !saving.is_finished());
        // Somebody alone does not forget whom it knew.
        if busy || contacts.is_empty() || contacts == self.progress.saved {
            return;
        }
        self.progress.saved.clone_from(&contacts);
        let memory = self.memory.clone();
        self.progress.saving = Some(self.save(move || memory.keep_contacts(&contacts)));
    }

    /// Writes on the blocking pool: a disk that takes seconds must not make this node silent.
    fn save(
        &self,
        write: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        self.tasks.spawn(tracing::Span::current(), async move {
            match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the cluster's memory is not kept"),
                Err(error) => tracing::warn!(%error, "the cluster's memory is not kept"),
            }
        })
    }

    /// Says that this node leaves, and gives the words time to leave it.
    async fn leave(&mut self) {
        self.announce(Presence::Leaving);
        let flushing = async {
            loop {
                self.swarm.select_next_some().await;
            }
        };
        // Elapsed is how it always ends.
        let _: Result<(), _> = tokio::time::timeout(LEAVE_PATIENCE, flushing).await;
        self.publisher.end(State::Left);
    }

    /// Another node uses this node's identity: two of them would only confuse everybody.
    fn give_up(&mut self) {
        tracing::error!(
            id = %self.me.id,
            "another node uses the identity of this one: was the data folder copied? This node \
             goes on without the cluster; remove identity.key from one of the folders and restart"
        );
        self.publisher.end_alone(&self.me, &self.addresses);
    }
}
