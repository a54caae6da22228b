//! What can go wrong on this disk.

use std::io;
use std::path::{Path, PathBuf};

use millrace_protocol::oci::Digest;

use super::unreadable;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or folder it was done to.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing more can be evicted and the content still does not fit.
    #[error("no space for {needed_bytes} bytes")]
    NoSpace {
        /// What was to be stored.
        needed_bytes: u64,
    },
    /// The content alone is larger than the whole store may be.
    #[error("{size_bytes} bytes are more than the whole store may hold ({max_bytes})")]
    TooLarge {
        /// Size of the content.
        size_bytes: u64,
        /// The configured bound.
        max_bytes: u64,
    },
    /// The bytes of a part are not what its digest promises.
    #[error("content has digest {actual} instead of {expected}")]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What the bytes are.
        actual: Digest,
    },
    /// Another process has this data folder open.
    #[error("the data folder {} is in use by another millrace", root.display())]
    InUse {
        /// The data folder.
        root: PathBuf,
    },
    /// The index database refused an operation.
    #[error("cannot use the index in {}", path.display())]
    Index {
        /// Folder of the index.
        path: PathBuf,
        /// What sled said.
        source: sled::Error,
    },
}

impl StoreError {
    /// Whether the disk is too full for this content, now or for ever, so that it can only be
    /// relayed.
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoSpace { .. } | Self::TooLarge { .. } => true,
            Self::File { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
            ),
            _ => false,
        }
    }

    /// Whether this node lacks something for a while, such as descriptors.
    pub fn is_shortage(&self) -> bool {
        matches!(self, Self::File { source, .. } if unreadable::is_shortage(source))
    }
}

/// Adds what was being done, and to which file, to an I/O error.
pub(super) trait FileContext<T> {
    /// Names the action (a verb) and the path.
    fn doing(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> FileContext<T> for Result<T, E> {
    fn doing(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::File {
            action,
            path: path.to_owned(),
            source: error.into(),
        })
    }
}
