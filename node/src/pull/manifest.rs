//! Manifests by digest: from memory, from the store, else fetched once for all who ask, from other
//! nodes or from an upstream.

mod flight;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_protocol::oci::{Digest, MediaType, Reference};
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::store::{Provenance, Sidecar, Store};
use crate::task::Tasks;
use crate::upstream::FetchedManifest;

use super::Surroundings;
use super::access::Access;
use super::deadline::Deadline;
use super::error::PullError;
use super::flights::Flights;
use super::negative::{Negative, Wanted};
use super::neighbours::Neighbours;
use super::origin::{Origin, Source};
use super::promise::Promise;
use super::rank::Rank;
use super::replicate::Replicas;
use super::waits::Waits;

use flight::FlightTable;

/// Memory for manifests that were used lately, in bytes.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// Time in which an upstream that was away has to show that it is back.
const RETURN_PATIENCE: Duration = Duration::from_secs(5);

/// A manifest as it was received.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    /// Digest of the bytes.
    pub digest: Digest,
    /// The exact `Content-Type`.
    pub media_type: MediaType,
    /// The exact bytes.
    pub bytes: Bytes,
    /// Where they come from.
    pub source: Source,
}

/// All manifests of a node; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Manifests {
    pub(super) store: Store,
    pub(super) access: Access,
    tasks: Tasks,
    pub(super) negative: Negative,
    pub(super) neighbours: Option<Neighbours>,
    replicas: Option<Replicas>,
    pub(super) waits: Waits,
    cache: Cache<Digest, ManifestAnswer>,
    flights: Arc<Mutex<FlightTable>>,
    /// Questions to upstreams that were away, whether they are back.
    returns: Arc<Flights<(Provenance, Digest), ()>>,
}

impl Manifests {
    pub(super) fn new(surroundings: Surroundings, access: Access) -> Self {
        let cache = Cache::builder()
            .max_capacity(CACHE_BYTES)
            .weigher(|_, answer: &ManifestAnswer| {
                u32::try_from(answer.bytes.len() + 256).unwrap_or(u32::MAX)
            })
            .build();
        let Surroundings {
            store,
            tasks,
            negative,
            neighbours,
            replicas,
            waits,
            ..
        } = surroundings;
        Self {
            returns: Arc::new(Flights::new(tasks.clone())),
            store,
            access,
            tasks,
            negative,
            neighbours,
            replicas,
            waits,
            cache,
            flights: Arc::default(),
        }
    }

    /// Returns a manifest, fetching it if it is not here; the client that waits has until
    /// `deadline`.
    ///
    /// # Errors
    /// Why it cannot be had, for this origin; or that it would promise what cannot be kept.
    /// # Cancel safety
    /// Dropping the future leaves a fetch running.
    pub(super) async fn by_digest(
        &self,
        origin: &Origin,
        digest: &Digest,
        deadline: Deadline,
    ) -> Result<ManifestAnswer, PullError> {
        if let Some(answer) = self.local(digest).await? {
            return self.promised_by_return(origin, answer, deadline).await;
        }
        let wanted = Wanted::Manifest(Reference::Digest(*digest));
        self.negative.check(origin, wanted)?;
        let origins = std::slice::from_ref(origin);
        let flying = self.fly(origins, digest, Rank::Node);
        let answer = deadline.for_others(flying).await??;
        if answer.source == Source::Peer {
            return self.promised_by_return(origin, answer, deadline).await;
        }
        Ok(answer)
    }

    /// Returns a manifest that another node asks for, fetching it in `rank` if it is not here.
    ///
    /// # Errors
    /// Why it cannot be had, for the first of the origins.
    /// # Cancel safety
    /// Dropping the future leaves a fetch running.
    pub(super) async fn for_peer(
        &self,
        origins: &[Origin],
        digest: &Digest,
        rank: Rank,
    ) -> Result<ManifestAnswer, PullError> {
        if let Some(answer) = self.local(digest).await? {
            return Ok(answer);
        }
        if let Some(origin) = origins.first() {
            let wanted = Wanted::Manifest(Reference::Digest(*digest));
            self.negative.check(origin, wanted)?;
        }
        self.fly(origins, digest, rank).await
    }

    /// Returns a manifest that is here, without asking anybody.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn local(&self, digest: &Digest) -> Result<Option<ManifestAnswer>, PullError> {
        if let Some(answer) = self.cache.get(digest) {
            self.store.touch(digest);
            return Ok(Some(answer));
        }
        let Some(stored) = self.store.manifest(digest).await? else {
            return Ok(None);
        };
        let answer = ManifestAnswer {
            digest: *digest,
            media_type: stored.media_type,
            bytes: stored.bytes,
            source: Source::Local,
        };
        self.cache.insert(*digest, answer.clone());
        Ok(Some(answer))
    }

    /// Hands a manifest out only if what it names can be delivered: invariant 10.
    ///
    /// # Errors
    /// [`PullError::Incomplete`].
    pub(super) async fn promised(
        &self,
        origin: &Origin,
        answer: ManifestAnswer,
    ) -> Result<ManifestAnswer, PullError> {
        if !origin.upstream.gives_blobs() {
            let promise = Promise {
                store: &self.store,
                neighbours: self.neighbours.as_ref(),
            };
            promise.check(&answer.digest, &answer.bytes).await?;
        }
        Ok(answer)
    }

    /// As [`Manifests::promised`]; an upstream that was away is asked anew before its word is no,
    /// because who pulls by digest asks it nothing else.
    async fn promised_by_return(
        &self,
        origin: &Origin,
        answer: ManifestAnswer,
        deadline: Deadline,
    ) -> Result<ManifestAnswer, PullError> {
        let digest = answer.digest;
        match self.promised(origin, answer.clone()).await {
            Err(error @ PullError::Incomplete { .. }) => {
                let returning = self.has_returned(origin, digest);
                match deadline.for_answer(returning).await.flatten() {
                    Ok(()) => Ok(answer),
                    Err(refusal) if refusal.is_denial() => Err(refusal),
                    Err(_) => Err(error),
                }
            }
            result => result,
        }
    }

    /// Asks the upstream for a manifest by `HEAD`, which counts as no pull, together with everybody
    /// who asks for it now.
    async fn has_returned(&self, origin: &Origin, digest: Digest) -> Result<(), PullError> {
        let question = || {
            let origin = origin.clone();
            async move {
                let deadline = Instant::now() + RETURN_PATIENCE;
                let reference = Reference::Digest(digest);
                let upstream = &origin.upstream;
                let head = upstream.head_manifest(&origin.repository, &reference, deadline);
                Ok(head.await.map(drop)?)
            }
        };
        let key = (origin.provenance(), digest);
        self.returns.join(key, question).await
    }

    /// Takes a manifest that an upstream has just sent for a tag.
    ///
    /// # Errors
    /// [`PullError::Corrupt`] when the upstream states a digest that the bytes do not have.
    pub(super) async fn accept(
        &self,
        origin: &Origin,
        fetched: FetchedManifest,
    ) -> Result<ManifestAnswer, PullError> {
        let stated = fetched.stated_digest;
        let algorithm = stated.map_or(millrace_protocol::oci::Algorithm::Sha256, |d| d.algorithm());
        let actual = Digest::of(algorithm, &fetched.bytes);
        let expected = stated.unwrap_or(actual);
        let answer = self.verify(origin, &expected, fetched).await?;
        if let Some(neighbours) = &self.neighbours {
            neighbours.announce(&answer.digest).await;
        }
        Ok(answer)
    }

    /// Checks the bytes against the digest, then keeps them.
    async fn verify(
        &self,
        origin: &Origin,
        expected: &Digest,
        fetched: FetchedManifest,
    ) -> Result<ManifestAnswer, PullError> {
        let answer = ManifestAnswer {
            digest: *expected,
            media_type: fetched.media_type,
            bytes: fetched.bytes,
            source: Source::Upstream,
        };
        // The digest of a signed schema 1 manifest leaves its signatures out, so the bytes
        // cannot be verified: it is passed on and never kept. Contract section 9.3.
        if answer.media_type.is_schema1() {
            return Ok(answer);
        }
        let actual = Digest::of(expected.algorithm(), &answer.bytes);
        if actual != *expected {
            tracing::warn!(%expected, %actual, %origin, "an upstream sent a wrong manifest");
            return Err(PullError::Corrupt {
                expected: *expected,
                actual,
            });
        }
        self.keep(vec![origin.provenance()], &answer).await;
        Ok(answer)
    }

    async fn keep(&self, provenance: Vec<Provenance>, answer: &ManifestAnswer) {
        let sidecar = Sidecar::of(Some(answer.media_type.clone()), provenance);
        let stored = self
            .store
            .put_manifest(&answer.digest, answer.bytes.clone(), sidecar)
            .await;
        match stored {
            // The store may know another type, of who sent it first.
            Ok(()) => self.cache.invalidate(&answer.digest),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error, blob.digest = %answer.digest,
                "a manifest could not be stored; it is passed on without being kept"
            ),
        }
    }
}
