//! Files that cannot be read: what is damaged is dropped, so that its content is fetched again.
//!
//! What this node lacks for a while, such as descriptors or memory, says nothing about a file, and
//! neither does a refusal, such as missing rights: those files stay. What is refused counts as
//! absent all the same, because who asks for content is not to suffer from a mistake with rights.
//! Wrong bytes are found by others: this is about what the system says, and about lengths.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use millrace_protocol::oci::Digest;
use rustix::io::Errno;

use super::error::{FileContext, StoreError};
use super::{Inner, blocking, log_failure};

/// What an error says of a stored file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// It is of no use any more.
    Damage,
    /// Nothing: this node lacks something for a while.
    Shortage,
    /// Nothing: the system does not let this node have it.
    Refusal,
}

impl Finding {
    fn of(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::INTR) => {
                Self::Shortage
            }
            // The disk cannot read it, the file system finds its own data damaged, or something else
            // is in its place.
            Some(
                Errno::IO
                | Errno::NXIO
                | Errno::NODATA
                | Errno::REMOTEIO
                | Errno::ILSEQ
                | Errno::BADMSG
                | Errno::UCLEAN
                | Errno::ISDIR
                | Errno::NOTDIR
                | Errno::LOOP,
            ) => Self::Damage,
            Some(_) => Self::Refusal,
            None => match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::InvalidData
                | io::ErrorKind::IsADirectory => Self::Damage,
                _ => Self::Refusal,
            },
        }
    }
}

/// Whether an error says that a file is of no use any more.
pub(super) fn is_damage(error: &io::Error) -> bool {
    Finding::of(error) == Finding::Damage
}

/// Whether an error says that this node lacks something for a while.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    Finding::of(error) == Finding::Shortage
}

/// Whether there is a file at `path`; what cannot be examined is none.
///
/// # Errors
/// This node lacks what it takes to look.
pub(super) fn exists(path: &Path) -> Result<bool, StoreError> {
    match fs::metadata(path) {
        Err(error) if !is_shortage(&error) => Ok(false),
        result => Ok(result.doing("examine", path)?.is_file()),
    }
}

impl Inner {
    /// Drops a file that is of no use, so that its content is absent from now on; blocks. One that
    /// is refused stays and is absent for who asks now.
    ///
    /// # Errors
    /// This node lacks something; nothing is known about the file, which stays.
    pub(super) fn drop_unreadable(
        &self,
        digest: &Digest,
        action: &'static str,
        error: io::Error,
    ) -> Result<(), StoreError> {
        let path = self.layout.blob(digest);
        match Finding::of(&error) {
            Finding::Shortage => return Err(error).doing(action, &path),
            Finding::Refusal if self.refusals.is_due() => tracing::error!(
                path = %path.display(), %error,
                "cannot {action} a stored file; it stays, and its content is fetched as if it were \
                 absent: are the data folder and what is in it this user's?"
            ),
            Finding::Refusal => {}
            Finding::Damage => {
                tracing::error!(
                    blob.digest = %digest, %error,
                    "cannot {action} a stored file; it is dropped and fetched again when somebody asks"
                );
                log_failure(self.remove_blob(digest), "remove a file that is of no use");
            }
        }
        Ok(())
    }

    /// Whether `file` is the one that content is read from now.
    pub(super) fn is_current(&self, digest: &Digest, file: &File) -> bool {
        let current = fs::symlink_metadata(self.layout.blob(digest));
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        match (current.map(identity), file.metadata().map(identity)) {
            (Ok(current), Ok(read)) => current == read,
            _ => false,
        }
    }
}

/// The content that a file was opened for.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) inner: Arc<Inner>,
    pub(super) digest: Digest,
}

impl Kept {
    /// Drops the file that could not be read if it is damaged and no other has taken its place.
    ///
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub(super) async fn failed(&self, file: &Arc<File>, error: &io::Error) {
        let (inner, digest) = (Arc::clone(&self.inner), self.digest);
        let file = Arc::clone(file);
        let error = match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => error.kind().into(),
        };
        let dropped = blocking(move || {
            if inner.is_current(&digest, &file) {
                inner.drop_unreadable(&digest, "read", error)?;
            }
            Ok(())
        });
        // For want of something else the file stays; whoever reads is told of the error in any case.
        let _ = dropped.await;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use millrace_protocol::oci::Algorithm;
    use tempfile::TempDir;

    use super::*;
    use crate::store::{Config, Sidecar, Store};
    use crate::task::Tasks;

    async fn store() -> (Store, Digest, TempDir) {
        let folder = TempDir::new().expect("a folder");
        let config = Config {
            min_free: Some(0),
            max_size: Some(1 << 20),
            ..Config::new(folder.path())
        };
        let store = Store::open(&config, &Tasks::default()).await;
        let store = store.expect("opened");
        let bytes = Bytes::from_static(b"content");
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let stored = store.put_manifest(&digest, bytes, Sidecar::of(None, Vec::new()));
        stored.await.expect("stored");
        (store, digest, folder)
    }

    #[tokio::test]
    async fn only_damage_drops_a_file() {
        let (store, digest, _folder) = store().await;
        let inner = &store.inner;
        let path = inner.layout.blob(&digest);
        for refusal in [Errno::ACCESS, Errno::PERM, Errno::STALE, Errno::TIMEDOUT] {
            let absent = inner.drop_unreadable(&digest, "open", refusal.into());
            absent.expect("it counts as absent");
            assert!(path.is_file(), "{refusal}");
        }
        for shortage in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            let told = inner.drop_unreadable(&digest, "open", shortage.into());
            told.expect_err("nothing is known of the file");
            assert!(path.is_file(), "{shortage}");
        }
        let damage = inner.drop_unreadable(&digest, "read", Errno::IO.into());
        damage.expect("it is absent");
        assert!(!path.exists());
        assert_eq!(store.status().blobs, 0);
    }
}
