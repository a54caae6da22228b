//! Blobs at an upstream: their bytes, from any offset.
//!
//! A body is checked against what its headers state, so that a short one is never taken for the
//! whole; the digest is `pull`'s to verify. Source: OCI end-2; RFC 9110 section 14;
//! CLIENT-CONTRACT U8 to U10.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue};
use http::{HeaderMap, StatusCode};
use millrace_protocol::oci::{Digest, RepositoryName};
use reqwest::Response;
use tokio::time::Instant;

use super::Inner;
use super::attempt::Request;
use super::error::{Defect, FetchError, Outage, Subject};
use super::fetch::Answer;
use super::metrics::Kind;
use super::turns::{DownloadTurn, Turn};

/// Time that an upstream has to answer with headers, once it is a blob's turn. A client is answered
/// within its 25 s in any case (contract B5); the fetch keeps its place for the next one.
const OPEN_PATIENCE: Duration = Duration::from_secs(20);

/// The body of a blob, as it comes from the upstream.
///
/// It is one of the requests that the upstream may run at a time until it is dropped, or has
/// lasted so long that it makes room for others.
#[derive(Debug)]
pub struct BlobBody {
    inner: Arc<Inner>,
    subject: Arc<Subject>,
    response: Response,
    span: Span,
    /// Where the next byte belongs.
    position: u64,
    turn: DownloadTurn,
}

/// What the headers say about a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    /// Offset of the first byte.
    start: u64,
    /// Size of the whole blob.
    size: Option<u64>,
}

impl Inner {
    pub(super) async fn open_blob(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
        deadline: Instant,
    ) -> Result<BlobBody, FetchError> {
        let request = open_request(repository, digest, offset);
        let answer = self.fetch(&request, deadline).await?;
        self.body_of(answer, request, offset, deadline).await
    }

    pub(super) async fn open_blob_in_turn(
        self: &Arc<Self>,
        turn: Turn,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobBody, FetchError> {
        let request = open_request(repository, digest, offset);
        let deadline = Instant::now() + OPEN_PATIENCE;
        let answer = self.fetch_in(turn, &request, deadline).await?;
        self.body_of(answer, request, offset, deadline).await
    }

    /// Makes a body of the answer to a request for the bytes from `offset` on.
    async fn body_of(
        self: &Arc<Self>,
        mut answer: Answer,
        mut request: Request,
        offset: u64,
        deadline: Instant,
    ) -> Result<BlobBody, FetchError> {
        if answer.response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // The blob is not as long as the caller believes: from the start, to find out.
            request.range = None;
            answer = self.fetch_in(answer.turn, &request, deadline).await?;
        }
        let Answer { response, turn } = answer;
        let span = span(&response, offset)
            .ok_or_else(|| self.bad_answer(&request.subject, Defect::WrongRange))?;
        Ok(BlobBody {
            inner: self.clone(),
            subject: request.subject,
            response,
            position: span.start,
            span,
            turn: DownloadTurn::new(turn),
        })
    }

    pub(super) async fn probe_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Option<u64>, FetchError> {
        let subject = Arc::new(Subject::Blob(repository.clone(), *digest));
        let range = Some("bytes=0-0".to_owned());
        let request = request(Kind::BlobProbe, subject, repository, digest, range);
        let answer = self.fetch(&request, deadline).await?;
        // A body of one byte is not worth reading, one of a whole blob is not to be read.
        let headers = answer.response.headers();
        Ok(match answer.response.status() {
            StatusCode::OK => content_length(headers),
            _ => content_range(headers).and_then(|range| range.size),
        })
    }

    /// Keeps that a body broke: the next attempt will show what it means.
    pub(super) fn note_broken_body(&self, error: &FetchError) {
        if matches!(error, FetchError::Unavailable { .. }) {
            self.last_failed
                .store(true, std::sync::atomic::Ordering::Relaxed);
        }
        self.note_error(error);
    }
}

impl BlobBody {
    /// Returns the size of the whole blob in bytes, if the upstream states it.
    pub fn size(&self) -> Option<u64> {
        self.span.size
    }

    /// Returns where in the blob this body starts: 0 when the upstream ignored the offset.
    pub fn offset(&self) -> u64 {
        self.span.start
    }

    /// Returns the next bytes, or `None` at the end of the blob.
    ///
    /// # Errors
    /// [`FetchError::Unavailable`] when nothing comes for the idle timeout, the connection breaks,
    /// or the body ends before the stated size; [`FetchError::BadAnswer`] when it is longer.
    /// # Cancel safety
    /// Dropping the future loses no bytes.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let idle = Instant::now() + self.inner.timeouts.idle;
        let until = self.turn.due().map_or(idle, |due| due.min(idle));
        let mut chunk = tokio::time::timeout_at(until, self.response.chunk()).await;
        self.turn.make_room(&self.inner.turns);
        if chunk.is_err() && until < idle {
            chunk = tokio::time::timeout_at(idle, self.response.chunk()).await;
        }
        let chunk = match chunk {
            Err(_) => Err(self.inner.unavailable(Outage::Stalled)),
            Ok(Err(_)) => Err(self.inner.unavailable(Outage::Interrupted)),
            Ok(Ok(Some(chunk))) => self.accept(chunk).map(Some),
            Ok(Ok(None)) if self.span.size.is_some_and(|size| self.position < size) => {
                Err(self.inner.unavailable(Outage::Interrupted))
            }
            Ok(Ok(None)) => Ok(None),
        };
        chunk.inspect_err(|error| self.inner.note_broken_body(error))
    }

    /// Whether it has made room for others, so that there may be many such at a time.
    pub fn is_lasting(&self) -> bool {
        self.turn.is_lasting()
    }

    fn accept(&mut self, chunk: Bytes) -> Result<Bytes, FetchError> {
        self.inner.metrics.count_received(chunk.len());
        self.position = self.position.saturating_add(chunk.len() as u64);
        if self.span.size.is_some_and(|size| self.position > size) {
            return Err(self.inner.bad_answer(&self.subject, Defect::TooLong));
        }
        Ok(chunk)
    }
}

fn open_request(repository: &RepositoryName, digest: &Digest, offset: u64) -> Request {
    let subject = Arc::new(Subject::Blob(repository.clone(), *digest));
    let range = (offset > 0).then(|| format!("bytes={offset}-"));
    request(Kind::Blob, subject, repository, digest, range)
}

fn request(
    kind: Kind,
    subject: Arc<Subject>,
    repository: &RepositoryName,
    digest: &Digest,
    range: Option<String>,
) -> Request {
    let range =
        range.map(|range| HeaderValue::try_from(range).expect("digits are valid in a header"));
    Request {
        kind,
        subject,
        path: format!("{repository}/blobs/{digest}"),
        query: None,
        range,
    }
}

/// Returns what the headers of a body say, or `None` when they contradict themselves or `asked`.
fn span(response: &Response, asked: u64) -> Option<Span> {
    let length = content_length(response.headers());
    match response.status() {
        StatusCode::OK => Some(Span {
            start: 0,
            size: length,
        }),
        StatusCode::PARTIAL_CONTENT => {
            let range = content_range(response.headers())?;
            let (first, last) = range.bytes?;
            let whole = range.size.is_none_or(|size| last < size);
            let fits = length.is_none_or(|length| last.checked_sub(first) == length.checked_sub(1));
            (first == asked && whole && fits).then_some(Span {
                start: first,
                size: range.size,
            })
        }
        _ => None,
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A `Content-Range` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ContentRange {
    /// First and last byte; absent when none could be sent.
    bytes: Option<(u64, u64)>,
    /// Size of the whole.
    size: Option<u64>,
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim();
    let (range, size) = text.strip_prefix("bytes")?.trim().split_once('/')?;
    let bytes = match range.trim() {
        "*" => None,
        range => {
            let (first, last) = range.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        }
    };
    let size = match size.trim() {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    Some(ContentRange { bytes, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, lines: &[(&str, &str)]) -> Response {
        let mut builder = http::Response::builder().status(status);
        for (name, value) in lines {
            builder = builder.header(*name, *value);
        }
        builder.body("").expect("valid response").into()
    }

    #[test]
    fn headers_say_where_a_body_belongs() {
        let partial =
            |range, length| answer(206, &[("content-range", range), ("content-length", length)]);
        let at_five = Some(Span {
            start: 5,
            size: Some(10),
        });
        assert_eq!(span(&partial("bytes 5-9/10", "5"), 5), at_five);
        assert_eq!(
            span(&partial("bytes 5-7/10", "3"), 5),
            at_five,
            "less than asked for"
        );
        assert_eq!(
            span(&partial("bytes 5-9/*", "5"), 5),
            Some(Span {
                start: 5,
                size: None
            })
        );
        let whole = answer(200, &[("content-length", "10")]);
        assert_eq!(
            span(&whole, 5),
            Some(Span {
                start: 0,
                size: Some(10)
            })
        );
        assert_eq!(
            span(&answer(200, &[]), 0),
            Some(Span {
                start: 0,
                size: None
            })
        );
        for (range, length) in [
            ("bytes 4-9/10", "6"),
            ("bytes 5-9/10", "4"),
            ("bytes 5-10/10", "6"),
            ("bytes 9-5/10", "5"),
            ("bytes */10", "5"),
            ("bytes 5-99999999999999999999/10", "5"),
            ("five to nine", "5"),
        ] {
            assert_eq!(span(&partial(range, length), 5), None, "{range}");
        }
        assert_eq!(span(&answer(206, &[]), 5), None);
    }
}
