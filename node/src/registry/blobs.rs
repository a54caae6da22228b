//! end-2: blobs, whole and by range.
//!
//! The head of an answer leaves when its first bytes are in hand (CLIENT-CONTRACT B6). Several
//! ranges are answered one by one only from a blob that is wholly here; otherwise the client gets
//! everything, which B3 allows.

use std::ops::Range;

use http::StatusCode;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap,
    HeaderValue, RANGE,
};
use millrace_protocol::byte_range::{ByteRanges, ContentRange, Selection};
use millrace_protocol::oci::Digest;

use crate::pull::{BlobHead, OpenBlob, Origin, PullError, Puller, Source};

use super::answer::{self, Answer, DOCKER_CONTENT_DIGEST, IMMUTABLE};
use super::body::Content;
use super::conditional::Validator;
use super::multipart;
use super::respond::{Failure, Wanted};

static BYTES: HeaderValue = HeaderValue::from_static("bytes");
static OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Answers a `HEAD`, to which `Range` does not apply.
pub(super) async fn head(
    puller: &Puller,
    origin: &Origin,
    digest: &Digest,
    headers: &HeaderMap,
) -> Result<Answer, Failure> {
    let BlobHead { size, source } = puller.blob_head(origin, digest).await.map_err(failed)?;
    let validator = Validator::of(digest);
    if validator.is_known_to_client(headers) {
        return Ok(not_modified(&validator, source));
    }
    let mut answer = describe(StatusCode::OK, &validator, source);
    if let Some(size) = size {
        answer.headers.insert(CONTENT_LENGTH, size.into());
    }
    Ok(answer)
}

/// Answers a `GET`.
pub(super) async fn get(
    puller: &Puller,
    origin: &Origin,
    digest: &Digest,
    headers: &HeaderMap,
) -> Result<Answer, Failure> {
    let validator = Validator::of(digest);
    if validator.is_known_to_client(headers) {
        let BlobHead { source, .. } = puller.blob_head(origin, digest).await.map_err(failed)?;
        return Ok(not_modified(&validator, source));
    }
    let blob = puller.blob(origin, digest).await.map_err(failed)?;
    let ranges = headers
        .get(RANGE)
        .filter(|_| validator.allows_range(headers))
        .and_then(|value| ByteRanges::parse(value.as_bytes()));
    let size = size_for(&blob, ranges.as_ref()).await?;
    let selection = match (ranges, size) {
        (Some(ranges), Some(size)) => ranges.select(size),
        _ => Selection::Full,
    };
    match (selection, size) {
        (Selection::Single(range), Some(size)) => single(&blob, &validator, range, size).await,
        (Selection::Multi(ranges), Some(size)) if blob.is_complete() => {
            let answer = describe(StatusCode::PARTIAL_CONTENT, &validator, blob.source());
            let parts = multipart::answer(answer, blob, digest, ranges, size).await;
            parts.map_err(failed)
        }
        (Selection::Unsatisfiable, Some(size)) => Err(Failure::Range(size)),
        (_, size) => full(&blob, &validator, size).await,
    }
}

fn failed(error: PullError) -> Failure {
    Failure::Pull(Wanted::Blob, error)
}

/// Returns the size, waiting for it only if a range cannot be answered without; `None` when it
/// stays unknown, and then the client gets everything, chunked.
async fn size_for(blob: &OpenBlob, ranges: Option<&ByteRanges>) -> Result<Option<u64>, Failure> {
    let size = blob.size();
    if size.is_some() || ranges.is_none_or(ByteRanges::is_everything) {
        return Ok(size);
    }
    match blob.wait_for_size().await {
        Ok(size) => Ok(Some(size)),
        Err(PullError::Late { .. }) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

async fn single(
    blob: &OpenBlob,
    validator: &Validator,
    range: Range<u64>,
    size: u64,
) -> Result<Answer, Failure> {
    let content = blob.read(range.clone()).await.map_err(failed)?;
    let mut answer = describe(StatusCode::PARTIAL_CONTENT, validator, blob.source());
    let length = range.end - range.start;
    answer.headers.insert(CONTENT_LENGTH, length.into());
    let range = ContentRange {
        range: Some(range),
        size,
    };
    let range = answer::content_range(&range);
    answer.headers.insert(CONTENT_RANGE, range);
    answer.content = Content::Blob(content);
    Ok(answer)
}

async fn full(
    blob: &OpenBlob,
    validator: &Validator,
    size: Option<u64>,
) -> Result<Answer, Failure> {
    let content = blob.read(0..size.unwrap_or(u64::MAX)).await;
    let content = content.map_err(failed)?;
    let mut answer = describe(StatusCode::OK, validator, blob.source());
    if let Some(size) = size {
        answer.headers.insert(CONTENT_LENGTH, size.into());
    }
    answer.content = Content::Blob(content);
    Ok(answer)
}

/// Makes an answer with the headers that all answers about a blob have.
fn describe(status: StatusCode, validator: &Validator, source: Source) -> Answer {
    let mut answer = not_modified(validator, source);
    answer.status = status;
    answer.headers.insert(CONTENT_TYPE, OCTETS.clone());
    answer.headers.insert(ACCEPT_RANGES, BYTES.clone());
    answer
}

fn not_modified(validator: &Validator, source: Source) -> Answer {
    let mut answer = Answer::new(StatusCode::NOT_MODIFIED).from(source);
    let headers = &mut answer.headers;
    headers.insert(&DOCKER_CONTENT_DIGEST, validator.digest());
    headers.insert(ETAG, validator.etag());
    headers.insert(CACHE_CONTROL, IMMUTABLE.clone());
    answer
}
