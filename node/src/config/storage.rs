//! Settings of the data folder: `storage`.

use std::path::PathBuf;

use serde::Deserialize;

/// Settings of where data lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageConfig {
    /// The data folder; made at the start if missing. Default: the folder that systemd prepared,
    /// else for root `/var/lib/millrace`, else the user's data folder.
    pub rootdirectory: PathBuf,
}

impl StorageConfig {
    /// Returns the defaults; `state_directory` is what systemd prepared, if it did.
    pub fn new(state_directory: Option<&str>) -> Self {
        // systemd separates several folders by colons.
        let prepared = state_directory
            .and_then(|folders| folders.split(':').next())
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from);
        Self {
            rootdirectory: prepared.unwrap_or_else(user_folder),
        }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self::new(None)
    }
}

fn user_folder() -> PathBuf {
    let user = (!rustix::process::geteuid().is_root()).then(dirs::data_dir);
    let user = user.flatten().map(|folder| folder.join("millrace"));
    user.unwrap_or_else(|| PathBuf::from("/var/lib/millrace"))
}

/// The section as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StorageSection {
    filesystem: FilesystemSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FilesystemSection {
    rootdirectory: Option<PathBuf>,
}

impl StorageSection {
    pub(super) fn rootdirectory(self) -> Option<PathBuf> {
        let folder = self.filesystem.rootdirectory;
        folder.filter(|folder| !folder.as_os_str().is_empty())
    }
}
