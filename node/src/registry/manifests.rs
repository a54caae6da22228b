//! end-3: manifests by tag and by digest.
//!
//! `Range` and `Accept` have no effect: clients get the manifest whole and as it is stored,
//! whatever they list (CLIENT-CONTRACT B2, H3).

use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue};
use millrace_protocol::oci::{MediaType, Reference};

use crate::pull::{ManifestAnswer, ManifestHeadAnswer, Origin, PullError, Puller};

use super::answer::{Answer, DOCKER_CONTENT_DIGEST, IMMUTABLE};
use super::body::Content;
use super::conditional::Validator;
use super::respond::{Failure, Wanted};

/// Answers a `GET`.
pub(super) async fn get(
    puller: &Puller,
    origin: &Origin,
    reference: &Reference,
    headers: &HeaderMap,
) -> Result<Answer, Failure> {
    let manifest = puller.manifest(origin, reference).await.map_err(failed)?;
    let ManifestAnswer {
        digest,
        media_type,
        bytes,
        source,
    } = manifest;
    let head = ManifestHeadAnswer {
        digest,
        media_type,
        size: bytes.len() as u64,
        source,
    };
    let mut answer = describe(&head, reference, headers);
    if answer.status == StatusCode::OK {
        answer.content = Content::Full(bytes);
    }
    Ok(answer)
}

/// Answers a `HEAD`.
pub(super) async fn head(
    puller: &Puller,
    origin: &Origin,
    reference: &Reference,
    headers: &HeaderMap,
) -> Result<Answer, Failure> {
    let asked = puller.manifest_head(origin, reference).await;
    Ok(describe(&asked.map_err(failed)?, reference, headers))
}

fn failed(error: PullError) -> Failure {
    Failure::Pull(Wanted::Manifest, error)
}

/// Makes the answer without its content: 200, or 304 when the client has it already.
fn describe(manifest: &ManifestHeadAnswer, reference: &Reference, asked: &HeaderMap) -> Answer {
    let validator = Validator::of(&manifest.digest);
    let known = validator.is_known_to_client(asked);
    let status = if known {
        StatusCode::NOT_MODIFIED
    } else {
        StatusCode::OK
    };
    let mut answer = Answer::new(status).from(manifest.source);
    let headers = &mut answer.headers;
    headers.insert(&DOCKER_CONTENT_DIGEST, validator.digest());
    headers.insert(ETAG, validator.etag());
    if matches!(reference, Reference::Digest(_)) {
        headers.insert(CACHE_CONTROL, IMMUTABLE.clone());
    }
    if !known {
        headers.insert(CONTENT_TYPE, media_type(&manifest.media_type));
        headers.insert(CONTENT_LENGTH, manifest.size.into());
    }
    answer
}

/// The exact type as a header, without an allocation for the usual ones.
///
/// A type that is no header value came from no header, and one that is empty from nowhere; such a
/// manifest is bytes to everyone.
fn media_type(media_type: &MediaType) -> HeaderValue {
    let text = media_type.as_str();
    let bytes = || HeaderValue::from_static("application/octet-stream");
    match MediaType::MANIFESTS.iter().find(|&&known| known == text) {
        Some(known) => HeaderValue::from_static(known),
        None if text.is_empty() => bytes(),
        None => HeaderValue::from_str(text).unwrap_or_else(|_| bytes()),
    }
}
