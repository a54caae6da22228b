//! Small files of this room beside the store: written whole or not at all, readable by this user.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Who may read the files of this room: the user that the node runs as.
const PRIVATE: u32 = 0o600;

/// Who may enter the folder of these files, where it is made here.
const PRIVATE_FOLDER: u32 = 0o700;

/// Permission bits that let others read, write or run a file.
const OTHERS: u32 = 0o077;

/// Makes a folder, and those above it, unless it is there.
///
/// # Errors
/// What the system said.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(PRIVATE_FOLDER).create(folder)
}

/// Replaces a file so that a crash leaves the old or the new content, never a mixture.
///
/// # Errors
/// What the system said; the file is then as it was.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let mut file = options.mode(PRIVATE).open(&temporary)?;
    // A file that a crash left behind keeps the mode it had.
    file.set_permissions(fs::Permissions::from_mode(PRIVATE))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads a file of at most `most` bytes, or returns `None` where there is none.
///
/// # Errors
/// What the system said, or `InvalidData` for a larger file.
pub(super) fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if metadata.len() > most {
        let message = format!("{} bytes, expected at most {most}", metadata.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    fs::read(path).map(Some)
}

/// Whether users other than the owner may do anything with a file.
///
/// # Errors
/// What the system said.
pub(super) fn is_open_to_others(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.permissions().mode() & OTHERS != 0)
}
