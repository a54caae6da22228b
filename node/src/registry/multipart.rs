//! Several ranges of one blob in one answer: `multipart/byteranges`.
//!
//! Partial pulls of seekable layers ask for them. The length of the whole answer is known before
//! it begins, so that a client notices when it is cut short.
//! Source: RFC 9110 section 14.6; CLIENT-CONTRACT B3.

use std::ops::Range;
use std::sync::Arc;
use std::vec;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use millrace_protocol::byte_range::ContentRange;
use millrace_protocol::oci::Digest;

use crate::pull::{BlobBody, OpenBlob, Piece, PullError};

use super::answer::Answer;
use super::body::Content;

/// Longest boundary that fits the 70 characters which the format allows.
const BOUNDARY_BYTES: usize = 64;

/// One range and the heading before it.
type Part = (Bytes, Range<u64>);

/// Completes an answer with the ranges of a blob, which must be wholly here.
///
/// # Errors
/// The first range cannot be read.
pub(super) async fn answer(
    mut answer: Answer,
    blob: OpenBlob,
    digest: &Digest,
    ranges: Vec<Range<u64>>,
    size: u64,
) -> Result<Answer, PullError> {
    let boundary = boundary(digest);
    let parts: Vec<Part> = ranges
        .into_iter()
        .map(|range| (heading(&boundary, &range, size), range))
        .collect();
    let closing = Bytes::from(format!("\r\n--{boundary}--\r\n"));
    let length = parts
        .iter()
        .map(|(heading, range)| heading.len() as u64 + (range.end - range.start))
        .sum::<u64>()
        + closing.len() as u64;
    let media_type = format!("multipart/byteranges; boundary={boundary}");
    let media_type = HeaderValue::try_from(media_type).expect("a digest is plain ASCII");
    answer.headers.insert(CONTENT_TYPE, media_type);
    answer.headers.insert(CONTENT_LENGTH, length.into());
    answer.content = Content::Parts(content(blob, parts, closing).await?);
    Ok(answer)
}

/// A line that the blob cannot contain: its own digest, for then it would be its own preimage.
fn boundary(digest: &Digest) -> String {
    let mut boundary = digest.hex();
    boundary.truncate(BOUNDARY_BYTES);
    boundary
}

fn heading(boundary: &str, range: &Range<u64>, size: u64) -> Bytes {
    let range = ContentRange {
        range: Some(range.clone()),
        size,
    };
    Bytes::from(format!(
        "\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\ncontent-range: {range}\r\n\r\n"
    ))
}

/// Opens the first range and promises the others.
async fn content(blob: OpenBlob, parts: Vec<Part>, closing: Bytes) -> Result<Opened, PullError> {
    let blob = Arc::new(blob);
    let mut parts = parts.into_iter();
    let first = match parts.next() {
        Some((heading, range)) => Some(opened(heading, blob.read(range).await?)),
        None => None,
    };
    let others = stream::try_unfold((blob, parts), next).map(|opened| {
        // A range that cannot be opened is a stream of its error.
        opened.unwrap_or_else(|error| stream::once(async move { Err(error) }).boxed())
    });
    let closing = stream::once(async move { Ok(Piece::Memory(closing)) });
    let content = stream::iter(first).chain(others).flatten();
    Ok(content.chain(closing).boxed())
}

type Opened = BoxStream<'static, Result<Piece, PullError>>;

fn opened(heading: Bytes, body: BlobBody) -> Opened {
    let heading = stream::once(async move { Ok(Piece::Memory(heading)) });
    heading.chain(body).boxed()
}

type Rest = (Arc<OpenBlob>, vec::IntoIter<Part>);

async fn next((blob, mut parts): Rest) -> Result<Option<(Opened, Rest)>, PullError> {
    let Some((heading, range)) = parts.next() else {
        return Ok(None);
    };
    // A slow client comes to it at any time; nobody waits for a head any more.
    let body = blob.read_further(range).await?;
    Ok(Some((opened(heading, body), (blob, parts))))
}
