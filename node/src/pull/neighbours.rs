//! The other nodes of a cluster, as a pull sees them: whom to ask for a key, and who holds it.
//!
//! Every hop is a pull-through cache of the next: this node, the owner of the key in its zone, its
//! home, the upstream. A hop that is dead, slow or wrong is passed over; at last this node looks for
//! members that hold the content, and then asks the upstream itself. The cluster can make a pull
//! faster, it can never make it fail. This file chooses, `holders` asks; neither moves content.

mod holders;

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{BlobNews, Cause, Role};
use moka::sync::Cache;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::cluster::View;
use crate::peer::{BlobStream, Members, PeerError, Peers};
use crate::task::Tasks;

use super::config::Config;
use super::directory::{Directory, HoldingsStatus};
use super::follow::Follower;
use super::memory::Memory;
use super::metrics::{FoundOut, HoldingsGauges, HopMetrics};
use super::rank::Rank;

pub(super) use holders::{Part, Whom};

/// How long hops are tried, since one last brought a byte, before this node goes on alone. One that
/// says that it is working is waited for; this bounds how long dead ones can hold up a pull.
pub(super) const HOPS_PATIENCE: Duration = Duration::from_secs(8);

/// Most hops that are tried one after another without a byte: two owners, two homes.
pub(super) const MAX_HOPS: usize = 4;

/// How long a node that stated wrong content is not asked for content.
const DISTRUST: Duration = Duration::from_secs(300);

/// How long a node that stalled is not: it may only have been slow, and its disk may recover.
const STALL_PAUSE: Duration = Duration::from_secs(60);

/// Most nodes that are distrusted at a time; more than a cluster has.
const MAX_DISTRUSTED: u64 = 256;

/// The cluster around this node; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Neighbours {
    members: Arc<dyn Members>,
    pub(super) peers: Peers,
    /// Who is not asked for content, until when, and why.
    distrusted: Cache<NodeId, (Instant, FoundOut)>,
    /// What the others have told of their holdings.
    pub(super) directory: Directory,
    /// For the chunks that come from them.
    pub(super) memory: Memory,
    holds_patience: Duration,
    hop_patience: Duration,
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
        let distrusted = Cache::builder()
            .max_capacity(MAX_DISTRUSTED)
            .time_to_live(DISTRUST)
            .build();
        Self {
            members,
            peers,
            distrusted,
            directory: Directory::default(),
            memory,
            holds_patience: config.holds_patience,
            hop_patience: config.hop_patience,
            metrics: HopMetrics::default(),
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

    /// Returns how long a hop that lives may bring nothing: it may wait for others, and those for
    /// others still, so that who is next to the cause leaves it first.
    pub(super) fn hop_patience(&self, role: Role) -> Duration {
        let in_turn = match role {
            Role::Holder => 1,
            Role::Home => 2,
            Role::Owner => 3,
        };
        self.hop_patience * in_turn
    }

    /// Waits for the first that a hop has to say, as long as it may take; one that gets nowhere is
    /// then left alone.
    ///
    /// # Errors
    /// `Stuck` when it says that, or says nothing but that it lives; else those of `asking`.
    /// # Cancel safety
    /// That of `asking`.
    pub(super) async fn in_time<T>(
        &self,
        hop: Hop,
        asking: impl Future<Output = Result<T, PeerError>>,
    ) -> Result<T, PeerError> {
        let peer = hop.peer;
        let asked = timeout(self.hop_patience(hop.role), asking).await;
        let answer = asked.unwrap_or(Err(PeerError::Stuck { peer }));
        if matches!(answer, Err(PeerError::Stuck { .. })) {
            self.leave_alone(peer);
        }
        answer
    }

    /// Waits for the next that a hop says of a blob, as long as it may take; one that gets nowhere is
    /// then left alone.
    ///
    /// # Errors
    /// As [`Neighbours::news_of_copy`].
    /// # Cancel safety
    /// No news are lost when dropped.
    pub(super) async fn news_in_time(
        &self,
        hop: Hop,
        news: &mut BlobStream,
    ) -> Result<Option<BlobNews>, PeerError> {
        let answer = self.news_of_copy(hop, news).await;
        if matches!(answer, Err(PeerError::Stuck { .. })) {
            self.leave_alone(hop.peer);
        }
        answer
    }

    /// As [`Neighbours::news_in_time`], of a copy: a hop may get nowhere with that because others go
    /// first, here or there, and is asked again for what somebody waits for. While it says that it
    /// waits for its turn, it is not stuck.
    ///
    /// # Errors
    /// `Stuck` when it says nothing else but that it lives; else those of the stream.
    /// # Cancel safety
    /// No news are lost when dropped.
    pub(super) async fn news_of_copy(
        &self,
        hop: Hop,
        news: &mut BlobStream,
    ) -> Result<Option<BlobNews>, PeerError> {
        let Hop { peer, role } = hop;
        let mut delays = news.delays();
        let next = news.next();
        tokio::pin!(next);
        let mut since = Instant::now();
        loop {
            tokio::select! {
                news = &mut next => break news,
                Ok(()) = delays.changed() => {
                    if *delays.borrow_and_update() == Cause::Turn {
                        since = Instant::now();
                    }
                }
                () = sleep_until(since + self.hop_patience(role)) => {
                    break Err(PeerError::Stuck { peer });
                }
            }
        }
    }

    /// Notes that a hop could not help.
    pub(super) fn passed_over(&self, hop: Hop, error: &PeerError) {
        tracing::debug!(
            peer.id = %hop.peer.short(), role = ?hop.role,
            error = error as &dyn std::error::Error, "passed over"
        );
        self.metrics.count_passed_over(hop.role, error);
    }

    /// Does not ask a node for content for a while.
    pub(super) fn distrust(&self, peer: NodeId) {
        tracing::warn!(peer.id = %peer.short(), "it stated wrong content; not asked for a while");
        self.metrics.count_left_alone(FoundOut::wrong);
        let until = Instant::now() + DISTRUST;
        self.distrusted.insert(peer, (until, FoundOut::wrong));
    }

    /// Does not ask a node for content for a shorter while: it keeps this one waiting although it
    /// lives.
    pub(super) fn leave_alone(&self, peer: NodeId) {
        tracing::warn!(peer.id = %peer.short(), "it stalls; not asked for a while");
        self.metrics.count_left_alone(FoundOut::stalled);
        if self.is_trusted(&peer) {
            let until = Instant::now() + STALL_PAUSE;
            self.distrusted.insert(peer, (until, FoundOut::stalled));
        }
    }

    /// Returns the nodes that are not asked for content for a while, in order.
    pub(super) fn distrusted(&self) -> Vec<NodeId> {
        let known = self.distrusted.iter().map(|(id, _)| *id);
        let mut distrusted: Vec<NodeId> = known.filter(|id| !self.is_trusted(id)).collect();
        distrusted.sort();
        distrusted
    }

    fn is_usable(&self, peer: &NodeId) -> bool {
        self.peers.is_reachable(peer) && self.is_trusted(peer)
    }

    /// Whether a node has not been found out of late.
    pub(super) fn is_trusted(&self, peer: &NodeId) -> bool {
        self.found_out(peer).is_none()
    }

    /// Returns what a node has been found out by of late.
    pub(super) fn found_out(&self, peer: &NodeId) -> Option<FoundOut> {
        let (until, reason) = self.distrusted.get(peer)?;
        (until > Instant::now()).then_some(reason)
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
