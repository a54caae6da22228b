//! A name and a password out of `Authorization: Basic`.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Longest header value that is looked at, in bytes. A password counts up to 72 bytes, and what is
/// sent here by mistake for another registry, tokens among it, is wrong anyway.
const MAX_HEADER_BYTES: usize = 4096;

/// What a client sent; not verified, and never printed.
pub(super) struct Basic {
    pair: String,
    colon: usize,
}

impl Basic {
    /// Reads the header; `None` without a usable one.
    ///
    /// A client of the podman family that has no credentials sends an empty name and password.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(AUTHORIZATION)?.as_bytes();
        let (scheme, encoded) = value.split_at_checked(6)?;
        if !scheme.eq_ignore_ascii_case(b"basic ") || value.len() > MAX_HEADER_BYTES {
            return None;
        }
        let pair = BASE64_STANDARD.decode(encoded.trim_ascii()).ok()?;
        let pair = String::from_utf8(pair).ok()?;
        let colon = pair.find(':')?;
        let usable = colon > 0 && !pair.contains('\0');
        usable.then_some(Self { pair, colon })
    }

    pub(super) fn user(&self) -> &str {
        &self.pair[..self.colon]
    }

    pub(super) fn password(&self) -> &str {
        &self.pair[self.colon + 1..]
    }
}

impl fmt::Debug for Basic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Basic(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(value: &str) -> Option<(String, String)> {
        let value = HeaderValue::from_str(value).expect("a header value");
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
        let basic = Basic::of(&headers)?;
        Some((basic.user().to_owned(), basic.password().to_owned()))
    }

    #[test]
    fn a_pair_is_read_up_to_its_first_colon() {
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(of("Basic YWxpY2U6YTpi"), pair("alice", "a:b"));
        assert_eq!(of("basic  YWxpY2U6"), pair("alice", ""));
    }

    #[test]
    fn what_is_no_pair_counts_as_nothing() {
        let long = format!(
            "Basic {}",
            BASE64_STANDARD.encode(format!("a:{}", "x".repeat(8192)))
        );
        for value in [
            "",
            "Basic",
            "Basic ",
            "Basic Og==",
            "Basic %%%",
            "Bearer YWxpY2U6YTpi",
            "Basic YWxpY2U=",
            "Basic gICAgA==",
            "Basic YToA",
            &long,
        ] {
            assert_eq!(of(value), None, "{value}");
        }
    }
}
