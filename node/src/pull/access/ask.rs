//! Asking the upstream whether a repository has some content.

use millrace_protocol::oci::{Digest, Reference, RepositoryName};
use tokio::time::Instant;

use super::super::deadline::HEADER_BUDGET;
use super::super::error::PullError;
use super::super::origin::Origin;
use super::Form;

/// Asks the upstream; a yes is of now.
pub(super) async fn upstream(
    origin: &Origin,
    digest: &Digest,
    form: Form,
) -> Result<Instant, PullError> {
    match form {
        Form::Blob => ask_for_blob(origin, digest).await?,
        Form::Manifest => ask_for_manifest(origin, *digest).await?,
    }
    Ok(Instant::now())
}

async fn ask_for_blob(origin: &Origin, digest: &Digest) -> Result<(), PullError> {
    let deadline = Instant::now() + HEADER_BUDGET;
    let Origin {
        upstream,
        repository,
    } = origin;
    upstream.probe_blob(repository, digest, deadline).await?;
    Ok(())
}

/// By `HEAD`, which counts as no pull; by `GET` where the upstream does not know `HEAD`.
async fn ask_for_manifest(origin: &Origin, digest: Digest) -> Result<(), PullError> {
    let deadline = Instant::now() + HEADER_BUDGET;
    let reference = Reference::Digest(digest);
    let repository: &RepositoryName = &origin.repository;
    let upstream = &origin.upstream;
    let head = upstream
        .head_manifest(repository, &reference, deadline)
        .await?;
    if head.digest.is_none() && head.media_type.is_none() {
        upstream
            .fetch_manifest(repository, &reference, deadline)
            .await?;
    }
    Ok(())
}
