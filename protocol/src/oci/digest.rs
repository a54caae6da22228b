//! Content digests: parsing, printing and computing them.
//!
//! Only registered algorithms are accepted (sha256 and sha512), so a [`Digest`] can always be
//! computed and its text is always safe as a file name. Comparing digests is comparing bytes.
//! Source: OCI Image Spec, `descriptor.md`, "Digests".

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// Length of the longest supported hash, sha512, in bytes.
const MAX_HASH_BYTES: usize = 64;

/// A hash algorithm that digests may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// `sha256`, which every registry uses.
    Sha256,
    /// `sha512`, registered by the OCI specification and rare in practice.
    Sha512,
}

impl Algorithm {
    /// All supported algorithms.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Returns the name as it stands before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Returns the length of the hash in bytes.
    pub fn hash_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Starts to compute a digest of this algorithm.
    pub fn hasher(self) -> Hasher {
        match self {
            Self::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Self::Sha512 => Hasher::Sha512(Box::new(sha2::Sha512::new())),
        }
    }
}

/// The digest of some content: an algorithm and a hash of its length.
///
/// Ordered by algorithm, then by hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hash: [u8; MAX_HASH_BYTES],
}

impl Digest {
    /// Computes the digest of `content`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = algorithm.hasher();
        hasher.update(content);
        hasher.finish()
    }

    /// Returns the algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the hash: 32 bytes for sha256, 64 for sha512.
    pub fn hash(&self) -> &[u8] {
        &self.hash[..self.algorithm.hash_bytes()]
    }

    /// Returns the hash in lower-case hexadecimal, as it stands behind the colon.
    pub fn hex(&self) -> String {
        hex::encode(self.hash())
    }

    /// Makes the digest with this hash, which has the algorithm's length.
    pub(crate) fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        let mut padded = [0; MAX_HASH_BYTES];
        padded[..hash.len()].copy_from_slice(hash);
        Self {
            algorithm,
            hash: padded,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    /// Parses `algorithm:hex`.
    ///
    /// # Errors
    /// [`InvalidDigest`] for an unknown algorithm, a wrong length, or a digit that is not
    /// lower-case hexadecimal.
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (name, encoded) = text.split_once(':').ok_or(InvalidDigest::Malformed)?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or(InvalidDigest::UnknownAlgorithm)?;
        let lower_case = !encoded.bytes().any(|byte| byte.is_ascii_uppercase());
        let mut hash = [0; MAX_HASH_BYTES];
        let hash = &mut hash[..algorithm.hash_bytes()];
        if !lower_case || hex::decode_to_slice(encoded, hash).is_err() {
            return Err(InvalidDigest::Malformed);
        }
        Ok(Self::from_hash(algorithm, hash))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Why a text is not a digest that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidDigest {
    /// The algorithm is not one that this build computes.
    #[error("unknown digest algorithm, expected sha256 or sha512")]
    UnknownAlgorithm,
    /// The text is not `algorithm:lower-case-hex` of the algorithm's length.
    #[error("malformed digest, expected algorithm:hex")]
    Malformed,
}

/// A digest in the making: feed it content in order, then finish it.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// Computes a sha256 digest.
    Sha256(sha2::Sha256),
    /// Computes a sha512 digest; boxed because its state is twice as large and rarely used.
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// Adds the next bytes of the content.
    pub fn update(&mut self, content: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(content),
            Self::Sha512(hasher) => hasher.update(content),
        }
    }

    /// Returns the digest of everything that was added.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::from_hash(Algorithm::Sha256, &hasher.finalize()),
            Self::Sha512(hasher) => Digest::from_hash(Algorithm::Sha512, &hasher.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY_SHA256: &str =
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn prints_what_it_parsed() {
        let digest: Digest = EMPTY_SHA256.parse().expect("valid digest");
        assert_eq!(digest.to_string(), EMPTY_SHA256);
        assert_eq!(digest.algorithm(), Algorithm::Sha256);
        assert_eq!(digest.hash().len(), 32);
    }

    #[test]
    fn computes_known_digests() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), EMPTY_SHA256);
        assert!(
            Digest::of(Algorithm::Sha512, b"abc")
                .to_string()
                .starts_with("sha512:ddaf35a193617abacc417349ae204131")
        );
    }

    #[test]
    fn content_in_pieces_has_the_digest_of_the_whole() {
        let mut hasher = Algorithm::Sha512.hasher();
        hasher.update(b"mill");
        hasher.update(b"race");
        assert_eq!(hasher.finish(), Digest::of(Algorithm::Sha512, b"millrace"));
    }

    #[test]
    fn refuses_what_no_registry_may_send() {
        for (text, error) in [
            ("sha256:totallywrong", InvalidDigest::Malformed),
            ("sha256", InvalidDigest::Malformed),
            (
                "md5:d41d8cd98f00b204e9800998ecf8427e",
                InvalidDigest::UnknownAlgorithm,
            ),
            (
                &EMPTY_SHA256.to_uppercase(),
                InvalidDigest::UnknownAlgorithm,
            ),
            (&EMPTY_SHA256.replace("b0", "B0"), InvalidDigest::Malformed),
            (&format!("{EMPTY_SHA256}00"), InvalidDigest::Malformed),
            ("sha256:../../../../etc/passwd", InvalidDigest::Malformed),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }
}
