//! What a node keeps on its disk, as somebody sees it who reads the files themselves.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use millrace_protocol::oci::{Algorithm, Digest};

use super::Node;

impl Node {
    /// Reads every blob and manifest in the node's store, and returns the files whose bytes are not
    /// those of their name.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn damaged(&self) -> Result<Vec<PathBuf>> {
        let mut damaged = Vec::new();
        for fan in std::fs::read_dir(self.data().join("blobs/sha256"))? {
            for file in std::fs::read_dir(fan?.path())? {
                let path = file?.path();
                let name = path.file_name().and_then(|name| name.to_str());
                let name = name.context("names are digests")?;
                // Beside it lies what is known of it.
                if !name.contains('.') && is_damaged(&path) {
                    damaged.push(path);
                }
            }
        }
        Ok(damaged)
    }
}

/// Whether a file of a store is there and its bytes are not those of its name.
pub fn is_damaged(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let read = std::fs::read(path);
    read.is_ok_and(|bytes| Some(Digest::of(Algorithm::Sha256, &bytes).hex().as_str()) != name)
}
