//! A manifest from other nodes: the hops, whoever holds it, or whoever fetches it.
//!
//! When other nodes are asked, and what follows when none of them helps, is `flight`'s. Blobs have
//! `pull/borrow.rs`.

use millrace_protocol::oci::{Digest, Reference};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{AskManifest, Purpose, Role};
use tokio::time::Instant;

use crate::peer::{PeerError, PeerManifest};
use crate::pull::manifest::{ManifestAnswer, Manifests};
use crate::pull::neighbours::{HOPS_PATIENCE, Hop, Neighbours};
use crate::pull::origin::Source;
use crate::pull::rank::Rank;
use crate::pull::refusal::{final_for, provenance_of};
use crate::upstream::Subject;

use super::Flight;

impl Manifests {
    /// Gets a manifest from the hops: owner, home.
    pub(super) async fn ask_hops(
        &self,
        flight: &Flight,
        digest: &Digest,
        rank: Rank,
    ) -> Option<ManifestAnswer> {
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
        None
    }

    /// Gets a manifest from who holds it, else from who fetches it from an upstream.
    pub(super) async fn find(&self, flight: &Flight, digest: &Digest) -> Option<ManifestAnswer> {
        let neighbours = self.neighbours.as_ref()?;
        let role = Role::Holder;
        let mut search = neighbours.search(digest, Purpose::Fetch);
        while let Some(peer) = search.next().await {
            let hop = Hop { peer, role };
            if let Some(answer) = self.ask(neighbours, flight, digest, hop).await {
                return Some(answer);
            }
        }
        let peer = search.fetching().await?;
        self.ask(neighbours, flight, digest, Hop { peer, role })
            .await
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
                    flight.end.send_modify(|_| ());
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
                neighbours.trust.distrust(hop.peer);
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
}
