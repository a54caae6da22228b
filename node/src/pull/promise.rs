//! Whether everything under a manifest is here: invariant 10.
//!
//! While the upstream is away, a manifest is handed out only if all its blobs are here, and an
//! index only if one of its images is. Whether the upstream is away is asked by the caller.

use millrace_protocol::oci::{Descriptor, Digest, Manifest};

use crate::store::Store;

use super::error::PullError;

/// Most children of an index that are looked into.
const MAX_CHILDREN: usize = 256;

/// Checks that what `bytes` names can be delivered from here.
///
/// # Errors
/// [`PullError::Incomplete`], or that the store cannot be read.
pub(super) async fn check(store: &Store, digest: &Digest, bytes: &[u8]) -> Result<(), PullError> {
    // What is no JSON object names nothing.
    let Ok(manifest) = Manifest::parse(bytes) else {
        return Ok(());
    };
    let mut missing = missing_blobs(store, &manifest).await?;
    if manifest.is_index() {
        missing = missing_in_best_child(store, &manifest).await?;
    }
    if missing == 0 {
        return Ok(());
    }
    Err(PullError::Incomplete {
        digest: *digest,
        missing,
    })
}

async fn missing_blobs(store: &Store, manifest: &Manifest) -> Result<usize, PullError> {
    let digests = manifest.blobs().map(|blob| blob.digest).collect();
    Ok(store.missing(digests).await?.len())
}

/// Returns how much the most complete child lacks; a child that is not here lacks itself.
async fn missing_in_best_child(store: &Store, index: &Manifest) -> Result<usize, PullError> {
    let mut best = usize::MAX;
    let images = index
        .manifests
        .iter()
        .filter(|child| !child.is_attestation());
    for child in images.take(MAX_CHILDREN) {
        best = best.min(missing_in_child(store, child).await?);
        if best == 0 {
            break;
        }
    }
    Ok(best)
}

async fn missing_in_child(store: &Store, child: &Descriptor) -> Result<usize, PullError> {
    if let Some(stored) = store.manifest(&child.digest).await? {
        return match Manifest::parse(&stored.bytes) {
            Ok(manifest) => missing_blobs(store, &manifest).await,
            Err(_) => Ok(0),
        };
    }
    // A build cache's index lists layers, which are fetched as blobs.
    let is_blob = !child.media_type.is_manifest();
    let missing = store.missing(vec![child.digest]).await?.len();
    Ok(if is_blob { missing } else { 1 })
}
