//! The decision where content comes from: this node's store, later a peer, at last the upstream.
//!
//! # Rules
//! - One transfer per digest and one check per tag, however many clients ask.
//! - Headers leave only when the first bytes are in hand, and a wrong body never completes.
//! - Failures belong to the provenance that a client named; the transfer goes on with others.
//! - A fill outlives its clients and is never slowed by one.
//! - While an upstream gives no blobs, a manifest is handed out only with everything under it.
//! - What is not for everybody goes out only where it belongs to the repository that was named.
//!
//! Every hop is a pull-through cache of the next: `borrow` leads a blob from this node over the
//! owner in its zone and its home to whoever holds it, `take` moves it, `supply` is the other end.
//! This room knows nothing of HTTP status codes.

mod access;
mod blob;
mod borrow;
mod candidates;
mod chains;
mod claimed;
mod config;
mod deadline;
mod directory;
mod error;
mod far;
mod feed;
mod fill;
mod flights;
mod follow;
mod known;
mod listing;
mod manifest;
mod memory;
mod metrics;
mod negative;
mod neighbours;
mod open;
mod origin;
mod orphans;
mod pending;
mod policy;
mod promise;
mod rank;
mod refusal;
mod relay;
mod replicate;
mod resolve;
mod search;
mod segment;
mod sink;
mod status;
mod supply;
mod table;
mod tag;
mod take;
mod transfer;
mod waits;
mod window;

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::access::Caller;
use millrace_protocol::oci::{Digest, MediaType, Reference};
use prometheus_client::registry::Registry;

pub use blob::{BlobBody, OpenBlob, Piece};
pub use config::Config;
pub use directory::HoldingsStatus;
pub use error::PullError;
pub use listing::{ReferrersAnswer, TagsAnswer};
pub use manifest::ManifestAnswer;
pub use open::BlobHead;
pub use origin::{Origin, Source};
pub use status::{Status, TransferStatus};
pub use supply::Supplier;

use crate::peer::{Members, Peers};
use crate::store::Store;
use crate::task::Tasks;
use access::{Access, Form, Proof};
use deadline::Deadline;
use fill::Fillers;
use listing::Listings;
use manifest::Manifests;
use memory::Memory;
use metrics::{Kind, Metrics};
use negative::Negative;
use neighbours::Neighbours;
use orphans::Orphans;
use replicate::Replicas;
use tag::Tags;
use waits::Waits;

/// What a client needs of a manifest without its bytes.
#[derive(Clone, Debug)]
pub struct ManifestHeadAnswer {
    /// Digest of the bytes.
    pub digest: Digest,
    /// The exact `Content-Type`.
    pub media_type: MediaType,
    /// Size in bytes.
    pub size: u64,
    /// Where it comes from.
    pub source: Source,
}

/// Answers for everything that clients pull; clones share one node's state.
#[derive(Clone, Debug)]
pub struct Puller {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    access: Access,
    fillers: Fillers,
    manifests: Manifests,
    tags: Tags,
    listings: Listings,
    negative: Negative,
    neighbours: Option<Neighbours>,
    waits: Waits,
    /// As in [`Config`].
    header_budget: Duration,
    metrics: Metrics,
}

/// What the parts of the room work with.
#[derive(Clone, Debug)]
struct Surroundings {
    store: Store,
    tasks: Tasks,
    negative: Negative,
    /// The other nodes, in a cluster.
    neighbours: Option<Neighbours>,
    replicas: Option<Replicas>,
    waits: Waits,
    orphans: Orphans,
}

impl Puller {
    /// Builds the room over a store, and over the other nodes of a cluster if there is one.
    pub fn new(
        config: Config,
        store: Store,
        cluster: Option<(Arc<dyn Members>, Peers)>,
        tasks: &Tasks,
    ) -> Self {
        let negative = Negative::new(config.negative_ttl);
        let orphans = Orphans::default();
        let neighbours = cluster.map(|(members, peers)| {
            let memory = Memory::new(orphans.clone());
            Neighbours::new(members, peers, memory, &config)
        });
        if let Some(neighbours) = &neighbours {
            neighbours.follow(tasks);
            store.keep_room(Arc::new(neighbours.clone()), tasks);
        }
        let replicas = neighbours
            .clone()
            .map(|neighbours| Replicas::new(neighbours, tasks.clone(), config.replicas));
        let waits = Waits::default();
        let surroundings = Surroundings {
            store: store.clone(),
            tasks: tasks.clone(),
            negative: negative.clone(),
            neighbours: neighbours.clone(),
            replicas,
            waits: waits.clone(),
            orphans,
        };
        let access = Access::new(&config, surroundings.clone());
        let header_budget = config.header_budget;
        let manifests = Manifests::new(surroundings.clone(), access.clone());
        let tags = Tags::new(manifests.clone(), tasks.clone(), config);
        let fillers = Fillers::new(surroundings);
        let inner = Inner {
            fillers,
            manifests,
            tags,
            listings: Listings::new(tasks.clone(), negative.clone()),
            store,
            access,
            negative,
            neighbours,
            waits,
            header_budget,
            metrics: Metrics::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Returns a manifest by tag or digest.
    ///
    /// # Errors
    /// Why it cannot be had.
    /// # Cancel safety
    /// Dropping the future leaves a fetch running for whoever asks next.
    /// Source: OCI Distribution Spec end-3.
    pub async fn manifest(
        &self,
        origin: &Origin,
        reference: &Reference,
    ) -> Result<ManifestAnswer, PullError> {
        let deadline = self.deadline();
        let opening = self.open_manifest(origin, reference, deadline);
        let result = deadline.for_answer(opening).await.flatten();
        let source = result.as_ref().ok().map(|answer| answer.source);
        self.inner.metrics.count(Kind::manifest, source);
        result
    }

    async fn open_manifest(
        &self,
        origin: &Origin,
        reference: &Reference,
        deadline: Deadline,
    ) -> Result<ManifestAnswer, PullError> {
        let access = &self.inner.access;
        let answer = match reference {
            Reference::Tag(tag) => {
                let answer = self.inner.tags.resolve(origin, tag, deadline).await?;
                // What is not kept was fetched for this tag just now.
                let proving = access.prove(origin, &answer.digest, Form::Manifest, deadline);
                let _proof = proving.await?;
                return Ok(answer);
            }
            Reference::Digest(digest) => {
                let proving = access.prove(origin, digest, Form::Manifest, deadline);
                let before = proving.await?;
                let fetching = self.inner.manifests.by_digest(origin, digest, deadline);
                let answer = fetching.await?;
                if before == Proof::Given {
                    return Ok(answer);
                }
                answer
            }
        };
        // It may have come for somebody else's repository.
        let digest = &answer.digest;
        let proving = access.prove(origin, digest, Form::Manifest, deadline);
        if proving.await? == Proof::Absent {
            access
                .ask_if_restricted(origin, digest, Form::Manifest, deadline)
                .await?;
        }
        Ok(answer)
    }

    /// Whether the caller may read this repository, whatever is in it.
    pub fn permits(&self, origin: &Origin, caller: &Caller<'_>) -> bool {
        self.inner.access.permits(origin, caller)
    }

    /// Whether the caller may know of a repository, written as `upstream/repository`, of an
    /// upstream that is asked anonymously or not.
    pub fn may_list(&self, name: &str, is_anonymous: bool, caller: &Caller<'_>) -> bool {
        self.inner.access.may_list(name, is_anonymous, caller)
    }

    /// Returns what a `HEAD` of a manifest tells.
    ///
    /// The manifest itself is fetched if it is not here: its exact size and type belong to the
    /// answer, and a client that asks by `HEAD` comes back for the bytes.
    ///
    /// # Errors
    /// As [`Puller::manifest`].
    pub async fn manifest_head(
        &self,
        origin: &Origin,
        reference: &Reference,
    ) -> Result<ManifestHeadAnswer, PullError> {
        let answer = self.manifest(origin, reference).await?;
        Ok(ManifestHeadAnswer {
            digest: answer.digest,
            media_type: answer.media_type,
            size: answer.bytes.len() as u64,
            source: answer.source,
        })
    }

    /// Returns the times of a client's request that begins now.
    fn deadline(&self) -> Deadline {
        Deadline::within(self.inner.header_budget)
    }

    /// Returns a page of a repository's tags; `query` is passed to the upstream.
    ///
    /// # Errors
    /// Why the upstream does not give it.
    /// Source: OCI Distribution Spec end-8.
    pub async fn tags(&self, origin: &Origin, query: &str) -> Result<TagsAnswer, PullError> {
        self.inner.listings.tags(origin, query).await
    }

    /// Returns a page of the manifests that refer to a digest; `query` is passed to the upstream.
    ///
    /// # Errors
    /// Why the upstream does not give it; never an empty list instead.
    /// Source: OCI Distribution Spec end-12.
    pub async fn referrers(
        &self,
        origin: &Origin,
        digest: &Digest,
        query: &str,
    ) -> Result<ReferrersAnswer, PullError> {
        self.inner.listings.referrers(origin, digest, query).await
    }

    /// Lists the repositories that content was fetched from, as `upstream/repository`, sorted.
    pub async fn repositories(&self) -> Vec<String> {
        self.inner.store.repositories().await
    }

    /// Goes on with nothing that nobody waits for: this node stops, and what it still fetched of a blob
    /// would leave the upstream once more.
    pub fn end_orphans(&self) {
        self.inner.fillers.end_orphans();
    }

    /// Registers the room's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
        if let Some(neighbours) = &self.inner.neighbours {
            neighbours.register_metrics(registry);
        }
    }
}
