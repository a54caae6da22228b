//! Verified content: reading it, and putting it in its place.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::oci::{Digest, MediaType};

use super::changes::Change;
use super::error::{FileContext, StoreError};
use super::eviction::Pin;
use super::index::BlobRecord;
use super::read::FileReader;
use super::sidecar::Sidecar;
use super::unreadable::Kept;
use super::{Inner, layout};

/// A blob that is open for reading; it is not evicted while this value lives.
#[derive(Debug)]
pub struct BlobFile {
    reader: FileReader,
    size: u64,
    _pin: Pin,
}

impl BlobFile {
    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the reader of its content.
    pub fn reader(&self) -> &FileReader {
        &self.reader
    }
}

/// A manifest as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    /// Its bytes, verified.
    pub bytes: Bytes,
    /// Its exact `Content-Type`.
    pub media_type: MediaType,
}

impl Inner {
    pub(super) fn open_blob(
        self: &Arc<Self>,
        digest: &Digest,
    ) -> Result<Option<BlobFile>, StoreError> {
        let pin = Pin::new(self, digest);
        let path = self.layout.blob(digest);
        let (file, size) = match open_file(&path) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                self.drop_unreadable(digest, "open", error)?;
                return Ok(None);
            }
        };
        if let Some(expected) = self.recorded_size(digest)
            && expected != size
            && self.is_current(digest, &file)
        {
            let error = format!("{size} bytes instead of {expected}");
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            self.drop_unreadable(digest, "use", error)?;
            return Ok(None);
        }
        self.touch(digest);
        let kept = Kept {
            inner: Arc::clone(self),
            digest: *digest,
        };
        let reader = FileReader::new(Arc::new(file), self.buffers.clone());
        Ok(Some(BlobFile {
            reader: reader.of_content(kept),
            size,
            _pin: pin,
        }))
    }

    /// Returns how long the file of a digest is, if the index knows it.
    fn recorded_size(&self, digest: &Digest) -> Option<u64> {
        let record = self.index.blob(digest).ok().flatten();
        record.map(|record| record.size)
    }

    pub(super) fn read_manifest(
        self: &Arc<Self>,
        digest: &Digest,
    ) -> Result<Option<StoredManifest>, StoreError> {
        let _pin = Pin::new(self, digest);
        let sidecar = Sidecar::read(&self.layout.sidecar(digest));
        let Some(media_type) = sidecar.and_then(|sidecar| sidecar.media_type) else {
            return Ok(None);
        };
        let path = self.layout.blob(digest);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                self.drop_unreadable(digest, "read", error)?;
                return Ok(None);
            }
            Ok(bytes) => bytes,
        };
        let actual = Digest::of(digest.algorithm(), &bytes);
        if actual != *digest {
            tracing::error!(blob.digest = %digest, %actual, "a manifest on disk is damaged; removed");
            self.remove_blob(digest)?;
            return Ok(None);
        }
        self.touch(digest);
        Ok(Some(StoredManifest {
            bytes: bytes.into(),
            media_type,
        }))
    }

    /// Moves a flushed, verified file to its place, from where it is not evicted while the result lives;
    /// blocks.
    pub(super) fn publish(
        self: &Arc<Self>,
        digest: &Digest,
        file: &Path,
        size: u64,
        sidecar: &Sidecar,
    ) -> Result<Pin, StoreError> {
        // Older content under this digest may be evicted, but not between the two files.
        let pin = Pin::new(self, digest);
        let target = self.layout.blob(digest);
        self.make_fan_folder(layout::parent(&target))?;
        {
            let _one_at_a_time = self.sidecars.lock();
            let path = self.layout.sidecar(digest);
            let mut merged = Sidecar::read(&path).unwrap_or_else(|| sidecar.clone());
            merged.merge(sidecar.clone());
            merged.write(&path)?;
        }
        layout::put(file, &target)?;
        self.announcer.announce(Change::Came(*digest));
        layout::sync_folder(layout::parent(&target))?;
        layout::remove(&self.layout.part_state(digest))?;
        self.index_repositories(sidecar)?;
        let accessed = self.uses.next();
        self.record(digest, BlobRecord { size, accessed })?;
        self.metrics.committed_blobs.inc();
        self.metrics.committed_bytes.inc_by(size);
        Ok(pin)
    }

    fn make_fan_folder(&self, folder: &Path) -> Result<(), StoreError> {
        if folder.is_dir() {
            return Ok(());
        }
        layout::remove(folder)?;
        fs::create_dir_all(folder).doing("create", folder)?;
        layout::sync_folder(layout::parent(folder))?;
        layout::sync_folder(&self.layout.blobs())
    }
}

/// Opens a file and returns its size in bytes.
fn open_file(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok((file, metadata.len()))
}
