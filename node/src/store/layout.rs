//! Where each file lies below the data folder, and how small files are replaced.
//!
//! ```text
//! lock                            held while a node runs
//! limits.json                     bounds chosen at the first start
//! blobs/sha256/ab/abcd…           content, under the digest of its bytes
//! blobs/sha256/ab/abcd….json      sidecar: what cannot be derived from the content
//! parts/sha256-abcd…              content that is not complete
//! parts/scratch-17                content that is whole in memory, on its way to its place
//! parts/sha256-abcd….json         which ranges of it are on disk, if it was suspended
//! index/                          sled; can be deleted at any time
//! ```
//!
//! Names are made of digests only, so nothing a client or upstream sends can leave the folder.
//! Content may be private, so what is made here lets no other user of the host in.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use millrace_protocol::oci::{Algorithm, Digest};

use super::error::{FileContext, StoreError};

/// Who may enter a folder that is made here: the user that the node runs as.
const PRIVATE: u32 = 0o700;

/// Permission bits of users who have nothing to do with the node.
const WORLD: u32 = 0o007;

/// Paths below one data folder.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Creates the folders that must exist, for this user alone; what exists keeps its rights.
    pub(super) fn create(root: &Path) -> Result<Self, StoreError> {
        if let Some(above) = root.parent() {
            fs::create_dir_all(above).doing("create", above)?;
        }
        let layout = Self {
            root: root.to_owned(),
        };
        for folder in [root, &layout.blobs(), &layout.parts()] {
            make_private(folder)?;
        }
        Ok(layout)
    }

    /// Whether every user of this host may enter the folder of the content.
    pub(super) fn is_open_to_all(&self) -> bool {
        let lets_in = |folder: &Path| {
            let metadata = fs::metadata(folder);
            metadata.is_ok_and(|metadata| metadata.permissions().mode() & WORLD != 0)
        };
        lets_in(&self.root) && lets_in(&self.blobs())
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn limits(&self) -> PathBuf {
        self.root.join("limits.json")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    pub(super) fn parts(&self) -> PathBuf {
        self.root.join("parts")
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.blobs();
        path.push(digest.algorithm().name());
        path.push(&hex[..2]);
        path.push(hex);
        path
    }

    /// Returns the folder of the blobs whose hash begins with `fan`.
    pub(super) fn fan(&self, algorithm: Algorithm, fan: u8) -> PathBuf {
        let mut path = self.blobs();
        path.push(algorithm.name());
        path.push(format!("{fan:02x}"));
        path
    }

    pub(super) fn sidecar(&self, digest: &Digest) -> PathBuf {
        self.blob(digest).with_extension("json")
    }

    pub(super) fn part(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm().name(), digest.hex());
        self.parts().join(name)
    }

    pub(super) fn scratch(&self, number: u64) -> PathBuf {
        self.parts().join(format!("scratch-{number}"))
    }

    pub(super) fn part_state(&self, digest: &Digest) -> PathBuf {
        self.part(digest).with_extension("json")
    }

    /// Calls `visit` with everything that has the name and the place of a blob, in no particular
    /// order. Stops early when `visit` returns false. A folder that cannot be listed is logged and
    /// passed over.
    pub(super) fn visit_blobs(&self, mut visit: impl FnMut(Digest, &fs::DirEntry) -> bool) {
        for algorithm in Algorithm::ALL {
            for fan in entries_if_any(&self.blobs().join(algorithm.name())) {
                for entry in entries_if_any(&fan.path()) {
                    let name = entry.file_name();
                    let text = format!("{}:{}", algorithm.name(), name.to_string_lossy());
                    let Ok(digest) = text.parse() else { continue };
                    if !visit(digest, &entry) {
                        return;
                    }
                }
            }
        }
    }
}

/// Makes a folder that only this user may enter; one that exists keeps its rights.
pub(super) fn make_private(folder: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(PRIVATE).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        result => result.doing("create", folder),
    }
}

/// Lists a folder.
pub(super) fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>, StoreError> {
    fs::read_dir(folder)
        .and_then(Iterator::collect)
        .doing("list", folder)
}

/// Lists a folder; nothing if it is none, or cannot be listed, which is logged.
fn entries_if_any(folder: &Path) -> Vec<fs::DirEntry> {
    let is_none = |error: &io::Error| {
        use io::ErrorKind::{NotADirectory, NotFound};
        matches!(error.kind(), NotADirectory | NotFound)
    };
    entries(folder).unwrap_or_else(|error| {
        if !matches!(&error, StoreError::File { source, .. } if is_none(source)) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "blobs are not counted");
        }
        Vec::new()
    })
}

/// Replaces a small file so that a crash leaves the old or the new content, never a mixture.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let folder = parent(path);
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary).doing("create", &temporary)?;
    file.write_all(content).doing("write", &temporary)?;
    file.sync_all().doing("flush", &temporary)?;
    put(&temporary, path)?;
    sync_folder(folder)
}

/// Makes renames and new names in `folder` survive a power failure.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .doing("flush", folder)
}

/// Renames a file, in place of another or of an empty folder.
///
/// # Errors
/// Also for a folder that is not empty: somebody else's, so it stays.
pub(super) fn put(file: &Path, target: &Path) -> Result<(), StoreError> {
    if target.is_dir() {
        remove(target)?;
    }
    fs::rename(file, target).doing("replace", target)
}

/// Removes a file, or an empty folder in its place; that it is gone already is success.
///
/// # Errors
/// As [`put`].
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.doing("remove", path),
    }
}

/// Returns the folder of a path made by [`Layout`].
pub(super) fn parent(path: &Path) -> &Path {
    path.parent()
        .expect("every path of the layout lies below the root")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        let metadata = fs::metadata(path).expect("it is there");
        metadata.permissions().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
    }

    #[test]
    fn what_is_made_lets_nobody_else_in() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let root = folder.path().join("above/data");
        let layout = Layout::create(&root).expect("created");
        for made in [&root, &layout.blobs(), &layout.parts()] {
            assert_eq!(mode(made), 0o700, "{}", made.display());
        }
        let (above, other) = (folder.path().join("above"), folder.path().join("other"));
        fs::create_dir(&other).expect("created");
        assert_eq!(mode(&above), mode(&other), "it is not only for this");
        assert!(!layout.is_open_to_all());
    }

    #[test]
    fn a_folder_that_exists_keeps_its_rights() {
        let folder = tempfile::tempdir().expect("temporary folder");
        set_mode(folder.path(), 0o755);
        let layout = Layout::create(folder.path()).expect("created");
        assert_eq!(mode(folder.path()), 0o755);
        assert_eq!(mode(&layout.blobs()), 0o700);
        assert!(!layout.is_open_to_all(), "content is in the closed one");
        set_mode(&layout.blobs(), 0o755);
        let layout = Layout::create(folder.path()).expect("opened again");
        assert_eq!(mode(&layout.blobs()), 0o755);
        assert!(layout.is_open_to_all());
    }
}
