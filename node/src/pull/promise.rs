//! Whether everything under a manifest can be had without the upstream: invariant 10.
//!
//! While the upstream is away or stops all requests, a manifest is handed out only if all its blobs
//! are here or on other nodes, and an index only if that holds for one of its images. Whether the
//! upstream gives blobs is asked by the caller.

use millrace_protocol::oci::{Descriptor, Digest, Manifest};
use millrace_protocol::wire::message::{AskManifest, Purpose, Role};

use crate::store::Store;

use super::error::PullError;
use super::neighbours::Neighbours;

/// Most children of an index that are looked into.
const MAX_CHILDREN: usize = 256;

/// Where what a manifest names may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise<'a> {
    pub(super) store: &'a Store,
    pub(super) neighbours: Option<&'a Neighbours>,
}

impl Promise<'_> {
    /// Checks that what `bytes` names can be delivered.
    ///
    /// # Errors
    /// [`PullError::Incomplete`], or that the store cannot be read.
    pub(super) async fn check(self, digest: &Digest, bytes: &[u8]) -> Result<(), PullError> {
        // What is no JSON object names nothing.
        let Ok(manifest) = Manifest::parse(bytes) else {
            return Ok(());
        };
        let mut missing = self.missing_blobs(&manifest).await?;
        if manifest.is_index() {
            missing = self.missing_in_best_child(&manifest).await?;
        }
        if missing == 0 {
            return Ok(());
        }
        Err(PullError::Incomplete {
            digest: *digest,
            missing,
        })
    }

    async fn missing_blobs(self, manifest: &Manifest) -> Result<usize, PullError> {
        let digests = manifest.blobs().map(|blob| blob.digest).collect();
        self.missing(digests).await
    }

    /// Counts what neither this node nor another has.
    async fn missing(self, digests: Vec<Digest>) -> Result<usize, PullError> {
        let missing = self.store.missing(digests).await?;
        Ok(match self.neighbours {
            Some(neighbours) if !missing.is_empty() => neighbours.missing(missing).await.len(),
            _ => missing.len(),
        })
    }

    /// Returns how much the most complete child lacks; a child that nobody has lacks itself.
    async fn missing_in_best_child(self, index: &Manifest) -> Result<usize, PullError> {
        let mut best = usize::MAX;
        let images = index
            .manifests
            .iter()
            .filter(|child| !child.is_attestation());
        for child in images.take(MAX_CHILDREN) {
            best = best.min(self.missing_in_child(child).await?);
            if best == 0 {
                break;
            }
        }
        Ok(best)
    }

    async fn missing_in_child(self, child: &Descriptor) -> Result<usize, PullError> {
        // A build cache's index lists layers, which are fetched as blobs.
        if !child.media_type.is_manifest() {
            return self.missing(vec![child.digest]).await;
        }
        let bytes = match self.store.manifest(&child.digest).await? {
            Some(stored) => Some(stored.bytes),
            None => self.ask_for(&child.digest).await,
        };
        match bytes.as_deref().map(Manifest::parse) {
            Some(Ok(manifest)) => self.missing_blobs(&manifest).await,
            Some(Err(_)) => Ok(0),
            None => Ok(1),
        }
    }

    /// Returns a manifest that another node has.
    async fn ask_for(self, digest: &Digest) -> Option<bytes::Bytes> {
        let neighbours = self.neighbours?;
        let mut search = neighbours.search(digest, Purpose::Know);
        while let Some(peer) = search.next().await {
            let question = AskManifest {
                digest: *digest,
                role: Role::Holder,
                origins: Vec::new(),
            };
            let answer = neighbours.peers.manifest(peer, question).await;
            let right = |bytes: &bytes::Bytes| Digest::of(digest.algorithm(), bytes) == *digest;
            if let Some(bytes) = answer.ok().map(|manifest| manifest.bytes).filter(right) {
                return Some(bytes);
            }
        }
        None
    }
}
