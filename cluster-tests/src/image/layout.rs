//! An OCI image layout on disk: the folder format that skopeo pushes from.
//!
//! It stores bytes under their digest and knows nothing of what they mean.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use millrace_protocol::oci::{Algorithm, Digest, Hasher};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Content;

/// The name of the root in `index.json`: skopeo reads `oci:<folder>:<name>`.
pub(crate) const ROOT_NAME: &str = "root";

/// A layout in a temporary folder that ends with it.
#[derive(Debug)]
pub(super) struct Layout {
    folder: TempDir,
}

impl Layout {
    pub(super) fn create() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("millrace-image-")
            .tempdir()?;
        std::fs::create_dir_all(folder.path().join("blobs/sha256"))?;
        std::fs::write(
            folder.path().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        Ok(Self { folder })
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn path_of(&self, digest: &Digest) -> PathBuf {
        self.folder
            .path()
            .join("blobs")
            .join(digest.algorithm().name())
            .join(digest.hex())
    }

    pub(super) fn add(&self, media_type: &str, bytes: &[u8]) -> Result<Content> {
        self.add_streamed(media_type, |file| file.write_all(bytes))
    }

    pub(super) fn add_json(&self, media_type: &str, value: &Value) -> Result<Content> {
        self.add(media_type, &serde_json::to_vec(value)?)
    }

    /// Adds what `write` writes, without holding it in memory.
    pub(super) fn add_streamed(
        &self,
        media_type: &str,
        write: impl FnOnce(&mut HashedFile) -> io::Result<()>,
    ) -> Result<Content> {
        let unnamed = self.folder.path().join("unnamed");
        let file = BufWriter::new(File::create(&unnamed)?);
        let mut file = HashedFile {
            file,
            hasher: Algorithm::Sha256.hasher(),
            size: 0,
        };
        write(&mut file).context("writing a blob of a test image")?;
        let HashedFile {
            mut file,
            hasher,
            size,
        } = file;
        file.flush()?;
        let digest = hasher.finish();
        std::fs::rename(&unnamed, self.path_of(&digest))?;
        Ok(Content {
            digest,
            size,
            media_type: media_type.to_owned(),
        })
    }

    /// Writes `index.json`, which names `root`.
    pub(super) fn close(&self, root: &Content) -> Result<()> {
        let mut entry = root.descriptor();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": ROOT_NAME});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        Ok(std::fs::write(
            self.folder.path().join("index.json"),
            serde_json::to_vec(&index)?,
        )?)
    }
}

/// A file that is hashed while it is written.
pub(super) struct HashedFile {
    file: BufWriter<File>,
    hasher: Hasher,
    size: u64,
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
