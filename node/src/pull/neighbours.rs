//! The other nodes of a cluster, as a pull sees them: whom to ask for a key, and who holds it.
//!
//! Every hop is a pull-through cache of the next: this node, the owner of the key in its zone, its
//! home, the upstream. A hop that is dead, slow or wrong is passed over; at last this node looks for
//! members that hold the content, and then asks the upstream itself. The cluster can make a pull
//! faster, it can never make it fail. This file chooses hops, `holders` asks who has it, `patience`
//! says how long they are waited for and `trust` who is left out; none of them moves content.

mod holders;
mod patience;
mod trust;

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::Role;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::cluster::View;
use crate::peer::{Members, PeerError, Peers};
use crate::task::Tasks;

use super::config::Config;
use super::directory::{Directory, HoldingsStatus};
use super::follow::Follower;
use super::memory::Memory;
use super::metrics::{HoldingsGauges, HopMetrics};
use super::rank::Rank;

pub(super) use holders::{Part, Whom};
pub(super) use patience::HOPS_PATIENCE;
use trust::Trust;

/// Most hops that are tried one after another without a byte: two owners, two homes.
pub(super) const MAX_HOPS: usize = 4;

/// The cluster around this node; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Neighbours {
    members: Arc<dyn Members>,
    pub(super) peers: Peers,
    pub(super) trust: Trust,
    /// What the others have told of their holdings.
    pub(super) directory: Directory,
    /// For the chunks that come from them.
    pub(super) memory: Memory,
    holds_patience: Duration,
    hop_patience: Duration,
    /// How long a source of chunks may say nothing at all.
    pub(super) source_patience: Duration,
    pub(super) metrics: HopMetrics,
}

/// A node to ask, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) peer: NodeId,
    pub(super) role: Role,
}

impl Neighbours {
    pub(super) fn new(
        members: Arc<dyn Members>,
        peers: Peers,
        memory: Memory,
        config: &Config,
    ) -> Self {
        let metrics = HopMetrics::default();
        Self {
            members,
            peers,
            trust: Trust::new(metrics.clone()),
            directory: Directory::default(),
            memory,
            holds_patience: config.holds_patience,
            hop_patience: config.hop_patience,
            source_patience: config.source_patience,
            metrics,
        }
    }

    pub(super) fn view(&self) -> Arc<View> {
        self.members.view()
    }

    /// Remembers that a member goes upstream unless somebody has these.
    pub(super) fn note_intent(&self, peer: NodeId, digests: &[Digest]) {
        for digest in digests {
            self.directory.note_intent(peer, Key::of_digest(digest));
        }
    }

    /// Returns what the others have told of their holdings.
    pub(super) fn status(&self) -> HoldingsStatus {
        let view = self.view();
        let is_told = view.placement().has_seat(&view.me());
        let members = if is_told { view.live().count() } else { 0 };
        self.directory
            .status(members, view.placement().fingerprint())
    }

    pub(super) fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
        registry.register_collector(Box::new(HoldingsGauges(self.clone())));
    }

    /// Tells of each new view.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.members.changes()
    }

    /// Listens to what the others hold, as long as the node runs.
    pub(super) fn follow(&self, tasks: &Tasks) {
        let follower = Follower {
            members: Arc::clone(&self.members),
            peers: self.peers.clone(),
            directory: self.directory.clone(),
        };
        let stopping = tasks.stopping();
        tasks.spawn(tracing::info_span!("follow"), async move {
            tokio::select! {
                () = follower.run() => {}
                () = stopping => {}
            }
        });
    }

    /// Returns how long ago a split of the cluster healed, as this node saw it.
    pub(super) fn healed(&self) -> Option<Duration> {
        self.view().healed().map(|healed| healed.elapsed())
    }

    /// Returns as what this node has to act for a key, at least in `rank`.
    pub(super) fn rank(&self, key: Key, rank: Rank) -> Rank {
        let view = self.view();
        let me = view.me();
        if view.homes(key).next() == Some(me) {
            Rank::Home
        } else if view.owners(key).next() == Some(me) {
            rank.max(Rank::Owner)
        } else {
            rank
        }
    }

    /// Returns the hops for a key that a fetch of `rank` may wait for, in their order.
    ///
    /// At most two owners, then two homes; without this node, whom it cannot reach, and whom it
    /// does not trust.
    pub(super) fn hops(&self, key: Key, rank: Rank) -> Vec<Hop> {
        let view = self.view();
        let hops = hops(&view, key, self.rank(key, rank));
        let usable = |hop: &Hop| self.is_usable(&hop.peer);
        hops.into_iter().filter(usable).collect()
    }

    /// Returns the homes of a key that can be asked; none if this node is the first of them.
    pub(super) fn other_homes(&self, key: Key) -> Vec<Hop> {
        self.hops(key, Rank::Owner)
    }

    /// Notes that a hop could not help.
    pub(super) fn passed_over(&self, hop: Hop, error: &PeerError) {
        tracing::debug!(
            peer.id = %hop.peer.short(), role = ?hop.role,
            error = error as &dyn std::error::Error, "passed over"
        );
        self.metrics.count_passed_over(hop.role, error);
    }

    fn is_usable(&self, peer: &NodeId) -> bool {
        self.peers.is_reachable(peer) && self.trust.is_given(peer)
    }
}

/// Returns the hops for a key that a fetch of `rank` may wait for.
fn hops(view: &View, key: Key, rank: Rank) -> Vec<Hop> {
    let homes: Vec<NodeId> = view.homes(key).collect();
    let mut hops: Vec<Hop> = Vec::new();
    let mut add = |peer: NodeId, role| {
        if peer != view.me() && !hops.iter().any(|hop| hop.peer == peer) {
            hops.push(Hop { peer, role });
        }
    };
    if rank == Rank::Node {
        for owner in view.owners(key) {
            // The home is the owner of its own zone, and acts as both. A second home does so only
            // when it is asked because the first could not be.
            let is_home = homes.first() == Some(&owner);
            add(owner, if is_home { Role::Home } else { Role::Owner });
        }
    }
    if rank < Rank::Home {
        for home in homes {
            add(home, Role::Home);
        }
    }
    hops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Member, Standing};

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    fn member(number: u8, zone: &str) -> Member {
        Member {
            id: node(number),
            generation: 1,
            zone: zone.to_owned(),
            addresses: Vec::new(),
            weight: 1,
            version: String::new(),
            wire_version: millrace_protocol::wire::frame::VERSION,
            load: 0,
            standing: Standing::Alive,
        }
    }

    fn views() -> impl Iterator<Item = (View, Key)> {
        let zones = ["a", "a", "b", "b", "b"];
        let member = move |number: u8| member(number, zones[usize::from(number)]);
        (0..5_u8).flat_map(move |me| {
            let members: Vec<Member> = (0..5).map(member).collect();
            let view = View::of(node(me), zones[usize::from(me)], members);
            let digest = |n: u8| Digest::of(millrace_protocol::oci::Algorithm::Sha256, &[n]);
            (0..50).map(move |n| (view.clone(), Key::of_digest(&digest(n))))
        })
    }

    #[test]
    fn only_the_first_home_is_asked_as_home_before_others_have_failed() {
        for (view, key) in views() {
            let home = view.homes(key).next();
            for (at, hop) in hops(&view, key, Rank::Node).iter().enumerate() {
                let asked_as_home = hop.role == Role::Home;
                assert!(asked_as_home || Some(hop.peer) != home);
                assert!(at > 0 || asked_as_home == (Some(hop.peer) == home));
            }
        }
    }

    #[test]
    fn nobody_waits_for_a_rank_that_is_not_above_its_own() {
        for (view, key) in views() {
            let as_owner = hops(&view, key, Rank::Owner);
            assert!(as_owner.iter().all(|hop| hop.role == Role::Home));
            assert_eq!(hops(&view, key, Rank::Home), []);
            let all = hops(&view, key, Rank::Node);
            assert!(all.iter().all(|hop| hop.peer != view.me()));
            assert!(all.len() <= 4);
        }
    }
}
