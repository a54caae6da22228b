//! Validators: a digest as an entity tag, and the request headers that name one.
//!
//! Content under a digest never changes, so the digest is the strong validator of blobs and of
//! manifests, also of a manifest that was asked for by tag.
//! Source: RFC 9110 sections 8.8.3, 13.1.2 and 13.1.5.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue, IF_NONE_MATCH, IF_RANGE};
use millrace_protocol::oci::Digest;

/// A digest in the two forms that headers have it in, sharing one allocation.
#[derive(Clone, Debug)]
pub(super) struct Validator {
    /// The digest in double quotes.
    quoted: Bytes,
}

impl Validator {
    pub(super) fn of(digest: &Digest) -> Self {
        let (name, hash) = (digest.algorithm().name(), digest.hash());
        let mut quoted = vec![0; name.len() + hash.len() * 2 + 3];
        let encoded = name.len() + 2;
        quoted[0] = b'"';
        quoted[1..=name.len()].copy_from_slice(name.as_bytes());
        quoted[encoded - 1] = b':';
        let end = quoted.len() - 1;
        hex::encode_to_slice(hash, &mut quoted[encoded..end]).expect("two digits for each byte");
        quoted[end] = b'"';
        Self {
            quoted: quoted.into(),
        }
    }

    /// Returns the value of `ETag`.
    pub(super) fn etag(&self) -> HeaderValue {
        HeaderValue::from_maybe_shared(self.quoted.clone()).expect("a digest is plain ASCII")
    }

    /// Returns the value of `Docker-Content-Digest`.
    pub(super) fn digest(&self) -> HeaderValue {
        let digest = self.quoted.slice(1..self.quoted.len() - 1);
        HeaderValue::from_maybe_shared(digest).expect("a digest is plain ASCII")
    }

    /// Whether the client says by `If-None-Match` that it has this already.
    pub(super) fn is_known_to_client(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(IF_NONE_MATCH)
            .iter()
            .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
            .map(|element| element.trim_ascii())
            .map(|tag| tag.strip_prefix(b"W/").unwrap_or(tag))
            .any(|tag| tag == b"*" || tag == self.quoted)
    }

    /// Whether a `Range` holds: there is no `If-Range`, or it names exactly this.
    pub(super) fn allows_range(&self, headers: &HeaderMap) -> bool {
        headers
            .get(IF_RANGE)
            .is_none_or(|value| value.as_bytes().trim_ascii() == self.quoted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_protocol::oci::Algorithm;

    fn validator() -> Validator {
        Validator::of(&Digest::of(Algorithm::Sha256, b""))
    }

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let value = HeaderValue::from_str(value).expect("a header value");
        let name = http::HeaderName::from_static(name);
        HeaderMap::from_iter([(name, value)])
    }

    #[test]
    fn the_two_forms_are_the_digest() {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"millrace");
            let validator = Validator::of(&digest);
            assert_eq!(validator.digest(), digest.to_string());
            assert_eq!(validator.etag(), format!("\"{digest}\""));
        }
    }

    #[test]
    fn if_none_match_is_a_list_of_weak_or_strong_tags() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        for (value, known) in [
            (format!("\"{digest}\""), true),
            (format!("W/\"{digest}\""), true),
            (format!("\"other\" , \"{digest}\""), true),
            ("*".to_owned(), true),
            (digest.to_string(), false),
            ("\"other\"".to_owned(), false),
        ] {
            let headers = headers("if-none-match", &value);
            assert_eq!(validator().is_known_to_client(&headers), known, "{value}");
        }
        assert!(!validator().is_known_to_client(&HeaderMap::new()));
    }

    #[test]
    fn if_range_must_name_exactly_this() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        for (value, allowed) in [
            (format!("\"{digest}\""), true),
            (format!("W/\"{digest}\""), false),
            ("Wed, 21 Oct 2015 07:28:00 GMT".to_owned(), false),
        ] {
            let headers = headers("if-range", &value);
            assert_eq!(validator().allows_range(&headers), allowed, "{value}");
        }
        assert!(validator().allows_range(&HeaderMap::new()));
    }
}
