//! The one place where errors become HTTP.
//!
//! What a client is told decides whether it goes to its next registry, tries again, or gives up;
//! the mapping is CLIENT-CONTRACT F3 to F6. An upstream's 401, 403 or 429 is never passed on.

use std::error::Error;

use http::StatusCode;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_RANGE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT,
    WWW_AUTHENTICATE,
};
use millrace_protocol::byte_range::ContentRange;
use millrace_protocol::oci::ErrorCode;

use crate::pull::PullError;
use crate::upstream::FetchError;

use super::answer::{Answer, content_range};
use super::config::UnavailableBlob;

/// When a client may ask again for a blob whose download is queued here. Its place is kept, so
/// asking costs little; and no more often than clients give up waiting.
const CROWD_RETRY_SECONDS: u64 = 20;

/// What a client wanted when something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Manifest,
    Blob,
    Tags,
    Referrers,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request itself is at fault.
    Refused(ErrorCode, Option<String>),
    /// Only `GET` and `HEAD` exist here.
    Method,
    /// A name and a password for this realm are needed, and were not sent or are wrong.
    Login(String),
    /// The one range asked for is outside a blob of this size.
    Range(u64),
    /// The pull failed.
    Pull(Wanted, PullError),
}

impl Failure {
    /// Refuses a request without saying more than the code does.
    pub(super) fn code(code: ErrorCode) -> Self {
        Self::Refused(code, None)
    }

    /// Refuses a request, with a text for people.
    pub(super) fn because(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self::Refused(code, Some(detail.into()))
    }
}

/// Turns a failure into the answer that moves this client on.
pub(super) fn respond(
    failure: &Failure,
    policy: UnavailableBlob,
    request_headers: &HeaderMap,
) -> Answer {
    match failure {
        Failure::Refused(code, detail) => error(*code, detail.as_deref()),
        Failure::Method => {
            let mut answer = error(ErrorCode::Unsupported, None);
            let allowed = HeaderValue::from_static("GET, HEAD");
            answer.headers.insert(ALLOW, allowed);
            answer
        }
        Failure::Login(realm) => {
            let mut answer = error(ErrorCode::Unauthorized, None);
            answer.headers.insert(WWW_AUTHENTICATE, challenge(realm));
            answer
        }
        Failure::Range(size) => unsatisfiable(*size),
        Failure::Pull(wanted, failure) => {
            let code = verdict(*wanted, failure, || hides_outage(policy, request_headers));
            let mut answer = error(code, Some(&failure.to_string()));
            if let PullError::Crowded { .. } = failure {
                answer
                    .headers
                    .insert(RETRY_AFTER, CROWD_RETRY_SECONDS.into());
            }
            answer.trouble = (!failure.is_denial()).then(|| with_causes(failure));
            answer
        }
    }
}

/// Chooses the code for a pull that failed (F3). `hides_outage` says whether this client is told
/// that a blob does not exist when it only cannot be had right now (F4).
fn verdict(wanted: Wanted, failure: &PullError, hides_outage: impl Fn() -> bool) -> ErrorCode {
    match (failure, wanted) {
        (PullError::Fetch(FetchError::NotFound { .. }), Wanted::Manifest | Wanted::Referrers) => {
            ErrorCode::ManifestUnknown
        }
        (
            PullError::Fetch(FetchError::NotFound { .. } | FetchError::Denied { .. }),
            Wanted::Blob,
        ) => ErrorCode::BlobUnknown,
        (PullError::Fetch(FetchError::NotFound { .. } | FetchError::Denied { .. }), _) => {
            ErrorCode::NameUnknown
        }
        // Our own trouble: another registry would be asked for everything we hold.
        (
            PullError::Crowded { .. }
            | PullError::Fetch(FetchError::Busy { .. } | FetchError::Shortage { .. }),
            _,
        ) => ErrorCode::Unavailable,
        (_, Wanted::Blob) if hides_outage() => ErrorCode::BlobUnknown,
        _ => ErrorCode::Unavailable,
    }
}

/// Whether this client moves on only after a 404: dockerd repeats a blob's 503 for a minute.
fn hides_outage(policy: UnavailableBlob, request_headers: &HeaderMap) -> bool {
    match policy {
        UnavailableBlob::NotFound => true,
        UnavailableBlob::Unavailable => false,
        UnavailableBlob::Auto => request_headers
            .get(USER_AGENT)
            .is_some_and(|agent| agent.as_bytes().starts_with(b"docker/")),
    }
}

/// Source: RFC 7617. Basic and not Bearer, which some clients mix up between registries
/// (CLIENT-CONTRACT A3).
fn challenge(realm: &str) -> HeaderValue {
    let mut value = "Basic realm=\"".to_owned();
    for c in realm.chars() {
        if matches!(c, '"' | '\\') {
            value.push('\\');
        }
        value.push(c);
    }
    value.push('"');
    HeaderValue::try_from(value).unwrap_or_else(|_| HeaderValue::from_static("Basic realm=\"\""))
}

fn error(code: ErrorCode, detail: Option<&str>) -> Answer {
    let status = StatusCode::from_u16(code.status()).expect("the table holds valid statuses");
    Answer::json(status, code.body(detail))
}

/// Source: RFC 9110 section 15.5.17; CLIENT-CONTRACT B4.
fn unsatisfiable(size: u64) -> Answer {
    let detail = "the range is outside the blob";
    let body = ErrorCode::SizeInvalid.body(Some(detail));
    let mut answer = Answer::json(StatusCode::RANGE_NOT_SATISFIABLE, body);
    let range = ContentRange { range: None, size };
    answer.headers.insert(CONTENT_RANGE, content_range(&range));
    let unit = HeaderValue::from_static("bytes");
    answer.headers.insert(ACCEPT_RANGES, unit);
    answer
}

/// An error and what is behind it, for the log.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use http::header::CONTENT_TYPE;

    use super::super::body::Content;
    use super::*;
    use crate::upstream::error::{Limit, Outage, Subject};

    fn headers(agent: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(agent))])
    }

    fn told(wanted: Wanted, failure: PullError, agent: &'static str) -> String {
        let failure = Failure::Pull(wanted, failure);
        let answer = respond(&failure, UnavailableBlob::Auto, &headers(agent));
        assert_eq!(answer.headers.get("retry-after"), None);
        assert_eq!(answer.headers.get("www-authenticate"), None);
        assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
        let Content::Full(body) = &answer.content else {
            panic!("an error has a body");
        };
        let json: serde_json::Value = serde_json::from_slice(body).expect("valid JSON");
        let code = json["errors"][0]["code"].as_str().expect("a code");
        assert!(json["errors"][0]["detail"].is_string());
        format!("{} {code}", answer.status.as_u16())
    }

    fn upstream() -> Arc<str> {
        Arc::from("docker.io")
    }

    fn subject() -> Arc<Subject> {
        Arc::new(Subject::Tags("library/alpine".parse().expect("a name")))
    }

    fn not_found() -> PullError {
        let (upstream, subject) = (upstream(), subject());
        FetchError::NotFound { upstream, subject }.into()
    }

    fn denied() -> PullError {
        FetchError::Denied {
            upstream: upstream(),
            subject: subject(),
            status: 401,
        }
        .into()
    }

    fn outages() -> Vec<PullError> {
        let unavailable = |reason| FetchError::Unavailable {
            upstream: upstream(),
            reason,
        };
        vec![
            FetchError::RateLimited {
                upstream: upstream(),
                limit: Limit::Pulls,
                retry_at: None,
            }
            .into(),
            unavailable(Outage::Status(502)).into(),
            unavailable(Outage::Connect("refused".into())).into(),
            unavailable(Outage::BreakerOpen).into(),
            PullError::Late {
                waited: Duration::from_secs(20),
            },
            PullError::Stopped,
        ]
    }

    #[test]
    fn what_the_upstream_has_not_is_unknown_here() {
        for (wanted, answer) in [
            (Wanted::Manifest, "404 MANIFEST_UNKNOWN"),
            (Wanted::Blob, "404 BLOB_UNKNOWN"),
            (Wanted::Tags, "404 NAME_UNKNOWN"),
            (Wanted::Referrers, "404 MANIFEST_UNKNOWN"),
        ] {
            assert_eq!(told(wanted, not_found(), "curl/8"), answer);
        }
    }

    #[test]
    fn a_refusal_of_the_upstream_is_not_passed_on() {
        for (wanted, answer) in [
            (Wanted::Manifest, "404 NAME_UNKNOWN"),
            (Wanted::Blob, "404 BLOB_UNKNOWN"),
            (Wanted::Tags, "404 NAME_UNKNOWN"),
            (Wanted::Referrers, "404 NAME_UNKNOWN"),
        ] {
            assert_eq!(told(wanted, denied(), "curl/8"), answer);
        }
    }

    #[test]
    fn an_outage_is_unavailable_and_dockerd_moves_on_for_blobs() {
        for outage in outages() {
            for wanted in [Wanted::Manifest, Wanted::Tags, Wanted::Referrers] {
                for agent in ["containers/5", "docker/29.0 go/1.24"] {
                    assert_eq!(told(wanted, outage.clone(), agent), "503 UNAVAILABLE");
                }
            }
            let blob = |agent| told(Wanted::Blob, outage.clone(), agent);
            assert_eq!(blob("containerd/2.1"), "503 UNAVAILABLE");
            assert_eq!(blob("docker/29.0 go/1.24"), "404 BLOB_UNKNOWN");
        }
    }

    #[test]
    fn a_realm_stays_within_its_quotes() {
        assert_eq!(challenge("a \"b\\"), "Basic realm=\"a \\\"b\\\\\"");
        assert_eq!(challenge("a\nb"), "Basic realm=\"\"");
    }

    #[test]
    fn overload_is_not_hidden() {
        let busy = FetchError::Busy {
            upstream: upstream(),
            limit: 64,
        };
        assert_eq!(
            told(Wanted::Blob, busy.into(), "docker/29.0"),
            "503 UNAVAILABLE"
        );
    }

    #[test]
    fn who_is_queued_is_told_when_to_ask_again_and_which_setting_it_is() {
        let crowded = PullError::Crowded {
            upstream: "docker.io".to_owned(),
            limit: Some(512),
            waited: Duration::from_secs(20),
        };
        let failure = Failure::Pull(Wanted::Blob, crowded);
        let answer = respond(&failure, UnavailableBlob::Auto, &headers("docker/29.0"));
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers[RETRY_AFTER], "20");
        let Content::Full(body) = &answer.content else {
            panic!("an error has a body");
        };
        let body = String::from_utf8_lossy(body);
        assert!(
            body.contains("512 downloads") && body.contains("max_downloads"),
            "{body}"
        );
    }

    #[test]
    fn the_setting_decides_for_every_client() {
        let failure = Failure::Pull(Wanted::Blob, PullError::Stopped);
        for (policy, status) in [
            (UnavailableBlob::NotFound, 404),
            (UnavailableBlob::Unavailable, 503),
        ] {
            for agent in ["docker/29.0", "curl/8"] {
                assert_eq!(respond(&failure, policy, &headers(agent)).status, status);
            }
        }
    }

    #[test]
    fn only_trouble_is_logged() {
        let policy = UnavailableBlob::Auto;
        let trouble = |failure| {
            let failure = Failure::Pull(Wanted::Blob, failure);
            respond(&failure, policy, &headers("docker/29.0")).trouble
        };
        assert_eq!(trouble(not_found()), None);
        assert_eq!(
            trouble(PullError::Stopped).as_deref(),
            Some("the fetch was stopped")
        );
    }

    #[test]
    fn a_range_outside_the_blob_states_its_size() {
        let answer = respond(&Failure::Range(10), UnavailableBlob::Auto, &headers("x"));
        assert_eq!(answer.status, 416);
        assert_eq!(answer.headers[CONTENT_RANGE], "bytes */10");
    }
}
