//! Who holds some content: what the members have told, and questions to those who have not.
//!
//! Whom it takes to ask is decided here; in which order holders are tried is `search`'s.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{
    AskHolds, BlobNews, Holding, MAX_ASKED_DIGESTS, OpenBlob, Purpose, Role,
};
use tokio::time::Instant;

use crate::cluster::{Member, View};
use crate::pull::directory::Word;
use crate::pull::metrics::Answered;
use crate::pull::refusal::provenance_of;
use crate::pull::search::Search;
use crate::store::{Custody, Provenance};

use super::{Hop, Neighbours};

/// Round trips that a far member has to say what it holds.
const HOLDS_ROUND_TRIPS: u32 = 3;

/// Most holders of one content that are tried.
const MAX_HOLDERS: usize = 3;

/// What the members say about some contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::pull) struct Holders {
    /// Members that have the whole, the best first.
    pub(in crate::pull) whole: Vec<NodeId>,
    /// A member that this node has to follow, because it fetches the same from an upstream.
    pub(in crate::pull) fetching: Option<NodeId>,
    /// Members that have the beginning, the longest first.
    pub(in crate::pull) parts: Vec<Part>,
}

/// The beginning of a blob, at a member that takes it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pull) struct Part {
    pub(in crate::pull) peer: NodeId,
    /// How many chunks, from the first on.
    pub(in crate::pull) chunks: u32,
}

/// Who is asked for holders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pull) enum Whom {
    /// Those whose word does not say that they have not and do not fetch it.
    InDoubt,
    /// Everybody: parts are not told.
    All,
}

impl Neighbours {
    /// Looks for holders of `digest`. Whoever then goes upstream has recorded its intent before.
    pub(in crate::pull) fn search(&self, digest: &Digest, purpose: Purpose) -> Search<'_> {
        Search::new(self, digest, purpose)
    }

    /// Returns members that have told that they have `digest`, the best first.
    pub(in crate::pull) fn told(&self, digest: &Digest) -> Vec<NodeId> {
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

    /// Asks members whether they have `digest`.
    ///
    /// # Cancel safety
    /// Dropping the future ends the questions.
    pub(in crate::pull) async fn ask(
        &self,
        digest: &Digest,
        purpose: Purpose,
        whom: Whom,
    ) -> Holders {
        let view = self.view();
        let key = Key::of_digest(digest);
        let asked = self.usable(&view).filter(|member| {
            whom == Whom::All || self.has_to_be_asked(&view, &member.id, key, purpose)
        });
        let asked: Vec<_> = asked.collect();
        self.metrics.count_search(match asked.is_empty() {
            true => Answered::Known,
            false => Answered::Asked,
        });
        self.holders(&view, asked, digest, purpose).await
    }

    /// Asks those back who have stated since `since` that they mean to fetch `digest`: they may have
    /// been asked before, and may be gone ahead. Returns one that this node has to follow, or that
    /// has it by now.
    ///
    /// # Cancel safety
    /// Dropping the future ends the questions.
    pub(in crate::pull) async fn ask_back(
        &self,
        digest: &Digest,
        since: Instant,
    ) -> Option<NodeId> {
        let mut asked: HashSet<NodeId> = HashSet::new();
        loop {
            let view = self.view();
            let intending = self.directory.intending(Key::of_digest(digest), since);
            // Each once: two that ask each other back state their intents anew each time.
            let intending: HashSet<NodeId> = intending
                .into_iter()
                .filter(|peer| asked.insert(*peer))
                .collect();
            let members = self.usable(&view);
            let members: Vec<_> = members
                .filter(|member| intending.contains(&member.id))
                .collect();
            if members.is_empty() {
                return None;
            }
            let holders = self.holders(&view, members, digest, Purpose::Fetch).await;
            let found = holders.whole.first().copied().or(holders.fetching);
            if found.is_some() {
                return found;
            }
        }
    }

    async fn holders(
        &self,
        view: &View,
        members: Vec<&Member>,
        digest: &Digest,
        purpose: Purpose,
    ) -> Holders {
        let questions = members.into_iter().map(|member| (member, vec![*digest]));
        let mut answers = self.put(view, questions.collect(), purpose);
        let mut holders = Holders::default();
        while let Some((peer, _, holding)) = answers.next().await {
            match holding.first() {
                Some(Holding::Whole) => holders.whole.push(peer),
                Some(Holding::Fetching { asked }) if *asked || peer < view.me() => {
                    holders.fetching = Some(peer);
                }
                Some(Holding::Part { chunks }) => holders.parts.push(Part {
                    peer,
                    chunks: *chunks,
                }),
                _ => {}
            }
        }
        self.keep_best(view, &mut holders.whole);
        holders.parts.sort_by_key(|part| Reverse(part.chunks));
        holders.parts.truncate(MAX_HOLDERS);
        holders
    }

    /// Tells those who are responsible for `digest` that it is here, and waits until they know.
    ///
    /// For content that was fetched before anybody knew its digest: nobody was asked, and who asks
    /// for it next may be quicker than the stream that tells of it.
    pub(in crate::pull) async fn announce(&self, digest: &Digest) {
        let view = self.view();
        let told = view.placement().told(Key::of_digest(digest));
        let told = self
            .usable(&view)
            .filter(|member| told.contains(&member.id));
        let questions = told.map(|member| (member, vec![*digest])).collect();
        let mut answers = self.put(&view, questions, Purpose::Fetch);
        while answers.next().await.is_some() {}
    }

    /// Returns the size of a blob that another node has, and what it was fetched as.
    pub(in crate::pull) async fn examine(&self, digest: &Digest) -> Option<(u64, Vec<Provenance>)> {
        let mut search = self.search(digest, Purpose::Know);
        while let Some(peer) = search.next().await {
            let question = OpenBlob {
                digest: *digest,
                role: Role::Holder,
                origins: Vec::new(),
                zone: self.view().zone().to_owned(),
                have: 0,
                copy: false,
            };
            let role = question.role;
            let Ok(mut news) = self.peers.open(peer, question).await else {
                continue;
            };
            let opened = self.news_in_time(Hop { peer, role }, &mut news).await;
            if let Ok(Some(BlobNews::Opened {
                size, provenance, ..
            })) = opened
            {
                return Some((size, provenance.iter().map(provenance_of).collect()));
            }
        }
        None
    }

    /// Returns those of `digests` that no member has, in their order; one question to each member
    /// whose word on some of them is not known.
    pub(in crate::pull) async fn missing(&self, digests: Vec<Digest>) -> Vec<Digest> {
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
            held.extend(self.whole(&view, questions.collect(), Purpose::Know).await);
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
            held.extend(self.whole(&view, questions, Purpose::Drop).await);
        }
        held
    }

    /// Puts questions, and returns what somebody has the whole of.
    async fn whole(
        &self,
        view: &View,
        questions: Vec<(&Member, Vec<Digest>)>,
        purpose: Purpose,
    ) -> HashSet<Digest> {
        let mut held = HashSet::new();
        let mut answers = self.put(view, questions, purpose);
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
        purpose: Purpose,
    ) -> FuturesUnordered<impl Future<Output = (NodeId, Vec<Digest>, Vec<Holding>)> + use<>> {
        let ask = |(member, digests): (&Member, Vec<Digest>)| {
            let patience = self.patience(view, member);
            let (peers, peer) = (self.peers.clone(), member.id);
            async move {
                let asked = digests.clone();
                let question = AskHolds { digests, purpose };
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
