//! Manifests by digest: from memory, from the store, else fetched once for all who ask, from other
//! nodes or from an upstream.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::oci::{Digest, MediaType, Reference};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{AskManifest, Role};
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::peer::{PeerError, PeerManifest};
use crate::store::{Provenance, Sidecar, Store};
use crate::task::Tasks;
use crate::upstream::{FetchedManifest, Subject};

use super::HEADER_BUDGET;
use super::candidates::Candidates;
use super::error::PullError;
use super::negative::Negative;
use super::neighbours::{HOPS_PATIENCE, Hop, Neighbours};
use super::origin::{Origin, Source};
use super::promise::Promise;
use super::rank::Rank;
use super::refusal::{final_for, provenance_of};

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
    pub(super) store: Store,
    tasks: Tasks,
    pub(super) negative: Negative,
    pub(super) neighbours: Option<Neighbours>,
    cache: Cache<Digest, ManifestAnswer>,
    /// By digest and rank, because a flight waits for nobody of a rank that is not above its own.
    flights: Arc<Mutex<FlightTable>>,
}

type FlightTable = HashMap<(Digest, Rank), Arc<Flight>>;

/// One manifest on its way to this node.
#[derive(Debug, Default)]
struct Flight {
    candidates: Mutex<Candidates>,
    outcome: watch::Sender<Option<Result<ManifestAnswer, PullError>>>,
}

impl Manifests {
    pub(super) fn new(
        store: Store,
        tasks: Tasks,
        negative: Negative,
        neighbours: Option<Neighbours>,
    ) -> Self {
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
            neighbours,
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
        let origins = std::slice::from_ref(origin);
        let answer =
            super::blob::in_time(deadline, self.fly(origins, digest, Rank::Node)).await??;
        if answer.source == Source::Peer {
            return self.promised(origin, answer).await;
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
            self.negative.check(origin, &digest.to_string())?;
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
        if origin.upstream.is_away() {
            let promise = Promise {
                store: &self.store,
                neighbours: self.neighbours.as_ref(),
            };
            promise.check(&answer.digest, &answer.bytes).await?;
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
    async fn fly(
        &self,
        origins: &[Origin],
        digest: &Digest,
        rank: Rank,
    ) -> Result<ManifestAnswer, PullError> {
        let flight = self.enter(origins, digest, rank);
        let provenance = origins.first().map(Origin::provenance);
        let mut outcome = flight.outcome.subscribe();
        loop {
            if let Some(provenance) = &provenance
                && let Some(refusal) = flight.candidates.lock().refusal(provenance)
            {
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

    /// Joins a flight of at least this rank, or starts one.
    fn enter(&self, origins: &[Origin], digest: &Digest, rank: Rank) -> Arc<Flight> {
        let key = Key::of_digest(digest);
        let rank = self
            .neighbours
            .as_ref()
            .map_or(Rank::Home, |neighbours| neighbours.rank(key, rank));
        let mut flights = self.flights.lock();
        let ranks = [Rank::Home, Rank::Owner, Rank::Node].into_iter();
        let running = ranks
            .take_while(|known| *known >= rank)
            .find_map(|known| flights.get(&(*digest, known)).cloned());
        let flight = running.clone().unwrap_or_default();
        for origin in origins {
            flight.candidates.lock().add(origin);
        }
        if running.is_none() {
            flights.insert((*digest, rank), Arc::clone(&flight));
            let span = tracing::info_span!("pull", manifest.digest = %digest);
            let driver = self.clone().drive(Arc::clone(&flight), *digest, rank);
            self.tasks.spawn(span, driver);
        }
        flight
    }

    /// Asks other nodes, then the origins of a flight, until one supplies the manifest.
    async fn drive(self, flight: Arc<Flight>, digest: Digest, rank: Rank) {
        let result = match self.borrow(&flight, &digest, rank).await {
            Some(answer) => Ok(answer),
            None => self.fetch_from_origins(&flight, &digest, rank).await,
        };
        self.flights.lock().remove(&(digest, rank));
        flight.outcome.send_replace(Some(result));
    }

    async fn fetch_from_origins(
        &self,
        flight: &Flight,
        digest: &Digest,
        rank: Rank,
    ) -> Result<ManifestAnswer, PullError> {
        loop {
            // It was stored between the miss and this start.
            if let Some(answer) = self.local(digest).await? {
                return Ok(answer);
            }
            let origin = self.next_candidate(flight, digest, rank)?;
            match self.fetch(&origin, digest).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    self.negative.remember(&origin, &digest.to_string(), &error);
                    flight.candidates.lock().fail(&origin, error);
                    flight.outcome.send_modify(|_| ());
                }
            }
        }
    }

    /// Gets a manifest from other nodes: owner, home, whoever holds it.
    async fn borrow(&self, flight: &Flight, digest: &Digest, rank: Rank) -> Option<ManifestAnswer> {
        let neighbours = self.neighbours.as_ref()?;
        let deadline = Instant::now() + HOPS_PATIENCE;
        for hop in neighbours.hops(Key::of_digest(digest), rank) {
            if Instant::now() >= deadline || flight.candidates.lock().are_exhausted() {
                break;
            }
            if let Some(answer) = self.ask(neighbours, flight, digest, hop).await {
                return Some(answer);
            }
        }
        let role = Role::Holder;
        for peer in neighbours.holders(digest).await.whole {
            let hop = Hop { peer, role };
            if let Some(answer) = self.ask(neighbours, flight, digest, hop).await {
                return Some(answer);
            }
        }
        None
    }

    /// Asks one node for a manifest.
    async fn ask(
        &self,
        neighbours: &Neighbours,
        flight: &Flight,
        digest: &Digest,
        hop: Hop,
    ) -> Option<ManifestAnswer> {
        let question = AskManifest {
            digest: *digest,
            role: hop.role,
            origins: flight.candidates.lock().origin_names(),
        };
        match neighbours.peers.manifest(hop.peer, question).await {
            Ok(manifest) => self.take_over(neighbours, digest, hop, manifest).await,
            Err(error) => {
                neighbours.passed_over(hop, &error);
                let PeerError::Refused { refusal, .. } = &error else {
                    return None;
                };
                let refused = flight.candidates.lock().refuse(|origin| {
                    let reference = Reference::Digest(*digest);
                    let subject = Subject::Manifest(origin.repository.clone(), reference);
                    final_for(origin, refusal, subject)
                });
                if refused {
                    flight.outcome.send_modify(|_| ());
                }
                None
            }
        }
    }

    /// Checks a manifest that another node sent, then keeps it with what it was fetched as.
    async fn take_over(
        &self,
        neighbours: &Neighbours,
        digest: &Digest,
        hop: Hop,
        manifest: PeerManifest,
    ) -> Option<ManifestAnswer> {
        if Digest::of(digest.algorithm(), &manifest.bytes) != *digest {
            // A signed schema 1 manifest is honest and cannot be verified all the same.
            if !manifest.media_type.is_schema1() {
                neighbours.distrust(hop.peer);
            }
            return None;
        }
        let answer = ManifestAnswer {
            digest: *digest,
            media_type: manifest.media_type,
            bytes: manifest.bytes,
            source: Source::Peer,
        };
        let provenance = manifest.provenance.iter().map(provenance_of);
        self.keep(provenance.collect(), &answer).await;
        Some(answer)
    }

    /// Returns the next origin, or ends the flight so that nobody joins it any more.
    fn next_candidate(
        &self,
        flight: &Flight,
        digest: &Digest,
        rank: Rank,
    ) -> Result<Origin, PullError> {
        let mut flights = self.flights.lock();
        let candidates = flight.candidates.lock();
        if let Some(origin) = candidates.next() {
            return Ok(origin);
        }
        flights.remove(&(*digest, rank));
        Err(candidates
            .last_error()
            .cloned()
            .unwrap_or(PullError::Unconfigured))
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
