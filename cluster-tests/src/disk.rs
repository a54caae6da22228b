//! A small file system of its own, for nodes whose disk is full; needs the rights of root.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::condition::patience;
use crate::process::run;

/// A file system in memory; it is unmounted with the value.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one of a size as `mount` takes it: `32m`.
    ///
    /// # Errors
    /// When that is not allowed.
    pub async fn mount(size: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        run(command.arg(folder.path()), patience())
            .await
            .context("mounting a tmpfs as a small disk needs root")?;
        Ok(Self { folder })
    }

    /// Returns its folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns how many bytes are free for everybody.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn free(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(self.path()).context("looking at the small disk")?;
        Ok(stat.f_bavail * stat.f_frsize)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node that uses it may still be ending.
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path().display());
        }
    }
}
