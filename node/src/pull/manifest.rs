//! Manifests by digest: from memory, from the store, else fetched once for all who ask.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::oci::{Digest, MediaType, Reference};
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::{Sidecar, Store};
use crate::task::Tasks;
use crate::upstream::FetchedManifest;

use super::candidates::Candidates;
use super::error::PullError;
use super::negative::Negative;
use super::origin::{Origin, Source};
use super::{HEADER_BUDGET, promise};

/// Memory for manifests that were used lately, in bytes.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

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
    store: Store,
    tasks: Tasks,
    negative: Negative,
    cache: Cache<Digest, ManifestAnswer>,
    flights: Arc<Mutex<HashMap<Digest, Arc<Flight>>>>,
}

/// One manifest on its way to this node.
#[derive(Debug, Default)]
struct Flight {
    candidates: Mutex<Candidates>,
    outcome: watch::Sender<Option<Result<ManifestAnswer, PullError>>>,
}

impl Manifests {
    pub(super) fn new(store: Store, tasks: Tasks, negative: Negative) -> Self {
        let cache = Cache::builder()
            .max_capacity(CACHE_BYTES)
            .weigher(|_, answer: &ManifestAnswer| {
                u32::try_from(answer.bytes.len() + 256).unwrap_or(u32::MAX)
            })
            .build();
        Self {
            store,
            tasks,
            negative,
            cache,
            flights: Arc::default(),
        }
    }

    /// Returns a manifest, fetching it if it is not here.
    ///
    /// # Errors
    /// Why it cannot be had, for this origin; or that it would promise what cannot be kept.
    /// # Cancel safety
    /// Dropping the future leaves a fetch running.
    pub(super) async fn by_digest(
        &self,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<ManifestAnswer, PullError> {
        if let Some(answer) = self.local(digest).await? {
            return self.promised(origin, answer).await;
        }
        self.negative.check(origin, &digest.to_string())?;
        let deadline = Instant::now() + HEADER_BUDGET;
        super::blob::in_time(deadline, self.fly(origin, digest)).await?
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
        if origin.upstream.is_away() {
            promise::check(&self.store, &answer.digest, &answer.bytes).await?;
        }
        Ok(answer)
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
        self.verify(origin, &expected, fetched).await
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
        self.keep(origin, &answer).await;
        Ok(answer)
    }

    async fn keep(&self, origin: &Origin, answer: &ManifestAnswer) {
        let sidecar = Sidecar::new(Some(answer.media_type.clone()), origin.provenance());
        let stored = self
            .store
            .put_manifest(&answer.digest, answer.bytes.clone(), sidecar)
            .await;
        match stored {
            Ok(()) => {
                let local = ManifestAnswer {
                    source: Source::Local,
                    ..answer.clone()
                };
                self.cache.insert(answer.digest, local);
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error, blob.digest = %answer.digest,
                "a manifest could not be stored; it is passed on without being kept"
            ),
        }
    }

    /// Joins the flight of a digest, or starts it.
    async fn fly(&self, origin: &Origin, digest: &Digest) -> Result<ManifestAnswer, PullError> {
        let flight = self.enter(origin, digest);
        let provenance = origin.provenance();
        let mut outcome = flight.outcome.subscribe();
        loop {
            if let Some(refusal) = flight.candidates.lock().refusal(&provenance) {
                return Err(refusal.clone());
            }
            if let Some(result) = &*outcome.borrow_and_update() {
                return result.clone();
            }
            if outcome.changed().await.is_err() {
                return Err(PullError::Stopped);
            }
        }
    }

    fn enter(&self, origin: &Origin, digest: &Digest) -> Arc<Flight> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(digest) {
            flight.candidates.lock().add(origin);
            return Arc::clone(flight);
        }
        let flight = Arc::new(Flight::default());
        flight.candidates.lock().add(origin);
        flights.insert(*digest, Arc::clone(&flight));
        let span = tracing::info_span!("pull", manifest.digest = %digest);
        let driver = self.clone().drive(Arc::clone(&flight), *digest);
        self.tasks.spawn(span, driver);
        flight
    }

    /// Tries the origins of a flight until one supplies the manifest.
    async fn drive(self, flight: Arc<Flight>, digest: Digest) {
        let result = loop {
            // It was stored between the miss and this start.
            match self.local(&digest).await {
                Ok(Some(answer)) => break Ok(answer),
                Ok(None) => {}
                Err(error) => break Err(error),
            }
            let origin = match self.next_candidate(&flight, &digest) {
                Ok(origin) => origin,
                Err(error) => break Err(error),
            };
            match self.fetch(&origin, &digest).await {
                Ok(answer) => break Ok(answer),
                Err(error) => {
                    self.negative.remember(&origin, &digest.to_string(), &error);
                    flight.candidates.lock().fail(&origin, error);
                    flight.outcome.send_modify(|_| ());
                }
            }
        };
        self.flights.lock().remove(&digest);
        flight.outcome.send_replace(Some(result));
    }

    /// Returns the next origin, or ends the flight so that nobody joins it any more.
    fn next_candidate(&self, flight: &Flight, digest: &Digest) -> Result<Origin, PullError> {
        let mut flights = self.flights.lock();
        let candidates = flight.candidates.lock();
        if let Some(origin) = candidates.next() {
            return Ok(origin);
        }
        flights.remove(digest);
        Err(candidates
            .last_error()
            .cloned()
            .unwrap_or(PullError::Stopped))
    }

    async fn fetch(&self, origin: &Origin, digest: &Digest) -> Result<ManifestAnswer, PullError> {
        self.negative.check(origin, &digest.to_string())?;
        let deadline = Instant::now() + HEADER_BUDGET;
        let reference = Reference::Digest(*digest);
        let Origin {
            upstream,
            repository,
        } = origin;
        let fetched = upstream
            .fetch_manifest(repository, &reference, deadline)
            .await?;
        self.verify(origin, digest, fetched).await
    }
}
