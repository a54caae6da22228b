//! What a healthy registry answers, with the changes of a script.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use super::State;
use super::request::Request;
use super::script::{Canned, Change, Then};

/// An answer with its whole body; `Content-Length` is added when it is written.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn new(status: u16, media_type: &str, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), media_type.to_owned())],
            body: body.into(),
        }
    }

    /// An error as the OCI specification has it.
    pub(super) fn error(status: u16, code: &str) -> Self {
        let body = json!({"errors": [{"code": code, "message": "no"}]}).to_string();
        Self::new(status, "application/json", body)
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

impl From<Canned> for Reply {
    fn from(canned: Canned) -> Self {
        Self {
            status: canned.status,
            headers: canned.headers,
            body: canned.body,
        }
    }
}

/// Returns the answer to `request` under the treatment `then`.
pub(super) fn reply(state: &State, request: &Request, then: &Then) -> Reply {
    let refusal = state.guards.lock().refuse(request);
    let mut reply = match &then.canned {
        Some(canned) => canned.clone().into(),
        None => refusal.unwrap_or_else(|| healthy(state, request, then)),
    };
    for (name, value) in &then.headers {
        reply
            .headers
            .retain(|(line, _)| !line.eq_ignore_ascii_case(name));
        if let Some(value) = value {
            reply.headers.push((name.clone(), value.clone()));
        }
    }
    reply
}

fn healthy(state: &State, request: &Request, then: &Then) -> Reply {
    let path = request.path();
    if path == "/token" {
        return state.guards.lock().token(request);
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return Reply::error(404, "NAME_UNKNOWN");
    };
    if rest.is_empty() {
        return Reply::new(200, "application/json", "{}");
    }
    if let Some(repository) = rest.strip_suffix("/tags/list") {
        return tags(state, request, repository);
    }
    let mut parts = rest.rsplitn(3, '/');
    let (reference, kind, repository) = (parts.next(), parts.next(), parts.next());
    let (Some(reference), Some(kind), Some(repository)) = (reference, kind, repository) else {
        return Reply::error(404, "NAME_UNKNOWN");
    };
    match kind {
        "blobs" => blob(state, request, then, (repository, reference)),
        "manifests" => manifest(state, then, repository, reference),
        "referrers" => referrers(state, repository, reference),
        _ => Reply::error(404, "NAME_UNKNOWN"),
    }
}

fn blob(
    state: &State,
    request: &Request,
    then: &Then,
    (repository, digest): (&str, &str),
) -> Reply {
    let Some(content) = state.content.lock().blob(repository, digest) else {
        return Reply::error(404, "BLOB_UNKNOWN");
    };
    let reply = Reply::new(200, "application/octet-stream", changed(content, then));
    let reply = reply
        .with("Docker-Content-Digest", digest)
        .with("Accept-Ranges", "bytes");
    encoded(ranged(reply, request, then), then)
}

fn manifest(state: &State, then: &Then, repository: &str, reference: &str) -> Reply {
    let content = state.content.lock();
    let Some((digest, media_type, bytes)) = content.manifest(repository, reference) else {
        let known = content.has_repository(repository);
        let code = if known {
            "MANIFEST_UNKNOWN"
        } else {
            "NAME_UNKNOWN"
        };
        return Reply::error(404, code);
    };
    drop(content);
    let reply = Reply::new(200, &media_type, changed(bytes, then));
    encoded(reply.with("Docker-Content-Digest", &digest), then)
}

/// A page of tags; `last` is exclusive, and a page that is not the last one links to the next.
fn tags(state: &State, request: &Request, repository: &str) -> Reply {
    let Some(mut tags) = state.content.lock().tags(repository) else {
        return Reply::error(404, "NAME_UNKNOWN");
    };
    let last = request.parameter("last").unwrap_or_default().to_owned();
    tags.retain(|tag| *tag > last);
    let size = request.parameter("n").and_then(|n| n.parse().ok());
    let size = size.unwrap_or(usize::MAX);
    let more = tags.len() > size;
    tags.truncate(size);
    let body = json!({"name": repository, "tags": tags}).to_string();
    let reply = Reply::new(200, "application/json", body);
    match tags.last() {
        Some(last) if more => {
            let next = format!("</v2/{repository}/tags/list?last={last}&n={size}>; rel=\"next\"");
            reply.with("Link", &next)
        }
        _ => reply,
    }
}

fn referrers(state: &State, repository: &str, subject: &str) -> Reply {
    match state.content.lock().referrers(repository, subject) {
        Some(index) => Reply::new(200, "application/vnd.oci.image.index.v1+json", index),
        None => Reply::error(404, "NOT_FOUND"),
    }
}

/// Applies a change of the content itself.
fn changed(content: Bytes, then: &Then) -> Bytes {
    match &then.change {
        Some(Change::Flip(offset)) => {
            let mut content = content.to_vec();
            content[*offset] ^= 0xff;
            content.into()
        }
        Some(Change::Replace(other)) => other.clone(),
        Some(Change::Gzip) | None => content,
    }
}

/// Cuts the body to what `Range` asks for.
fn ranged(mut reply: Reply, request: &Request, then: &Then) -> Reply {
    let size = reply.body.len();
    let range = request.header("range").filter(|_| !then.ignores_range);
    let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
        return reply;
    };
    let Some((first, last)) = bounds(range, size) else {
        let refusal = Reply::error(416, "UNSUPPORTED");
        return refusal.with("Content-Range", &format!("bytes */{size}"));
    };
    reply.status = 206;
    reply.body = reply.body.slice(first..last + 1);
    reply.with("Content-Range", &format!("bytes {first}-{last}/{size}"))
}

/// Reads `a-`, `a-b` or `-n` as first and last byte; `None` when there are none.
fn bounds(range: &str, size: usize) -> Option<(usize, usize)> {
    let (first, last) = range.split_once('-')?;
    let end = size.checked_sub(1)?;
    let (first, last) = match (first.parse::<usize>().ok(), last.parse::<usize>().ok()) {
        (Some(first), Some(last)) => (first, last.min(end)),
        (Some(first), None) => (first, end),
        (None, Some(count)) => (size.saturating_sub(count), end),
        (None, None) => return None,
    };
    (first <= last).then_some((first, last))
}

/// Compresses the body, as a careless CDN does.
fn encoded(mut reply: Reply, then: &Then) -> Reply {
    let Some(Change::Gzip) = then.change else {
        return reply;
    };
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder
        .write_all(&reply.body)
        .and_then(|()| encoder.finish())
        .map(|body| reply.body = body.into())
        .expect("a vector takes every byte");
    reply.with("Content-Encoding", "gzip")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_their_bounds() {
        for (range, expected) in [
            ("0-", Some((0, 9))),
            ("3-5", Some((3, 5))),
            ("3-99", Some((3, 9))),
            ("-4", Some((6, 9))),
            ("-99", Some((0, 9))),
            ("10-", None),
            ("5-3", None),
            ("-", None),
        ] {
            assert_eq!(bounds(range, 10), expected, "{range}");
        }
        assert_eq!(bounds("0-", 0), None);
    }
}
