//! Manifests at an upstream.
//!
//! The bytes are taken as they come; computing and comparing their digest is `pull`'s, for an
//! upstream's word on it is not enough. Source: OCI end-3; CLIENT-CONTRACT U5, U6, U9.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use millrace_protocol::oci::manifest::MAX_MANIFEST_BYTES;
use millrace_protocol::oci::{Digest, MediaType, Reference, RepositoryName};
use tokio::time::Instant;

use super::Inner;
use super::attempt::Request;
use super::error::{FetchError, Outage, Subject};
use super::fetch::Answer;
use super::metrics::Kind;
use super::transport::{self, BodyError};

/// What a `HEAD` says about a manifest; what an upstream leaves out is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestHead {
    /// Its digest; without one only a `GET` tells what the tag means.
    pub digest: Option<Digest>,
    /// Its media type.
    pub media_type: Option<MediaType>,
    /// Its size in bytes.
    pub size: Option<u64>,
}

/// A manifest as the upstream sent it; its digest has not been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedManifest {
    /// The bytes, at most 8 MiB.
    pub bytes: Bytes,
    /// The type that the upstream states, else the manifest's own; empty when that has none that is
    /// known, and clients are then told that it is bytes.
    pub media_type: MediaType,
    /// The digest that the upstream states, to be compared and not to be believed.
    pub stated_digest: Option<Digest>,
}

impl Inner {
    pub(super) async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        deadline: Instant,
    ) -> Result<ManifestHead, FetchError> {
        let request = request(Kind::ManifestHead, repository, reference);
        let answer = self.fetch(&request, deadline).await?;
        if !answer.response.status().is_success() {
            return Ok(ManifestHead::default());
        }
        let headers = answer.response.headers();
        Ok(ManifestHead {
            digest: digest(headers),
            media_type: media_type(headers),
            size: headers
                .get(CONTENT_LENGTH)
                .and_then(|value| value.to_str().ok()?.parse().ok()),
        })
    }

    pub(super) async fn fetch_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        deadline: Instant,
    ) -> Result<FetchedManifest, FetchError> {
        let request = request(Kind::Manifest, repository, reference);
        let answer = self.fetch(&request, deadline).await?;
        let headers = answer.response.headers();
        let (stated_digest, media_type) = (digest(headers), media_type(headers));
        let bytes = self.read(answer, &request.subject, deadline).await?;
        let own_type = || MediaType::of_manifest(&bytes);
        Ok(FetchedManifest {
            media_type: media_type.or_else(own_type).unwrap_or_default(),
            bytes,
            stated_digest,
        })
    }

    /// Reads the whole body of an answer that is as small as a manifest.
    pub(super) async fn read(
        &self,
        answer: Answer,
        subject: &Arc<Subject>,
        deadline: Instant,
    ) -> Result<Bytes, FetchError> {
        let body = transport::read_bounded(answer.response, MAX_MANIFEST_BYTES);
        let failed = match tokio::time::timeout_at(deadline, body).await {
            Ok(Ok(bytes)) => {
                self.metrics.count_received(bytes.len());
                return Ok(bytes);
            }
            Ok(Err(BodyError::Interrupted)) => self.unavailable(Outage::Interrupted),
            Err(_) => self.unavailable(Outage::Deadline),
            Ok(Err(BodyError::TooLarge)) => FetchError::TooLarge {
                upstream: self.name.clone(),
                subject: subject.clone(),
                limit_bytes: MAX_MANIFEST_BYTES,
            },
        };
        self.note_broken_body(&failed);
        Err(failed)
    }
}

fn request(kind: Kind, repository: &RepositoryName, reference: &Reference) -> Request {
    Request {
        kind,
        subject: Arc::new(Subject::Manifest(repository.clone(), reference.clone())),
        path: format!("{repository}/manifests/{reference}"),
        query: None,
        range: None,
    }
}

fn digest(headers: &HeaderMap) -> Option<Digest> {
    headers
        .get("docker-content-digest")?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(MediaType::new(text)).filter(|media_type| !media_type.as_str().is_empty())
}
