//! Answers before they are counted and logged, and the headers that this API has of its own.
//!
//! What is in an answer is up to those who make it; how it goes out is `body`'s.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use millrace_protocol::byte_range::ContentRange;
use millrace_protocol::oci::ERROR_MEDIA_TYPE;

use crate::pull::Source;

use super::body::Content;

/// Digest of the content, which all clients check.
pub(super) static DOCKER_CONTENT_DIGEST: HeaderName =
    HeaderName::from_static("docker-content-digest");
/// Version of the API; old clients look for it.
static API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// Name of the upstream that the request was resolved to.
pub(super) static OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
/// What a list of referrers was filtered by.
pub(super) static OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Where the content comes from.
pub(super) static MILLRACE_SOURCE: HeaderName = HeaderName::from_static("x-millrace-source");

/// Content under a digest never changes.
pub(super) static IMMUTABLE: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");

/// An answer before it is counted and logged.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
    pub(super) source: Option<Source>,
    /// Why this node could not answer, for the log.
    pub(super) trouble: Option<String>,
}

impl Answer {
    /// Makes an answer without content and without headers.
    pub(super) fn new(status: StatusCode) -> Self {
        Self {
            status,
            // Enough for a blob's headers without growing.
            headers: HeaderMap::with_capacity(12),
            content: Content::Empty,
            source: None,
            trouble: None,
        }
    }

    /// Makes an answer of bytes in memory.
    pub(super) fn full(status: StatusCode, media_type: HeaderValue, bytes: Bytes) -> Self {
        let mut answer = Self::new(status);
        answer.headers.insert(CONTENT_TYPE, media_type);
        answer.headers.insert(CONTENT_LENGTH, bytes.len().into());
        answer.content = Content::Full(bytes);
        answer
    }

    /// Makes an answer of JSON.
    pub(super) fn json(status: StatusCode, body: Vec<u8>) -> Self {
        let media_type = HeaderValue::from_static(ERROR_MEDIA_TYPE);
        Self::full(status, media_type, body.into())
    }

    /// States where the content comes from.
    pub(super) fn from(mut self, source: Source) -> Self {
        let value = HeaderValue::from_static(source.as_str());
        self.headers.insert(&MILLRACE_SOURCE, value);
        self.source = Some(source);
        self
    }

    /// Adds what every answer has, and takes away the content that was not asked for.
    pub(super) fn complete(&mut self, is_head: bool) {
        let version = HeaderValue::from_static("registry/2.0");
        self.headers.insert(&API_VERSION, version);
        if is_head {
            self.content = Content::Empty;
        } else if matches!(self.content, Content::Empty) && self.status != StatusCode::NOT_MODIFIED
        {
            self.headers
                .insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
    }
}

/// Writes the value of `Content-Range`.
pub(super) fn content_range(range: &ContentRange) -> HeaderValue {
    HeaderValue::try_from(range.to_string()).expect("digits and punctuation")
}
