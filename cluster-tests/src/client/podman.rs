//! podman: pulls into its own storage and runs what it pulled.

use anyhow::Result;

use super::containers::Home;
use super::mirror::Mirror;
use super::{Client, compare_inspected, mounts};
use crate::image::Image;

/// podman with its own storage and a mirror for docker.io.
#[derive(Debug)]
pub struct Podman {
    home: Home,
}

impl Podman {
    /// Configures podman to use `mirror` for docker.io.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn through(mirror: impl Into<Mirror>) -> Result<Self> {
        Ok(Self {
            home: Home::create("podman", &mirror.into())?,
        })
    }

    /// Runs `arguments` in a container of `reference` and returns what it printed.
    ///
    /// runc and cgroupfs, because crun of Debian 12 refuses hosts with both cgroup versions; the
    /// limits are stated, because podman would raise them, which not every sandbox allows.
    ///
    /// # Errors
    /// When podman or the program in the container fails.
    pub async fn execute(&self, reference: &str, arguments: &[&str]) -> Result<String> {
        let options = [
            "--rm",
            "--network=none",
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1024:1024",
        ];
        let mut line = vec!["run"];
        line.extend(options.iter().chain([&reference]).chain(arguments));
        self.podman(&line).await
    }

    async fn podman(&self, arguments: &[&str]) -> Result<String> {
        let temporary = format!("--tmpdir={}", self.home.folder().join("tmp").display());
        let mut line = vec![
            temporary.as_str(),
            "--runtime=runc",
            "--cgroup-manager=cgroupfs",
        ];
        line.extend(arguments);
        self.home.run(&line).await
    }
}

impl Client for Podman {
    async fn pull(&self, reference: &str) -> Result<()> {
        self.podman(&["pull", "--quiet", reference]).await.map(drop)
    }

    async fn compare(&self, reference: &str, original: &Image) -> Result<()> {
        let inspected = self.podman(&["image", "inspect", reference]).await?;
        compare_inspected(&inspected, original)
    }

    async fn forget(&self) -> Result<()> {
        self.podman(&["image", "rm", "--all", "--force"])
            .await
            .map(drop)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        mounts::release(self.home.folder());
    }
}
