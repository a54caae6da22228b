//! Files that cannot be read any more: they are dropped, so that their content is fetched again.
//!
//! What this node lacks for a while, such as descriptors or memory, says nothing about a file and
//! is no reason to drop it. Wrong bytes are found by others: this is about what the system says.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use millrace_protocol::oci::Digest;
use rustix::io::Errno;

use super::error::{FileContext, StoreError};
use super::{Inner, blocking, log_failure};

/// Whether this node lacks something for a while, so that nothing is known about the file.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::INTR)
    )
}

/// Whether there is a file at `path`; what cannot be examined is none.
///
/// # Errors
/// This node lacks what it takes to look.
pub(super) fn exists(path: &Path) -> Result<bool, StoreError> {
    match path.try_exists() {
        Err(error) if !is_shortage(&error) => Ok(false),
        result => result.doing("examine", path),
    }
}

impl Inner {
    /// Drops a file that cannot be used, so that its content is absent from now on; blocks.
    ///
    /// # Errors
    /// The cause is this node and not the file, which stays.
    pub(super) fn drop_unreadable(
        &self,
        digest: &Digest,
        action: &'static str,
        error: io::Error,
    ) -> Result<(), StoreError> {
        if is_shortage(&error) {
            return Err(error).doing(action, &self.layout.blob(digest));
        }
        tracing::error!(
            blob.digest = %digest, %error,
            "cannot {action} a stored file; it is dropped and fetched again when somebody asks"
        );
        log_failure(self.remove_blob(digest), "remove a file that is of no use");
        Ok(())
    }

    /// Whether `file` is the one that content is read from now.
    fn is_current(&self, digest: &Digest, file: &File) -> bool {
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
    /// Drops the file that could not be read, unless another has taken its place.
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
        // For want of something else: whoever reads is told, and the file stays.
        let _ = dropped.await;
    }
}
