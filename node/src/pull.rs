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
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Digest, MediaType, Reference};
use prometheus_client::registry::Registry;
use serde::Serialize;

pub use blob::{BlobBody, OpenBlob, Piece};
pub use config::Config;
pub use directory::HoldingsStatus;
pub use error::PullError;
pub use listing::{ReferrersAnswer, TagsAnswer};
pub use manifest::ManifestAnswer;
pub use origin::{Origin, Source};
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
use negative::{Negative, Wanted};
use neighbours::Neighbours;
use orphans::Orphans;
use rank::Rank;
use replicate::Replicas;
use tag::Tags;
use transfer::{Transfer, Waiter};
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

/// What a client needs of a blob without its bytes.
#[derive(Clone, Copy, Debug)]
pub struct BlobHead {
    /// Size in bytes, unless the upstream does not tell.
    pub size: Option<u64>,
    /// Where it would come from.
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

    /// Opens a blob; returns when a source is confirmed.
    ///
    /// # Errors
    /// Why it cannot be had.
    /// # Cancel safety
    /// Dropping the future removes a waiter and nothing else.
    /// Source: OCI Distribution Spec end-2.
    pub async fn blob(&self, origin: &Origin, digest: &Digest) -> Result<OpenBlob, PullError> {
        let deadline = self.deadline();
        let opening = self.open_blob(origin, digest, deadline);
        let result = deadline.for_answer(opening).await.flatten();
        let source = result.as_ref().ok().map(OpenBlob::source);
        self.inner.metrics.count(Kind::blob, source);
        result
    }

    /// Returns the times of a client's request that begins now.
    fn deadline(&self) -> Deadline {
        Deadline::within(self.inner.header_budget)
    }

    async fn open_blob(
        &self,
        origin: &Origin,
        digest: &Digest,
        deadline: Deadline,
    ) -> Result<OpenBlob, PullError> {
        let access = &self.inner.access;
        let mut proof = access.prove(origin, digest, Form::Blob, deadline).await?;
        if let Some(blob) = self.inner.store.blob(digest).await? {
            if proof == Proof::Absent {
                // It was committed between the two.
                proof = access.prove(origin, digest, Form::Blob, deadline).await?;
            }
            if proof == Proof::Given {
                return Ok(OpenBlob::stored(*digest, origin.clone(), deadline, blob));
            }
        }
        self.inner.negative.check(origin, Wanted::Blob(*digest))?;
        let joined = match self.join(origin, digest, deadline).await {
            // Nothing has reached the client yet, so one fresh attempt is free.
            Err(error) if error.is_corrupt() => self.join(origin, digest, deadline).await,
            result => result,
        };
        let waiter = joined?;
        if proof == Proof::Absent {
            self.share(origin, &waiter.transfer, deadline).await?;
        }
        Ok(OpenBlob::growing(origin.clone(), deadline, waiter))
    }

    /// Lets a client have bytes that are on their way, perhaps for somebody else's repository.
    async fn share(
        &self,
        origin: &Origin,
        transfer: &Transfer,
        deadline: Deadline,
    ) -> Result<(), PullError> {
        let access = &self.inner.access;
        if access::is_fetched_for(transfer, origin) {
            access.confirm(origin);
            return Ok(());
        }
        let digest = &transfer.digest;
        if access.prove(origin, digest, Form::Blob, deadline).await? == Proof::Given {
            return Ok(());
        }
        let provenance = transfer.state().fetched_as();
        access.vouch(origin, digest, &provenance, deadline).await
    }

    async fn join(
        &self,
        origin: &Origin,
        digest: &Digest,
        deadline: Deadline,
    ) -> Result<Waiter, PullError> {
        let fillers = &self.inner.fillers;
        let origins = std::slice::from_ref(origin);
        let joined = fillers.table.join(digest, origins, Rank::Node, |_| ());
        if let Some(far) = joined.begun {
            fillers.start(&joined.waiter.transfer, far);
        }
        let confirmed = deadline.for_others(joined.waiter.confirmed()).await;
        confirmed.map_err(|error| error.in_crowd_of(&origin.upstream))??;
        Ok(joined.waiter)
    }

    /// Returns what a `HEAD` of a blob tells, without fetching it.
    ///
    /// The upstream is asked for one byte, because some refuse `HEAD` (contract U8).
    ///
    /// # Errors
    /// Why it cannot be had.
    pub async fn blob_head(&self, origin: &Origin, digest: &Digest) -> Result<BlobHead, PullError> {
        let deadline = self.deadline();
        let examining = self.examine_blob(origin, digest, deadline);
        deadline.for_answer(examining).await.flatten()
    }

    async fn examine_blob(
        &self,
        origin: &Origin,
        digest: &Digest,
        deadline: Deadline,
    ) -> Result<BlobHead, PullError> {
        let access = &self.inner.access;
        let proof = access.prove(origin, digest, Form::Blob, deadline).await?;
        let blob = match proof {
            Proof::Given => self.inner.store.blob(digest).await?,
            Proof::Absent => None,
        };
        if let Some(blob) = blob {
            return Ok(BlobHead {
                size: Some(blob.size()),
                source: Source::Local,
            });
        }
        self.inner.negative.check(origin, Wanted::Blob(*digest))?;
        let elsewhere = self.head_elsewhere(origin, digest, proof, deadline);
        if let Some(head) = elsewhere.await? {
            return Ok(head);
        }
        let Origin {
            upstream,
            repository,
        } = origin;
        let probing = upstream.probe_blob(repository, digest, deadline.asking());
        let size = probing
            .await
            .map_err(PullError::from)
            .inspect_err(|error| {
                let wanted = Wanted::Blob(*digest);
                self.inner.negative.remember(origin, wanted, error);
            })?;
        Ok(BlobHead {
            size,
            source: Source::Upstream,
        })
    }

    /// Returns what is known of a blob that is on its way to this node or that another node has,
    /// as soon as it may be told to this client: that a blob exists is no less than its bytes.
    async fn head_elsewhere(
        &self,
        origin: &Origin,
        digest: &Digest,
        proof: Proof,
        deadline: Deadline,
    ) -> Result<Option<BlobHead>, PullError> {
        let transfer = self.inner.fillers.table.get(digest);
        if let Some(transfer) = transfer.filter(|transfer| transfer.state().is_confirmed()) {
            if proof == Proof::Absent {
                self.share(origin, &transfer, deadline).await?;
            }
            let size = transfer.state().size;
            let source = Source::Upstream;
            return Ok(size.map(|_| BlobHead { size, source }));
        }
        let Some(neighbours) = &self.inner.neighbours else {
            return Ok(None);
        };
        let Some((size, provenance)) = neighbours.examine(digest).await else {
            return Ok(None);
        };
        if proof == Proof::Absent {
            let access = &self.inner.access;
            access.vouch(origin, digest, &provenance, deadline).await?;
        }
        Ok(Some(BlobHead {
            size: Some(size),
            source: Source::Peer,
        }))
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

    /// Returns what is under way.
    pub fn status(&self) -> Status {
        let transfers = self.inner.fillers.table.all();
        Status {
            transfers: transfers.iter().map(|transfer| transfer.status()).collect(),
            holdings: self.inner.neighbours.as_ref().map(Neighbours::status),
            distrusted: match &self.inner.neighbours {
                Some(neighbours) => neighbours.distrusted(),
                None => Vec::new(),
            },
        }
    }

    /// Returns how many blobs are on their way to this node.
    pub fn transfers(&self) -> usize {
        self.inner.fillers.table.count()
    }

    /// Registers the room's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
        if let Some(neighbours) = &self.inner.neighbours {
            neighbours.register_metrics(registry);
        }
    }
}

/// What the pull room is doing.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Blobs on their way to this node, in no order.
    pub transfers: Vec<TransferStatus>,
    /// What the other members have told of what they hold; absent without a cluster.
    pub holdings: Option<HoldingsStatus>,
    /// Members that stated wrong content, or stalled, and are not asked for any for a while.
    #[serde(serialize_with = "directory::texts")]
    pub distrusted: Vec<NodeId>,
}

/// One blob on its way.
#[derive(Clone, Debug, Serialize)]
pub struct TransferStatus {
    /// The blob.
    pub digest: Digest,
    /// Repositories that were named for it, as `upstream/repository`.
    pub origins: Vec<String>,
    /// Who is asked for its bytes now, unless that is being decided.
    pub source: Option<Source>,
    /// Its size, once known.
    pub size_bytes: Option<u64>,
    /// Bytes that are here.
    pub received_bytes: u64,
    /// Whether it cannot be stored and is only passed on.
    pub relayed: bool,
    /// Clients that wait for it.
    pub waiters: usize,
    /// Time since it began.
    pub age_seconds: u64,
}
