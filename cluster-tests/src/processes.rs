//! Keeping a running process from starting others.
//!
//! By a control group of its own with a bound on processes and threads; needs root, as the daemons
//! do that tests start.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Where the controller of processes is: in a hierarchy of its own (version 1), or among all others.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];

/// A process that can start no other, and no thread either, until this value is dropped.
#[derive(Debug)]
pub struct Alone {
    process_id: u32,
    hierarchy: &'static Path,
    group: Option<TempDir>,
}

impl Alone {
    /// Lets a process start nothing more; what it runs goes on.
    ///
    /// # Errors
    /// When this is not root, or the system has no controller for it.
    pub fn keep(process_id: u32) -> Result<Self> {
        let mut present = HIERARCHIES.iter().map(Path::new);
        let hierarchy = present
            .find(|hierarchy| hierarchy.join("cgroup.procs").exists())
            .context("no control groups are mounted")?;
        let group = tempfile::Builder::new()
            .prefix("millrace-alone-")
            .tempdir_in(hierarchy)
            .context("making a control group needs root")?;
        let alone = Self {
            process_id,
            hierarchy,
            group: Some(group),
        };
        write(&alone.file("cgroup.procs"), &process_id.to_string())?;
        // Below what there is now, so that a thread that ends meanwhile makes no room.
        write(&alone.file("pids.max"), "0")
            .context("the controller of processes is not enabled")?;
        Ok(alone)
    }

    fn file(&self, name: &str) -> PathBuf {
        let group = self.group.as_ref().expect("taken by drop alone");
        group.path().join(name)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Only an empty group can be removed, as a folder: its files are not files.
        let back = self.hierarchy.join("cgroup.procs");
        let moved = write(&back, &self.process_id.to_string());
        let group = self.group.take().expect("taken by drop alone").keep();
        if let Err(error) = moved.and_then(|()| Ok(fs::remove_dir(&group)?)) {
            eprintln!("{} stays: {error:#}", group.display());
        }
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {text} to {}", file.display()))
}
