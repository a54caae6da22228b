//! The key that a node is known by: made at its first start, kept in the data folder.
//!
//! One ed25519 key proves the identity on both planes: noise on the control plane, the
//! certificate on the data plane. Its public half is the [`NodeId`]. Whoever copies the data
//! folder copies the identity; that two nodes use one is noticed by the membership, not here.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use libp2p::identity::{Keypair, ed25519};
use millrace_protocol::node_id::{NODE_ID_BYTES, NodeId};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::file;

/// Name of the key's file in the data folder.
const FILE_NAME: &str = "identity.key";

/// Bytes of an ed25519 seed.
const SEED_BYTES: usize = 32;

/// What stands before the seed in a PKCS#8 file. Source: RFC 8410, section 10.3.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A node's key and the folder it lives in.
#[derive(Clone)]
pub struct Identity {
    folder: PathBuf,
    seed: [u8; SEED_BYTES],
    id: NodeId,
}

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The key's file or its folder cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key's file may be read by others, who could pass for this node.
    #[error("{} may be read by other users: chmod 600 it, or remove it to get a new identity", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// The key's file is not one that a node wrote.
    #[error("{} is damaged: restore it, or remove it to get a new identity", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The system gives no random numbers.
    #[error("no random numbers for a new identity")]
    Random,
}

impl Identity {
    /// Reads the key in the data folder `folder`, or makes both.
    ///
    /// The folder is not to be used by two processes; the store's lock sees to that.
    ///
    /// # Errors
    /// [`IdentityError`]; a key that exists is never replaced.
    pub fn open(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join(FILE_NAME);
        let error = |action, source| IdentityError::File {
            action,
            path: path.clone(),
            source,
        };
        let most = SEED_BYTES as u64 * 4;
        let Some(content) = file::read(&path, most).map_err(|e| error("read", e))? else {
            file::make_folder(folder).map_err(|e| error("create the folder of", e))?;
            let seed = random_seed()?;
            let text = format!("{}\n", hex::encode(seed));
            file::replace(&path, text.as_bytes()).map_err(|e| error("write", e))?;
            return Self::of_seed(folder, seed);
        };
        if file::is_open_to_others(&path).map_err(|e| error("read", e))? {
            return Err(IdentityError::Exposed { path });
        }
        let mut seed = [0; SEED_BYTES];
        hex::decode_to_slice(content.trim_ascii(), &mut seed)
            .map_err(|_| IdentityError::Damaged { path: path.clone() })?;
        Self::of_seed(folder, seed)
    }

    fn of_seed(folder: &Path, seed: [u8; SEED_BYTES]) -> Result<Self, IdentityError> {
        let damaged = |_| IdentityError::Damaged {
            path: folder.join(FILE_NAME),
        };
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(damaged)?;
        let mut public = [0; NODE_ID_BYTES];
        public.copy_from_slice(pair.public_key().as_ref());
        Ok(Self {
            folder: folder.to_owned(),
            seed,
            id: NodeId::new(public),
        })
    }

    /// Returns the node's name.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Returns the key as the data plane's certificate is made from it.
    pub fn pkcs8(&self) -> PrivatePkcs8KeyDer<'static> {
        let mut der = Vec::with_capacity(PKCS8_PREFIX.len() + SEED_BYTES);
        der.extend_from_slice(&PKCS8_PREFIX);
        der.extend_from_slice(&self.seed);
        der.into()
    }

    /// Returns the key as the control plane uses it.
    pub fn keypair(&self) -> Keypair {
        let mut seed = self.seed;
        let secret = ed25519::SecretKey::try_from_bytes(&mut seed)
            .expect("any 32 bytes are an ed25519 seed");
        ed25519::Keypair::from(secret).into()
    }

    /// Returns the data folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn random_seed() -> Result<[u8; SEED_BYTES], IdentityError> {
    let mut seed = [0; SEED_BYTES];
    let filled = SystemRandom::new().fill(&mut seed);
    filled.map_err(|_| IdentityError::Random).map(|()| seed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_second_start_finds_the_same_key() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let data = folder.path().join("data");
        let first = Identity::open(&data).expect("made");
        let second = Identity::open(&data).expect("read");
        assert_eq!(first.id(), second.id());
        assert_eq!(first.pkcs8(), second.pkcs8());
        for (path, mode) in [(data.join(FILE_NAME), 0o600), (data, 0o700)] {
            let metadata = fs::metadata(path).expect("exists");
            assert_eq!(metadata.permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn both_planes_and_the_name_are_one_key() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let identity = Identity::open(folder.path()).expect("made");
        let control = identity.keypair().public();
        let control = control.try_into_ed25519().expect("ed25519").to_bytes();
        assert_eq!(&control, identity.id().as_bytes());
        let data = Ed25519KeyPair::from_pkcs8_maybe_unchecked(identity.pkcs8().secret_pkcs8_der());
        let data = data.expect("well-formed");
        assert_eq!(data.public_key().as_ref(), identity.id().as_bytes());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        Identity::open(folder.path()).expect("made");
        let path = folder.path().join(FILE_NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
        let refused = Identity::open(folder.path());
        assert!(matches!(refused, Err(IdentityError::Exposed { .. })));
    }

    #[test]
    fn a_damaged_key_is_refused_and_kept() {
        let folder = tempfile::tempdir().expect("temporary folder");
        Identity::open(folder.path()).expect("made");
        let path = folder.path().join(FILE_NAME);
        for content in ["", "abc", &"zz".repeat(32), &"ab".repeat(33)] {
            fs::write(&path, content).expect("written");
            let refused = Identity::open(folder.path());
            assert!(
                matches!(refused, Err(IdentityError::Damaged { .. })),
                "{content}"
            );
            assert_eq!(fs::read_to_string(&path).expect("kept"), content);
        }
    }

    #[test]
    fn what_is_printed_is_no_secret() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let identity = Identity::open(folder.path()).expect("made");
        let printed = format!("{identity:?}");
        assert!(!printed.contains(&hex::encode(identity.seed)), "{printed}");
        assert!(printed.contains(&identity.id().short()), "{printed}");
    }
}
