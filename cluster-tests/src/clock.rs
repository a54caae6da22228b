//! A clock that tests set, for processes that are started with it; needs faketime.
//!
//! Only the clock that says what time it is: the one that measures intervals goes on, as nobody can
//! set it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::component;
use crate::condition::patience;
use crate::node::NodeBuilder;
use crate::process;

/// A clock of processes; clones are the same clock.
#[derive(Clone, Debug)]
pub struct Clock {
    folder: Arc<TempDir>,
    library: String,
}

impl Clock {
    /// Returns a clock that is right.
    ///
    /// # Errors
    /// When faketime is missing.
    pub async fn right() -> Result<Self> {
        let mut command = Command::new(component::find("faketime")?);
        command.args(["-f", "+0", "printenv", "LD_PRELOAD"]);
        let library = process::run(&command, patience()).await?;
        let clock = Self {
            folder: tempfile::tempdir()?.into(),
            library: library.trim().to_owned(),
        };
        clock.set(0)?;
        Ok(clock)
    }

    /// Gives a node this clock.
    pub fn on(&self, node: NodeBuilder) -> NodeBuilder {
        node.environment("LD_PRELOAD", &self.library)
            .environment("FAKETIME_TIMESTAMP_FILE", &self.file().to_string_lossy())
            .environment("FAKETIME_NO_CACHE", "1")
            .environment("DONT_FAKE_MONOTONIC", "1")
    }

    /// Sets the clock, in seconds relative to the right time.
    ///
    /// # Errors
    /// When the file that the processes watch cannot be written.
    pub fn set(&self, offset: i64) -> Result<()> {
        let fresh = self.folder.path().join("fresh");
        std::fs::write(&fresh, format!("{offset:+}\n")).context("writing the clock")?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o644))?;
        std::fs::rename(fresh, self.file()).context("setting the clock")
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }
}
