//! What one answer says about a rate limit: in its headers, and in the body of a 429.
//!
//! Readers without state; what is remembered of it is `budget`'s. The spellings are those of Docker
//! Hub, of the draft that it follows, and of registries that send their own.
//! Source: CLIENT-CONTRACT U6, U7; RFC 9110 §10.2.3.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use http::header::RETRY_AFTER;

use super::error::Limit;

/// Tells by which limit a 429 was given.
///
/// Only the `GET` of a manifest can hit the limit of pulls; then the body says so, or nothing
/// remains of the budget.
pub(super) fn limit_of_refusal(counts: bool, headers: &HeaderMap, body: &[u8]) -> Limit {
    let text = String::from_utf8_lossy(body).to_lowercase();
    let names_pulls = text.contains("pull rate limit") || text.contains("\"toomanyrequests\"");
    let exhausted = quota(headers, "ratelimit-remaining").is_some_and(|quota| quota.count == 0);
    if counts && (names_pulls || exhausted) {
        Limit::Pulls
    } else {
        Limit::Requests
    }
}

/// Reads `Retry-After` (seconds or a date) or `X-Retry-After` (Unix time).
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    let from_now = |at: SystemTime| at.duration_since(now).unwrap_or_default();
    let standard = text(RETRY_AFTER.as_str()).and_then(|value| match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok().map(from_now),
    });
    standard.or_else(|| {
        let seconds = text("x-retry-after")?.parse().ok()?;
        UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .map(from_now)
    })
}

/// How much a registry allows, or has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    /// Requests.
    pub(super) count: u64,
    /// Length of the window that they are counted in.
    pub(super) window_seconds: Option<u64>,
}

/// Reads `100;w=21600`; of several policies the first.
pub(super) fn quota(headers: &HeaderMap, name: &str) -> Option<Quota> {
    let text = headers.get(name)?.to_str().ok()?;
    let mut parts = text.split(',').next()?.split(';').map(str::trim);
    let count = parts.next()?.parse().ok()?;
    let window_seconds = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok());
    Some(Quota {
        count,
        window_seconds,
    })
}

/// Makes headers of names and values.
#[cfg(test)]
pub(super) fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let line = |&(name, value): &(&'static str, &str)| {
        (name.parse().expect("name"), value.parse().expect("value"))
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_refusals_are_told_apart() {
        let none = HeaderMap::new();
        let pull = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
        for (counts, body, limit) in [
            (true, &pull[..], Limit::Pulls),
            (true, b"Too Many Requests", Limit::Requests),
            (
                true,
                b"you have reached your unauthenticated PULL RATE LIMIT",
                Limit::Pulls,
            ),
            (false, &pull[..], Limit::Requests),
        ] {
            assert_eq!(
                limit_of_refusal(counts, &none, body),
                limit,
                "{counts} {body:?}"
            );
        }
        let exhausted = headers(&[("ratelimit-remaining", "0;w=21600")]);
        assert_eq!(limit_of_refusal(true, &exhausted, b""), Limit::Pulls);
    }

    #[test]
    fn retry_after_is_read_in_its_three_forms() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
        for (name, value, seconds) in [
            ("retry-after", "17", Some(17)),
            ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
            ("retry-after", "Tue, 06 Nov 1984 08:49:37 GMT", Some(0)),
            ("x-retry-after", "784111777", Some(30)),
            ("x-retry-after", "18446744073709551615", None),
            ("retry-after", "soon", None),
        ] {
            let found = retry_after(&headers(&[(name, value)]), now);
            assert_eq!(found, seconds.map(Duration::from_secs), "{name}: {value}");
        }
    }
}
