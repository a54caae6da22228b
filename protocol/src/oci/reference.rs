//! Repository names, tags, and what a manifest is asked by.
//!
//! A [`RepositoryName`] here is the name *within* its upstream: `library/alpine`, never
//! `docker.io/library/alpine`. Which upstream a request names is decided by `route`.
//! Source: OCI Distribution Spec v1.1.1, "Pulling manifests".

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;

/// Longest repository name that is accepted, in bytes; the specification's recommendation for
/// name and host together.
const MAX_NAME_BYTES: usize = 255;

/// Longest tag that the specification allows, in bytes.
const MAX_TAG_BYTES: usize = 128;

/// A repository name within one upstream, such as `library/alpine`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RepositoryName(String);

impl RepositoryName {
    /// Returns the name as it stands in a URL; it needs no escaping.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidReference;

    /// Parses components of lower-case letters, digits and single separators, joined by `/`.
    ///
    /// # Errors
    /// [`InvalidReference::Name`] when the text breaks the grammar or is over 255 bytes.
    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if text.len() > MAX_NAME_BYTES || !text.split('/').all(is_name_component) {
            return Err(InvalidReference::Name);
        }
        Ok(Self(text.to_owned()))
    }
}

/// Whether `text` is `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_name_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alphanumeric(first)
        && alphanumeric(last)
        && bytes
            .split(alphanumeric)
            .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|&b| b == b'-'))
}

/// A tag: a name that may point to another manifest tomorrow.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Tag(String);

impl Tag {
    /// Returns the tag as it stands in a URL; it needs no escaping.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidReference;

    /// Parses `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
    ///
    /// # Errors
    /// [`InvalidReference::Tag`] when the text breaks the grammar.
    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let valid = text.len() <= MAX_TAG_BYTES
            && text.bytes().next().is_some_and(word)
            && text
                .bytes()
                .all(|byte| word(byte) || byte == b'.' || byte == b'-');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidReference::Tag)
        }
    }
}

/// What a manifest is asked by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A name that is resolved by the tag policy.
    Tag(Tag),
    /// The content itself.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = InvalidReference;

    /// Parses a digest if the text has a colon, else a tag.
    ///
    /// # Errors
    /// [`InvalidReference::Digest`] or [`InvalidReference::Tag`].
    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if text.contains(':') {
            let digest = text.parse().map_err(InvalidReference::Digest)?;
            Ok(Self::Digest(digest))
        } else {
            text.parse().map(Self::Tag)
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => fmt::Display::fmt(tag, f),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

/// Why a text is not a repository name, tag or reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidReference {
    /// The repository name breaks the grammar.
    #[error("invalid repository name")]
    Name,
    /// The tag breaks the grammar, so no manifest can have it.
    #[error("invalid tag")]
    Tag,
    /// The text has a colon but is no digest.
    #[error("invalid digest")]
    Digest(#[source] super::digest::InvalidDigest),
}

/// Text forms that are the same for the validated strings of this file.
macro_rules! validated_text {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    };
}

validated_text!(RepositoryName);
validated_text!(Tag);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_grammar() {
        for name in [
            "alpine",
            "library/alpine",
            "a.b_c__d-e---f/0",
            "blobs/manifests",
        ] {
            assert_eq!(
                name.parse::<RepositoryName>().map(|n| n.0),
                Ok(name.to_owned())
            );
        }
        let long = "a".repeat(256);
        for name in [
            "", "/", "a//b", "a/", "/a", "Alpine", "a..b", "a___b", "a-", "-a", "a/../b", "..",
            "a b", "a%2fb", &long,
        ] {
            assert_eq!(
                name.parse::<RepositoryName>(),
                Err(InvalidReference::Name),
                "{name}"
            );
        }
    }

    #[test]
    fn tags_follow_the_grammar() {
        let longest = "t".repeat(128);
        for tag in ["latest", "3.20", "_x", "sha256-abc.sig", "V1", &longest] {
            assert_eq!(tag.parse::<Tag>().map(|t| t.0), Ok(tag.to_owned()));
        }
        let long = "t".repeat(129);
        for tag in ["", ".INVALID_MANIFEST_NAME", "-x", "a/b", "a b", "ü", &long] {
            assert_eq!(tag.parse::<Tag>(), Err(InvalidReference::Tag), "{tag}");
        }
    }

    #[test]
    fn a_colon_makes_a_reference_a_digest() {
        let digest = Digest::of(super::super::Algorithm::Sha256, b"");
        assert_eq!(digest.to_string().parse(), Ok(Reference::Digest(digest)));
        assert!(matches!(
            "sha256:totallywrong".parse::<Reference>(),
            Err(InvalidReference::Digest(_))
        ));
        assert!(matches!("sha256-ab".parse(), Ok(Reference::Tag(_))));
    }
}
