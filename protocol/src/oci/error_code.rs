//! The error codes of the registry API and the JSON body that carries them.
//!
//! Which error a situation deserves is decided by the registry room of the node; this is the
//! table it chooses from.
//! Source: OCI Distribution Spec v1.1.1, "Error Codes"; CLIENT-CONTRACT E4.

use serde::Serialize;

/// Media type of an error body: clients ignore the codes under any other.
pub const ERROR_MEDIA_TYPE: &str = "application/json";

/// What went wrong, in the words that clients branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The repository has no such blob.
    BlobUnknown,
    /// An upload was malformed.
    BlobUploadInvalid,
    /// There is no such upload; a pull-through cache never has one.
    BlobUploadUnknown,
    /// A digest is malformed or of an unknown algorithm.
    DigestInvalid,
    /// A manifest names a blob that the registry lacks.
    ManifestBlobUnknown,
    /// A manifest is malformed.
    ManifestInvalid,
    /// The repository has no such manifest.
    ManifestUnknown,
    /// A repository name breaks the grammar.
    NameInvalid,
    /// There is no such repository, or its upstream is not configured.
    NameUnknown,
    /// A length differs from what was sent.
    SizeInvalid,
    /// The client must say who it is.
    Unauthorized,
    /// The client may not do this.
    Denied,
    /// The operation does not exist here.
    Unsupported,
    /// The client asks too often.
    TooManyRequests,
    /// Nothing can answer right now. Not in the specification; a Docker code that clients know.
    Unavailable,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 15] = [
        Self::BlobUnknown,
        Self::BlobUploadInvalid,
        Self::BlobUploadUnknown,
        Self::DigestInvalid,
        Self::ManifestBlobUnknown,
        Self::ManifestInvalid,
        Self::ManifestUnknown,
        Self::NameInvalid,
        Self::NameUnknown,
        Self::SizeInvalid,
        Self::Unauthorized,
        Self::Denied,
        Self::Unsupported,
        Self::TooManyRequests,
        Self::Unavailable,
    ];

    /// Returns the code as it stands in the body, its usual HTTP status, and a text for people.
    const fn entry(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::BlobUnknown => ("BLOB_UNKNOWN", 404, "blob unknown to registry"),
            Self::BlobUploadInvalid => ("BLOB_UPLOAD_INVALID", 400, "blob upload invalid"),
            Self::BlobUploadUnknown => (
                "BLOB_UPLOAD_UNKNOWN",
                404,
                "blob upload unknown to registry",
            ),
            Self::DigestInvalid => (
                "DIGEST_INVALID",
                400,
                "digest is malformed or not supported",
            ),
            Self::ManifestBlobUnknown => (
                "MANIFEST_BLOB_UNKNOWN",
                404,
                "manifest names a blob unknown to registry",
            ),
            Self::ManifestInvalid => ("MANIFEST_INVALID", 400, "manifest invalid"),
            Self::ManifestUnknown => ("MANIFEST_UNKNOWN", 404, "manifest unknown to registry"),
            // Others say 400 here. 404 is the one status that sends every client on to its next
            // registry at once (CLIENT-CONTRACT section 5), whose grammar may be wider than ours.
            Self::NameInvalid => ("NAME_INVALID", 404, "invalid repository name"),
            Self::NameUnknown => ("NAME_UNKNOWN", 404, "repository name not known to registry"),
            Self::SizeInvalid => ("SIZE_INVALID", 400, "length does not match the content"),
            Self::Unauthorized => ("UNAUTHORIZED", 401, "authentication required"),
            Self::Denied => ("DENIED", 403, "access to the resource is denied"),
            Self::Unsupported => ("UNSUPPORTED", 405, "this registry is a read-only cache"),
            Self::TooManyRequests => ("TOOMANYREQUESTS", 429, "too many requests"),
            Self::Unavailable => ("UNAVAILABLE", 503, "content is not available right now"),
        }
    }

    /// Returns the code as it stands in the body: `BLOB_UNKNOWN`.
    pub const fn as_str(self) -> &'static str {
        self.entry().0
    }

    /// Returns the HTTP status that usually goes with the code.
    pub const fn status(self) -> u16 {
        self.entry().1
    }

    /// Returns a sentence for people.
    pub const fn message(self) -> &'static str {
        self.entry().2
    }

    /// Returns the JSON body for one error; `detail` says more about this case to people.
    pub fn body(self, detail: Option<&str>) -> Vec<u8> {
        let body = Body {
            errors: [Entry {
                code: self.as_str(),
                message: self.message(),
                detail,
            }],
        };
        serde_json::to_vec(&body).expect("plain strings always serialise")
    }
}

/// The body of an error answer.
#[derive(Serialize)]
struct Body<'a> {
    errors: [Entry<'a>; 1],
}

#[derive(Serialize)]
struct Entry<'a> {
    code: &'static str,
    message: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_what_clients_parse() {
        assert_eq!(
            ErrorCode::BlobUnknown.body(None),
            br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#
        );
        let body = ErrorCode::NameUnknown.body(Some("upstream \"x\" says 401\n"));
        let json: serde_json::Value = serde_json::from_slice(&body).expect("valid JSON");
        assert_eq!(json["errors"][0]["code"], "NAME_UNKNOWN");
        assert_eq!(json["errors"][0]["detail"], "upstream \"x\" says 401\n");
    }

    #[test]
    fn codes_are_distinct_and_statuses_are_errors() {
        let mut codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert!((400..600).contains(&code.status()), "{code:?}");
            assert!(!code.message().is_empty());
        }
    }
}
