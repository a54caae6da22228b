//! The cluster's secret: who knows it may join.
//!
//! There may be several at a time, so that one can be replaced while nodes run: give all nodes the
//! new one beside the old, then take the old one away. Secrets are never printed.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;

use super::file;

/// Most secrets at a time: one that comes, one that goes, and two mistakes.
pub(super) const MAX_SECRETS: usize = 4;

/// Shortest secret, in characters: 128 bits in hexadecimal, so that nobody can guess it from the
/// proofs that he has seen.
const MIN_CHARACTERS: usize = 32;

/// Fewest different characters of a secret; `aaaa…` is long as well.
const MIN_DISTINCT: usize = 8;

/// Largest file of secrets.
const MAX_FILE_BYTES: u64 = 4096;

/// Bits of a secret that is made here, in bytes.
const FRESH_BYTES: usize = 32;

/// Permission bits of users who have nothing to do with the node.
const WORLD: u32 = 0o007;

/// Secrets as text, as they stand in the environment; prints as `***`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where the secrets come from.
#[derive(Clone, Debug)]
pub(super) enum SecretSource {
    /// A file, one secret a line, that is read anew while the node runs.
    File(PathBuf),
    /// The environment.
    Text(SecretText),
}

/// Why there is no usable secret. No variant holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Neither a file nor the environment has one.
    #[error(
        "the cluster needs a secret: set cluster.secret_file or MILLRACE_CLUSTER_SECRET; \
         `millrace secret` makes one"
    )]
    Unset,
    /// There is no such file.
    #[error("the secret file {} does not exist; `millrace secret` makes a secret for it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the secret file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Every user of the host may read the file.
    #[error("the secret file {} may be used by every user: chmod o= it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// There is no secret in it.
    #[error("there is no secret in {origin}")]
    Empty {
        /// The file or variable.
        origin: String,
    },
    /// A secret could be guessed.
    #[error(
        "secret {number} in {origin} is too short or too simple: at least {MIN_CHARACTERS} \
         characters; `millrace secret` makes one"
    )]
    Weak {
        /// The file or variable.
        origin: String,
        /// Which one, from 1.
        number: usize,
    },
    /// There are too many.
    #[error("{origin} has more than {MAX_SECRETS} secrets")]
    TooMany {
        /// The file or variable.
        origin: String,
    },
}

impl SecretSource {
    /// Reads the secrets.
    ///
    /// # Errors
    /// [`SecretError`].
    pub(super) fn read(&self) -> Result<Secrets, SecretError> {
        match self {
            Self::Text(text) => Secrets::parse(&text.0, "MILLRACE_CLUSTER_SECRET"),
            Self::File(path) => read_file(path),
        }
    }
}

fn read_file(path: &Path) -> Result<Secrets, SecretError> {
    let unreadable = |source| SecretError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let content = file::read(path, MAX_FILE_BYTES).map_err(unreadable)?;
    let content = content.ok_or_else(|| SecretError::Missing {
        path: path.to_owned(),
    })?;
    let mode = std::fs::metadata(path).map_err(unreadable)?.permissions();
    if mode.mode() & WORLD != 0 {
        let path = path.to_owned();
        return Err(SecretError::Exposed { path });
    }
    let text = String::from_utf8_lossy(&content);
    Secrets::parse(&text, &path.display().to_string())
}

/// One secret, ready to prove and to check.
#[derive(Clone)]
pub(super) struct Secret {
    pub(super) key: hmac::Key,
    /// Tells secrets apart without being one.
    pub(super) name: [u8; 32],
}

/// The secrets that admit, the preferred one first; at least one.
#[derive(Clone)]
pub(super) struct Secrets(Vec<Secret>);

impl Secrets {
    /// Parses words; lines that begin with `#` are comments.
    fn parse(text: &str, origin: &str) -> Result<Self, SecretError> {
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.starts_with('#'));
        let mut secrets = Vec::new();
        for (word, number) in lines.flat_map(str::split_whitespace).zip(1..) {
            if !is_strong(word) {
                let origin = origin.to_owned();
                return Err(SecretError::Weak { origin, number });
            }
            secrets.push(Secret::new(word));
        }
        let origin = origin.to_owned();
        match secrets.len() {
            0 => Err(SecretError::Empty { origin }),
            1..=MAX_SECRETS => Ok(Self(secrets)),
            _ => Err(SecretError::TooMany { origin }),
        }
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Secret> {
        self.0.iter()
    }

    /// Whether these are the same secrets in the same order.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let names = |secrets: &Self| secrets.iter().map(|secret| secret.name).collect::<Vec<_>>();
        names(self) == names(other)
    }

    /// Returns the names of all.
    pub(super) fn names(&self) -> BTreeSet<[u8; 32]> {
        self.iter().map(|secret| secret.name).collect()
    }
}

impl Secret {
    /// Takes a word whose strength was checked.
    pub(super) fn new(word: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, word.as_bytes());
        let tag = hmac::sign(&key, b"millrace: name of a secret");
        let mut name = [0; 32];
        name.copy_from_slice(tag.as_ref());
        Self { key, name }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

fn is_strong(word: &str) -> bool {
    let distinct: BTreeSet<char> = word.chars().collect();
    word.chars().count() >= MIN_CHARACTERS && distinct.len() >= MIN_DISTINCT
}

/// Makes a secret of 256 bits, as text without spaces.
///
/// # Errors
/// When the system gives no random numbers.
pub fn fresh_secret() -> Result<String, ring::error::Unspecified> {
    let mut bytes = [0; FRESH_BYTES];
    SystemRandom::new().fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn secret_file(content: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("secret");
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
        (folder, path)
    }

    fn read(content: &str, mode: u32) -> Result<Secrets, SecretError> {
        let (_folder, path) = secret_file(content, mode);
        SecretSource::File(path).read()
    }

    #[test]
    fn a_fresh_secret_is_accepted_and_never_the_same() {
        let (one, two) = (fresh_secret(), fresh_secret());
        let (one, two) = (one.expect("random"), two.expect("random"));
        assert_ne!(one, two);
        let secrets = read(&format!("# new\n{one}\n\n{two}\n"), 0o600).expect("read");
        assert_eq!(secrets.iter().len(), 2);
        read(&one, 0o440).expect("a group may be let in");
    }

    #[test]
    fn unusable_files_are_refused_by_name() {
        let strong = fresh_secret().expect("random");
        let missing = SecretSource::File("/nowhere/secret".into()).read();
        assert!(matches!(missing, Err(SecretError::Missing { .. })));
        assert!(matches!(read("", 0o600), Err(SecretError::Empty { .. })));
        assert!(matches!(
            read("# x\n", 0o600),
            Err(SecretError::Empty { .. })
        ));
        for weak in ["hunter2", &"ab".repeat(32)] {
            let text = format!("{strong}\n{weak}");
            let refused = read(&text, 0o600);
            assert!(
                matches!(refused, Err(SecretError::Weak { number: 2, .. })),
                "{weak}"
            );
        }
        let exposed = read(&strong, 0o644);
        assert!(matches!(exposed, Err(SecretError::Exposed { .. })));
        let many = format!("{strong}\n").repeat(5);
        assert!(matches!(
            read(&many, 0o600),
            Err(SecretError::TooMany { .. })
        ));
        let large = "x".repeat(5000);
        assert!(matches!(
            read(&large, 0o600),
            Err(SecretError::Unreadable { .. })
        ));
    }

    #[test]
    fn nothing_prints_a_secret() {
        let text = "0123456789abcdef0123456789abcdef";
        let source = SecretSource::Text(SecretText::new(text));
        let secrets = source.read().expect("strong");
        assert!(!format!("{source:?} {secrets:?}").contains("0123"));
        let weak = SecretSource::Text(SecretText::new("hunter2")).read();
        let error = weak.expect_err("short").to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
