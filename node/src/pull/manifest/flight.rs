//! One manifest on its way to this node, for all who ask for it: from other nodes (`borrow`), else
//! from one of the origins that were named. What is done with the bytes is `manifest`'s.

mod borrow;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Digest, Reference};
use millrace_protocol::placement::Key;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::pull::candidates::Candidates;
use crate::pull::deadline::HEADER_BUDGET;
use crate::pull::error::PullError;
use crate::pull::negative::Wanted;
use crate::pull::origin::Origin;
use crate::pull::rank::Rank;
use crate::pull::replicate::Kind;
use crate::store::Provenance;

use super::{ManifestAnswer, Manifests};

/// The flights that are under way, by digest and rank: a flight waits for nobody whose rank is
/// not above its own, but for another home's as [`Manifests::for_follower`] says.
pub(super) type FlightTable = HashMap<(Digest, Rank), Arc<Flight>>;

/// One manifest on its way to this node.
#[derive(Debug, Default)]
pub(super) struct Flight {
    candidates: Mutex<Candidates>,
    /// Whether it is an upstream's turn: from then on it waits for no other node.
    asked: AtomicBool,
    end: watch::Sender<Option<End>>,
}

/// How a flight ended.
#[derive(Clone, Debug)]
enum End {
    Answered(Result<ManifestAnswer, PullError>),
    /// No hop could help, and this node goes on as a home does.
    GoesOn(Arc<Flight>),
}

impl Flight {
    /// Waits for the end; what is final for `provenance` is one as well.
    async fn end(&self, provenance: Option<&Provenance>) -> End {
        let mut end = self.end.subscribe();
        loop {
            if let Some(refusal) = self.refusal(provenance) {
                return End::Answered(Err(refusal));
            }
            if let Some(end) = &*end.borrow_and_update() {
                return end.clone();
            }
            if end.changed().await.is_err() {
                return End::Answered(Err(PullError::Stopped));
            }
        }
    }

    fn refusal(&self, provenance: Option<&Provenance>) -> Option<PullError> {
        let candidates = self.candidates.lock();
        candidates.refusal(provenance?).cloned()
    }

    fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

impl Manifests {
    /// Joins the flight of a digest, or starts it.
    pub(super) async fn fly(
        &self,
        origins: &[Origin],
        digest: &Digest,
        rank: Rank,
    ) -> Result<ManifestAnswer, PullError> {
        let key = Key::of_digest(digest);
        let rank = self
            .neighbours
            .as_ref()
            .map_or(Rank::Home, |neighbours| neighbours.rank(key, rank));
        let mut flight = self.enter(digest, rank, |candidates| {
            origins.iter().for_each(|origin| candidates.add(origin));
        });
        let provenance = origins.first().map(Origin::provenance);
        loop {
            match flight.end(provenance.as_ref()).await {
                End::Answered(result) => return result,
                End::GoesOn(next) => flight = next,
            }
        }
    }

    /// Says whether this node is about to ask an upstream for a manifest (false), or has (true).
    pub(in crate::pull) fn fetching(&self, digest: &Digest) -> Option<bool> {
        let flights = self.flights.lock();
        let flight = flights.get(&(*digest, Rank::Home))?;
        Some(flight.has_asked())
    }

    /// Lists what this node is about to ask an upstream for, or has.
    pub(in crate::pull) fn all_fetching(&self) -> Vec<Digest> {
        let flights = self.flights.lock();
        let fetching = flights.keys().filter(|(_, rank)| *rank == Rank::Home);
        fetching.map(|(digest, _)| *digest).collect()
    }

    /// Waits for a manifest that this node fetches as a home, for a node that means to fetch it, too.
    ///
    /// `None` if there is nothing to wait for, or it failed. Who has asked an upstream waits for no
    /// node, and who has not, at most for one with a lower id: so nobody waits in a circle, whatever
    /// became of the flight that `from` has heard of.
    /// # Errors
    /// What is final for `origin`.
    /// # Cancel safety
    /// Dropping the future leaves the fetch running.
    pub(in crate::pull) async fn for_follower(
        &self,
        from: NodeId,
        origin: Option<&Origin>,
        digest: &Digest,
    ) -> Result<Option<ManifestAnswer>, PullError> {
        let flight = {
            let flights = self.flights.lock();
            flights.get(&(*digest, Rank::Home)).cloned()
        };
        let Some((flight, neighbours)) = flight.zip(self.neighbours.as_ref()) else {
            return Ok(None);
        };
        if !flight.has_asked() && neighbours.view().me() > from {
            return Ok(None);
        }
        let provenance = origin.map(Origin::provenance);
        match flight.end(provenance.as_ref()).await {
            End::Answered(Ok(answer)) => Ok(Some(answer)),
            _ => flight.refusal(provenance.as_ref()).map_or(Ok(None), Err),
        }
    }

    /// Joins a flight of at least this rank, or starts one; `name` adds whom it may come from.
    fn enter(
        &self,
        digest: &Digest,
        rank: Rank,
        name: impl FnOnce(&mut Candidates),
    ) -> Arc<Flight> {
        let mut flights = self.flights.lock();
        let ranks = [Rank::Home, Rank::Owner, Rank::Node].into_iter();
        let running = ranks
            .take_while(|known| *known >= rank)
            .find_map(|known| flights.get(&(*digest, known)).cloned());
        let flight = running.clone().unwrap_or_default();
        name(&mut flight.candidates.lock());
        if running.is_none() {
            flights.insert((*digest, rank), Arc::clone(&flight));
            let span = tracing::info_span!("pull", manifest.digest = %digest);
            let driver = self.clone().drive(Arc::clone(&flight), *digest, rank);
            self.tasks.spawn(span, driver);
        }
        flight
    }

    /// Asks the hops, if this node is no home, and else whoever may have it, then the origins.
    async fn drive(self, flight: Arc<Flight>, digest: Digest, rank: Rank) {
        let result = if rank == Rank::Home {
            self.fetch_as_home(&flight, &digest).await
        } else if let Some(answer) = self.ask_hops(&flight, &digest, rank).await {
            Ok(answer)
        } else {
            return self.go_on(&flight, &digest, rank);
        };
        self.flights.lock().remove(&(digest, rank));
        if let (Some(replicas), Ok(_)) = (&self.replicas, &result) {
            let origins = flight.candidates.lock().origin_names();
            replicas.copy(Kind::Manifest, &digest, origins);
        }
        flight.end.send_replace(Some(End::Answered(result)));
    }

    /// Lets this node act as a home for all who wait, together with those for whom it does already.
    fn go_on(&self, flight: &Flight, digest: &Digest, rank: Rank) {
        let named = {
            // Out of the table, so that nobody adds to them any more.
            self.flights.lock().remove(&(*digest, rank));
            flight.candidates.lock().clone()
        };
        let home = self.enter(digest, Rank::Home, |candidates| candidates.absorb(named));
        flight.end.send_replace(Some(End::GoesOn(home)));
    }

    /// Looks for the manifest on other nodes, else fetches it from an origin. That this node means to is in
    /// the table from before anybody is asked, so that of two who do one sees the other.
    async fn fetch_as_home(
        &self,
        flight: &Flight,
        digest: &Digest,
    ) -> Result<ManifestAnswer, PullError> {
        if let Some(answer) = self.find(flight, digest).await {
            return Ok(answer);
        }
        flight.asked.store(true, Ordering::Release);
        self.fetch_from_origins(flight, digest).await
    }

    async fn fetch_from_origins(
        &self,
        flight: &Flight,
        digest: &Digest,
    ) -> Result<ManifestAnswer, PullError> {
        loop {
            // It was stored between the miss and this start.
            if let Some(answer) = self.local(digest).await? {
                return Ok(answer);
            }
            let origin = self.next_candidate(flight, digest)?;
            match self.fetch(&origin, digest).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    let wanted = Wanted::Manifest(Reference::Digest(*digest));
                    self.negative.remember(&origin, wanted, &error);
                    flight.candidates.lock().fail(&origin, error);
                    flight.end.send_modify(|_| ());
                }
            }
        }
    }

    /// Returns the next origin, or ends the flight so that nobody joins it any more.
    fn next_candidate(&self, flight: &Flight, digest: &Digest) -> Result<Origin, PullError> {
        let mut flights = self.flights.lock();
        let candidates = flight.candidates.lock();
        if let Some(origin) = candidates.next() {
            return Ok(origin);
        }
        flights.remove(&(*digest, Rank::Home));
        Err(candidates
            .last_error()
            .cloned()
            .unwrap_or(PullError::Unconfigured))
    }

    async fn fetch(&self, origin: &Origin, digest: &Digest) -> Result<ManifestAnswer, PullError> {
        let reference = Reference::Digest(*digest);
        let wanted = Wanted::Manifest(reference.clone());
        self.negative.check(origin, wanted)?;
        let asked = Instant::now();
        let deadline = asked + HEADER_BUDGET;
        let Origin {
            upstream,
            repository,
        } = origin;
        let fetched = {
            let _waiting = self.waits.begin(Key::of_digest(digest));
            let fetching = upstream.fetch_manifest(repository, &reference, deadline);
            fetching.await?
        };
        self.access.confirm(origin, asked);
        self.verify(origin, digest, fetched).await
    }
}
