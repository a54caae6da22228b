//! The other nodes of a cluster, as a pull sees them: whom to ask for a key, and who holds it.
//!
//! Every hop is a pull-through cache of the next: this node, the owner of the key in its zone, its
//! home, the upstream. A hop that is dead, slow or wrong is passed over; at last this node looks for
//! members that hold the content, and then asks the upstream itself. The cluster can make a pull
//! faster, it can never make it fail. This file chooses; it moves no content.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{
    AskHolds, BlobNews, Holding, MAX_ASKED_DIGESTS, OpenBlob, Role,
};
use moka::sync::Cache;
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::cluster::{Member, View};
use crate::peer::{Members, PeerError, Peers};
use crate::store::Custody;
use crate::task::Tasks;

use super::directory::{Directory, HoldingsStatus, Word};
use super::follow::Follower;
use super::metrics::{Answered, HoldingsGauges, HopMetrics};
use super::rank::Rank;
use super::search::{Purpose, Search};

/// How long hops are tried before this node goes on alone. One that says that it is working is
/// waited for; this bounds how long dead ones can hold up a pull.
pub(super) const HOPS_PATIENCE: Duration = Duration::from_secs(8);

/// Round trips that a far member has to say what it holds.
const HOLDS_ROUND_TRIPS: u32 = 3;

/// How long a node that stated wrong content is not asked for content.
const DISTRUST: Duration = Duration::from_secs(300);

/// Most nodes that are distrusted at a time; more than a cluster has.
const MAX_DISTRUSTED: u64 = 256;

/// Most chunks that all takes together hold in memory: 128 MiB. Further takes wait for others.
const MAX_CHUNKS_IN_MEMORY: usize = 128;

/// Most holders of one content that are tried.
const MAX_HOLDERS: usize = 3;

/// The cluster around this node; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Neighbours {
    members: Arc<dyn Members>,
    pub(super) peers: Peers,
    distrusted: Cache<NodeId, ()>,
    /// What the others have told of their holdings.
    pub(super) directory: Directory,
    memory: Arc<Semaphore>,
    holds_patience: Duration,
    pub(super) metrics: HopMetrics,
}

/// A node to ask, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) peer: NodeId,
    pub(super) role: Role,
}

/// What the members say about some contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Holders {
    /// Members that have the whole, the best first.
    pub(super) whole: Vec<NodeId>,
    /// A member that this node has to follow, because it fetches the same from an upstream.
    pub(super) fetching: Option<NodeId>,
}

impl Neighbours {
    pub(super) fn new(members: Arc<dyn Members>, peers: Peers, holds_patience: Duration) -> Self {
        let distrusted = Cache::builder()
            .max_capacity(MAX_DISTRUSTED)
            .time_to_live(DISTRUST)
            .build();
        Self {
            members,
            peers,
            distrusted,
            directory: Directory::default(),
            memory: Arc::new(Semaphore::new(MAX_CHUNKS_IN_MEMORY)),
            holds_patience,
            metrics: HopMetrics::default(),
        }
    }

    pub(super) fn view(&self) -> Arc<View> {
        self.members.view()
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

    /// Waits until a take may hold so many chunks in memory, for as long as the result lives.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue.
    pub(super) async fn memory(&self, chunks: u32) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.memory).acquire_many_owned(chunks).await;
        permit.expect("the semaphore is never closed")
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
        self.distrusted.insert(peer, ());
    }

    fn is_usable(&self, peer: &NodeId) -> bool {
        self.peers.is_reachable(peer) && !self.distrusted.contains_key(peer)
    }

    /// Looks for holders of `digest`. Whoever then goes upstream has recorded its intent before.
    pub(super) fn search(&self, digest: &Digest, purpose: Purpose) -> Search<'_> {
        Search::new(self, digest, purpose)
    }

    /// Returns members that have told that they have `digest`, the best first.
    pub(super) fn told(&self, digest: &Digest) -> Vec<NodeId> {
        let view = self.view();
        let key = Key::of_digest(digest);
        let told = self.usable(&view).map(|member| member.id);
        let mut told: Vec<NodeId> = told
            .filter(|peer| self.word(&view, peer, key) == Word::Holds)
            .collect();
        self.keep_best(&view, &mut told);
        if !told.is_empty() {
            self.metrics.count_search(Answered::Told);
        }
        told
    }

    /// Asks the members that have not told it whether they have `digest`.
    ///
    /// # Cancel safety
    /// Dropping the future ends the questions.
    pub(super) async fn ask(&self, digest: &Digest, purpose: Purpose) -> Holders {
        let view = self.view();
        let key = Key::of_digest(digest);
        let asked = self.usable(&view);
        let asked = asked.filter(|member| self.has_to_be_asked(&view, &member.id, key, purpose));
        let intent = purpose == Purpose::Fetch;
        let questions: Vec<_> = asked.map(|member| (member, vec![*digest])).collect();
        self.metrics.count_search(match questions.is_empty() {
            true => Answered::Known,
            false => Answered::Asked,
        });
        let mut answers = self.put(&view, questions, intent);
        let mut holders = Holders::default();
        while let Some((peer, _, holding)) = answers.next().await {
            match holding.first() {
                Some(Holding::Whole) => holders.whole.push(peer),
                Some(Holding::Fetching { asked }) if *asked || peer < view.me() => {
                    holders.fetching = Some(peer);
                }
                _ => {}
            }
        }
        self.keep_best(&view, &mut holders.whole);
        holders
    }

    /// Tells those who are responsible for `digest` that it is here, and waits until they know.
    ///
    /// For content that was fetched before anybody knew its digest: nobody was asked, and who asks
    /// for it next may be quicker than the stream that tells of it.
    pub(super) async fn announce(&self, digest: &Digest) {
        let view = self.view();
        let told = view.placement().told(Key::of_digest(digest));
        let told = self
            .usable(&view)
            .filter(|member| told.contains(&member.id));
        let questions = told.map(|member| (member, vec![*digest])).collect();
        let mut answers = self.put(&view, questions, true);
        while answers.next().await.is_some() {}
    }

    /// Remembers that a member goes upstream unless somebody has these.
    pub(super) fn note_intent(&self, peer: NodeId, digests: &[Digest]) {
        for digest in digests {
            self.directory.note_intent(peer, Key::of_digest(digest));
        }
    }

    /// Returns the size of a blob that another node has.
    pub(super) async fn size(&self, digest: &Digest) -> Option<u64> {
        let mut search = self.search(digest, Purpose::Know);
        while let Some(peer) = search.next().await {
            let question = OpenBlob {
                digest: *digest,
                role: Role::Holder,
                origins: Vec::new(),
                zone: self.view().zone().to_owned(),
            };
            let Ok(mut news) = self.peers.open(peer, question).await else {
                continue;
            };
            if let Ok(Some(BlobNews::Opened { size, .. })) = news.next().await {
                return Some(size);
            }
        }
        None
    }

    /// Returns those of `digests` that no member has, in their order; one question to each member
    /// whose word on some of them is not known.
    pub(super) async fn missing(&self, digests: Vec<Digest>) -> Vec<Digest> {
        let view = self.view();
        let mut missing = digests;
        missing.retain(|digest| {
            let key = Key::of_digest(digest);
            let mut members = self.usable(&view);
            !members.any(|member| self.word(&view, &member.id, key) == Word::Holds)
        });
        let mut held = HashSet::new();
        for part in missing.chunks(MAX_ASKED_DIGESTS) {
            let questions = self.usable(&view).map(|member| {
                let unknown = part.iter().filter(|digest| {
                    let key = Key::of_digest(digest);
                    self.has_to_be_asked(&view, &member.id, key, Purpose::Know)
                });
                (member, unknown.copied().collect::<Vec<Digest>>())
            });
            let questions = questions.filter(|(_, unknown)| !unknown.is_empty());
            held.extend(self.whole(&view, questions.collect()).await);
        }
        missing.retain(|digest| !held.contains(digest));
        missing
    }

    /// Returns those of `digests` that a member has now, by its own word: one that keeps a seat,
    /// because others come and go.
    async fn elsewhere(&self, digests: Vec<Digest>) -> HashSet<Digest> {
        let view = self.view();
        let mut held = HashSet::new();
        for part in digests.chunks(MAX_ASKED_DIGESTS) {
            let stay = self.usable(&view).filter(|member| member.weight > 0);
            let questions = stay.map(|member| (member, part.to_vec())).collect();
            held.extend(self.whole(&view, questions).await);
        }
        held
    }

    /// Puts questions, and returns what somebody has the whole of.
    async fn whole(&self, view: &View, questions: Vec<(&Member, Vec<Digest>)>) -> HashSet<Digest> {
        let mut held = HashSet::new();
        let mut answers = self.put(view, questions, false);
        while let Some((_, asked, holdings)) = answers.next().await {
            let answered = asked.into_iter().zip(holdings);
            let whole = answered.filter(|(_, holding)| *holding == Holding::Whole);
            held.extend(whole.map(|(digest, _)| digest));
        }
        held
    }

    /// Puts the nearest first, of these the least busy, and keeps as many as are tried.
    fn keep_best(&self, view: &View, peers: &mut Vec<NodeId>) {
        let is_far = |peer: &NodeId| {
            let member = view.member(peer);
            member.is_none_or(|member| member.zone != view.zone())
        };
        peers.sort_by_cached_key(|peer| (is_far(peer), self.members.load(peer)));
        peers.truncate(MAX_HOLDERS);
    }

    /// Returns the members that may be asked.
    fn usable<'a>(&'a self, view: &'a View) -> impl Iterator<Item = &'a Member> {
        view.live().filter(|member| self.is_usable(&member.id))
    }

    fn word(&self, view: &View, peer: &NodeId, key: Key) -> Word {
        let placement = view.placement().fingerprint();
        self.directory.word(peer, key, placement)
    }

    /// Whether the word of a member does not suffice to know that it has not, and does not fetch,
    /// what has this key.
    ///
    /// Members tell this node what it is responsible for. They do not tell what they are about to
    /// fetch, but ask before they do: everybody asks the home, and those who are told of a key
    /// besides the home ask each other. So of two nodes that mean to fetch the same, at least one
    /// asks the other.
    fn has_to_be_asked(&self, view: &View, peer: &NodeId, key: Key, purpose: Purpose) -> bool {
        let (placement, me) = (view.placement(), view.me());
        if self.word(view, peer, key) != Word::HoldsNot || !placement.is_told(&me, key) {
            return true;
        }
        let is_home = placement.walk(key).next() == Some(me);
        purpose == Purpose::Fetch && !is_home && placement.is_told(peer, key)
    }

    /// Puts questions to members; each has its own time to answer, and gives no holdings if it
    /// does not: it has nothing, as far as this pull is concerned.
    fn put(
        &self,
        view: &View,
        questions: Vec<(&Member, Vec<Digest>)>,
        intent: bool,
    ) -> FuturesUnordered<impl Future<Output = (NodeId, Vec<Digest>, Vec<Holding>)> + use<>> {
        let ask = |(member, digests): (&Member, Vec<Digest>)| {
            let patience = self.patience(view, member);
            let (peers, peer) = (self.peers.clone(), member.id);
            async move {
                let asked = digests.clone();
                let question = AskHolds { digests, intent };
                let answer = peers.holds(peer, question, patience).await;
                (peer, asked, answer.unwrap_or_default())
            }
        };
        questions.into_iter().map(ask).collect()
    }

    fn patience(&self, view: &View, member: &Member) -> Duration {
        if member.zone == view.zone() {
            return self.holds_patience;
        }
        let round_trip = self.peers.round_trip(&member.id).unwrap_or_default();
        (round_trip * HOLDS_ROUND_TRIPS).clamp(self.holds_patience, self.holds_patience * 4)
    }
}

impl Custody for Neighbours {
    fn elsewhere(&self, digests: Vec<Digest>) -> BoxFuture<'static, HashSet<Digest>> {
        let neighbours = self.clone();
        async move { neighbours.elsewhere(digests).await }.boxed()
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
    use crate::cluster::Standing;

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
            wire_version: 1,
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
