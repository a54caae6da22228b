//! Where the store lies and how large it may grow.

use std::path::{Path, PathBuf};

/// Settings of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The data folder. It must lie on one file system, because parts are renamed into place.
    pub root: PathBuf,
    /// Most bytes that blobs and parts may take; `None`: half of what is free at the first start.
    ///
    /// Too small: content is evicted before it is used again. Too large: `min_free` is what
    /// bounds it.
    pub max_size: Option<u64>,
    /// Free bytes that the file system keeps; `None`: one twentieth of it.
    ///
    /// Too small: other programs on this disk run out of space.
    pub min_free: Option<u64>,
}

impl Config {
    /// Takes the default bounds for a data folder.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            max_size: None,
            min_free: None,
        }
    }
}
