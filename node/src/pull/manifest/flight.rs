//! One manifest on its way to this node, for all who ask for it: from other nodes, else from one of
//! the origins that were named.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_protocol::oci::{Digest, Reference};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{AskManifest, Purpose, Role};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::peer::{PeerError, PeerManifest};
use crate::pull::HEADER_BUDGET;
use crate::pull::candidates::Candidates;
use crate::pull::error::PullError;
use crate::pull::neighbours::{HOPS_PATIENCE, Hop, Neighbours};
use crate::pull::origin::{Origin, Source};
use crate::pull::rank::Rank;
use crate::pull::refusal::{final_for, provenance_of};
use crate::pull::replicate::Kind;
use crate::upstream::Subject;

use super::{ManifestAnswer, Manifests};

/// The flights that are under way, by digest and rank: a flight waits for nobody whose rank is
/// not above its own.
pub(super) type FlightTable = HashMap<(Digest, Rank), Arc<Flight>>;

/// One manifest on its way to this node.
#[derive(Debug, Default)]
pub(super) struct Flight {
    candidates: Mutex<Candidates>,
    outcome: watch::Sender<Option<Result<ManifestAnswer, PullError>>>,
}

impl Manifests {
    /// Joins the flight of a digest, or starts it.
    pub(super) async fn fly(
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
        if let (Some(replicas), Ok(_)) = (&self.replicas, &result) {
            let origins = flight.candidates.lock().origin_names();
            replicas.copy(Kind::Manifest, &digest, origins);
        }
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
        let mut search = neighbours.search(digest, Purpose::Fetch);
        while let Some(peer) = search.next().await {
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
        let answer = {
            let _waiting = self.waits.begin(Key::of_digest(digest));
            let asking = neighbours.peers.manifest(hop.peer, question);
            neighbours.in_time(hop, asking).await
        };
        match answer {
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
        let fetched = {
            let _waiting = self.waits.begin(Key::of_digest(digest));
            let fetching = upstream.fetch_manifest(repository, &reference, deadline);
            fetching.await?
        };
        self.verify(origin, digest, fetched).await
    }
}
