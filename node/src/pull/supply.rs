//! What this node does for other nodes: the answers to their questions.
//!
//! `telling` has the news of a blob that another node opened, `reading` its chunks, `takers` who
//! else has or takes it; `holdings` tells others what is here. Asked as owner or home, this node starts to pull for the other in that
//! rank; asked as holder, it gives only what it has. What is refused is told with the origin whose
//! answer it was, so that nobody takes one provenance's refusal for another's.

mod far_readers;
mod holdings;
mod listing;
mod reading;
mod takers;
mod telling;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Digest, RepositoryName};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{
    AskHolds, AskManifest, AskVouch, BlobNews, Cause, Holding, HoldingsChange, OpenBlob,
    OriginName, Purpose, Question, ReadChunks, RecallTag, Refusal, ResolveTag,
};

use moka::sync::Cache;

use crate::peer::{ChunkEvent, Handler, PeerManifest, PeerTag};
use crate::upstream::Upstreams;

use super::Puller;
use super::access::Form;
use super::manifest::ManifestAnswer;
use super::origin::Origin;
use super::rank::Rank;
use super::refusal;
use super::transfer::Phase;

use far_readers::FarReaders;
use listing::Listings;
use takers::Takers;

/// How long this node does not begin to fetch for others what it could not store.
const UNSTORABLE: Duration = Duration::from_secs(60);

/// Most contents of which it is remembered that they could not be stored.
const MAX_UNSTORABLE: u64 = 1024;

/// Answers other nodes; clones share one node's state.
#[derive(Clone, Debug)]
pub struct Supplier {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    puller: Puller,
    upstreams: Upstreams,
    takers: Takers,
    far_readers: FarReaders,
    listings: Listings,
    /// Content that has lately passed through memory only: nobody can read it here by chunks.
    unstorable: Cache<Digest, ()>,
}

impl Supplier {
    /// Builds the answering side of a node's pull room.
    pub fn new(puller: Puller, upstreams: Upstreams) -> Self {
        let fillers = &puller.inner.fillers;
        let listings = Listings::new(fillers.store.clone(), fillers.tasks.clone());
        let shared = Shared {
            puller,
            upstreams,
            takers: Takers::default(),
            far_readers: FarReaders::default(),
            listings,
            unstorable: Cache::builder()
                .max_capacity(MAX_UNSTORABLE)
                .time_to_live(UNSTORABLE)
                .build(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Shared {
    /// Returns those of the named origins that are configured here, in their order.
    fn origins(&self, names: &[OriginName]) -> Vec<Origin> {
        let origin = |name: &OriginName| self.origin(&name.upstream, &name.repository);
        names.iter().filter_map(origin).collect()
    }

    fn origin(&self, upstream: &str, repository: &RepositoryName) -> Option<Origin> {
        let upstream = self.upstreams.find(upstream)?;
        Some(Origin {
            upstream,
            repository: repository.clone(),
        })
    }

    fn configured(&self, name: &OriginName) -> Result<Origin, Refusal> {
        let origin = self.origin(&name.upstream, &name.repository);
        origin.ok_or(Refusal::Unconfigured)
    }

    async fn manifest(&self, from: NodeId, question: AskManifest) -> Result<PeerManifest, Refusal> {
        let manifests = &self.puller.inner.manifests;
        let digest = question.digest;
        let origins = self.origins(&question.origins);
        let refuse = |error| refusal::refusal(origins.first(), &error);
        let answer = match Rank::of(question.role) {
            None => {
                // Before the store is looked into: what is on its way now may be there by then.
                let followed = manifests.for_follower(from, origins.first(), &digest);
                let followed = followed.await.map_err(refuse)?;
                let local = match followed {
                    None => manifests.local(&digest).await,
                    followed => Ok(followed),
                };
                let local = local.map_err(|_| Refusal::Unable)?;
                local.ok_or(Refusal::Absent)?
            }
            Some(rank) => {
                let fetched = manifests.for_peer(&origins, &digest, rank).await;
                fetched.map_err(refuse)?
            }
        };
        Ok(self.with_provenance(answer).await)
    }

    async fn with_provenance(&self, answer: ManifestAnswer) -> PeerManifest {
        let store = &self.puller.inner.store;
        let provenance = store.provenance(&answer.digest).await;
        PeerManifest {
            media_type: answer.media_type,
            bytes: answer.bytes,
            provenance: provenance.iter().map(refusal::name_of).collect(),
        }
    }

    async fn resolve(&self, question: ResolveTag) -> Result<PeerTag, Refusal> {
        let origin = self.configured(&question.origin)?;
        let max_age = Duration::from_millis(question.max_age_ms);
        let tags = &self.puller.inner.tags;
        let resolved = tags.resolve_as_home(&origin, &question.tag, max_age).await;
        let (digest, age) = resolved.map_err(|error| refusal::refusal(Some(&origin), &error))?;
        Ok(PeerTag {
            digest,
            age,
            origin: refusal::origin_name(&origin),
        })
    }

    async fn recall(&self, question: RecallTag) -> Option<PeerTag> {
        let RecallTag {
            upstream,
            repository,
            tag,
        } = question;
        let origin = self.origin(&upstream, &repository)?;
        let (digest, age) = self.puller.inner.tags.recall(&origin, &tag).await?;
        Some(PeerTag {
            digest,
            age,
            origin: refusal::origin_name(&origin),
        })
    }

    async fn vouch(&self, question: AskVouch) -> Result<Duration, Refusal> {
        let origin = self.configured(&question.origin)?;
        // What another credential may read says nothing about the asker's.
        if refusal::origin_name(&origin) != question.origin {
            return Err(Refusal::Unconfigured);
        }
        let form = if question.is_manifest {
            Form::Manifest
        } else {
            Form::Blob
        };
        let max_age = Duration::from_millis(question.max_age_ms);
        let access = &self.puller.inner.access;
        let vouched = access
            .vouch_for_peer(&origin, &question.digest, form, max_age)
            .await;
        vouched.map_err(|error| refusal::refusal(Some(&origin), &error))
    }

    async fn holds(&self, from: NodeId, question: AskHolds) -> Vec<Holding> {
        let Puller { inner } = &self.puller;
        let AskHolds { digests, purpose } = question;
        let intends = purpose == Purpose::Fetch;
        if let Some(neighbours) = inner.neighbours.as_ref().filter(|_| intends) {
            // Before looking whether this node means to fetch the same: if it does so later, it
            // finds the other's intent.
            neighbours.note_intent(from, &digests);
        }
        let offered =
            |digest: &&Digest| purpose != Purpose::Drop || !inner.store.is_withdrawn(digest);
        // Before the files are looked at: what is withdrawn now may be gone, and no longer withdrawn,
        // by the time that its file was found.
        let offered: HashSet<Digest> = digests.iter().filter(offered).copied().collect();
        // And so may what is on its way now be stored, and no longer be on its way.
        let under_way: HashMap<Digest, Holding> = digests
            .iter()
            .filter_map(|digest| Some((*digest, self.under_way(digest)?)))
            .collect();
        let missing = inner.store.missing(digests.clone()).await;
        // A store that cannot be read cannot serve either.
        let missing = missing.unwrap_or_else(|_| digests.clone());
        let missing: HashSet<Digest> = missing.into_iter().collect();
        let holding = |digest: &Digest| {
            if !offered.contains(digest) {
                return Holding::No;
            }
            if !missing.contains(digest) {
                return Holding::Whole;
            }
            under_way.get(digest).copied().unwrap_or(Holding::No)
        };
        digests.iter().map(holding).collect()
    }

    /// Returns what is to be said of a blob or manifest that is on its way to this node.
    fn under_way(&self, digest: &Digest) -> Option<Holding> {
        let Puller { inner } = &self.puller;
        let Some(transfer) = inner.fillers.table.get(digest) else {
            let asked = inner.manifests.fetching(digest)?;
            return Some(Holding::Fetching { asked });
        };
        let state = transfer.state();
        if matches!(state.phase, Phase::Verified) {
            return Some(Holding::Whole);
        }
        let asked = state.has_asked;
        if asked || transfer.rank() == Rank::Home {
            return Some(Holding::Fetching { asked });
        }
        match state.checked_chunks() {
            0 => None,
            chunks => Some(Holding::Part { chunks }),
        }
    }
}

impl Handler for Supplier {
    fn open(
        &self,
        from: NodeId,
        question: OpenBlob,
    ) -> BoxStream<'static, Result<BlobNews, Refusal>> {
        telling::tell(Arc::clone(&self.shared), from, question)
    }

    fn read(&self, from: NodeId, question: ReadChunks) -> BoxStream<'static, ChunkEvent> {
        reading::read(Arc::clone(&self.shared), from, question)
    }

    fn manifest(
        &self,
        from: NodeId,
        question: AskManifest,
    ) -> BoxFuture<'static, Result<PeerManifest, Refusal>> {
        let shared = Arc::clone(&self.shared);
        async move { shared.manifest(from, question).await }.boxed()
    }

    fn resolve(
        &self,
        _from: NodeId,
        question: ResolveTag,
    ) -> BoxFuture<'static, Result<PeerTag, Refusal>> {
        let shared = Arc::clone(&self.shared);
        async move { shared.resolve(question).await }.boxed()
    }

    fn recall(&self, _from: NodeId, question: RecallTag) -> BoxFuture<'static, Option<PeerTag>> {
        let shared = Arc::clone(&self.shared);
        async move { shared.recall(question).await }.boxed()
    }

    fn holds(&self, from: NodeId, question: AskHolds) -> BoxFuture<'static, Vec<Holding>> {
        let shared = Arc::clone(&self.shared);
        async move { shared.holds(from, question).await }.boxed()
    }

    fn vouch(
        &self,
        _from: NodeId,
        question: AskVouch,
    ) -> BoxFuture<'static, Result<Duration, Refusal>> {
        let shared = Arc::clone(&self.shared);
        async move { shared.vouch(question).await }.boxed()
    }

    fn waits_for(&self, question: &Question) -> Cause {
        let inner = &self.shared.puller.inner;
        let key = match question {
            Question::Open(OpenBlob { digest, .. }) => {
                let transfer = inner.fillers.table.get(digest);
                if transfer.is_some_and(|transfer| transfer.is_queued()) {
                    return Cause::Turn;
                }
                Key::of_digest(digest)
            }
            Question::Manifest(AskManifest { digest, .. }) => Key::of_digest(digest),
            Question::Resolve(ResolveTag { origin, tag, .. }) => {
                Key::of_tag(&origin.upstream, &origin.repository, tag)
            }
            // They have bounds of their own, or need no answer.
            _ => return Cause::Others,
        };
        match inner.waits.contains(key) {
            true => Cause::Others,
            false => Cause::Work,
        }
    }

    fn others(&self, from: NodeId, question: ReadChunks) -> Vec<NodeId> {
        self.shared.takers.before(&question.digest, from)
    }

    fn follow(&self, from: NodeId) -> BoxStream<'static, HoldingsChange> {
        holdings::tell(Arc::clone(&self.shared), from)
    }
}
