//! buildah: pulls a base image and runs a command on it in a chroot.

use anyhow::{Result, ensure};

use super::containers::Home;
use super::mirror::Mirror;
use super::{Client, compare_platform, mounts, parse};
use crate::image::Image;

/// buildah with its own storage and a mirror for docker.io.
#[derive(Debug)]
pub struct Buildah {
    home: Home,
}

impl Buildah {
    /// Configures buildah to use `mirror` for docker.io.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn through(mirror: impl Into<Mirror>) -> Result<Self> {
        Ok(Self {
            home: Home::create("buildah", &mirror.into())?,
        })
    }

    /// Runs `arguments` in a working container made from `reference` and returns what it printed.
    ///
    /// # Errors
    /// When buildah or the program in the container fails.
    pub async fn execute(&self, reference: &str, arguments: &[&str]) -> Result<String> {
        let container = self.home.run(&["from", "--pull-never", reference]).await?;
        let mut line = vec!["run", "--isolation=chroot", container.trim(), "--"];
        line.extend(arguments);
        let printed = self.home.run(&line).await?;
        self.home.run(&["rm", container.trim()]).await?;
        Ok(printed)
    }
}

impl Client for Buildah {
    async fn pull(&self, reference: &str) -> Result<()> {
        self.home
            .run(&["pull", "--quiet", reference])
            .await
            .map(drop)
    }

    async fn compare(&self, reference: &str, original: &Image) -> Result<()> {
        let image = parse(
            &self
                .home
                .run(&["inspect", "--type=image", reference])
                .await?,
        )?;
        let expected = original.platform().manifest.digest.to_string();
        ensure!(
            image["FromImageDigest"] == expected.as_str(),
            "{} is not {expected}",
            image["FromImageDigest"]
        );
        compare_platform(
            &image["FromImageID"],
            &image["OCIv1"]["rootfs"]["diff_ids"],
            original.platform(),
        )
    }

    async fn forget(&self) -> Result<()> {
        self.home.run(&["rmi", "--all", "--force"]).await.map(drop)
    }
}

impl Drop for Buildah {
    fn drop(&mut self) {
        mounts::release(self.home.folder());
    }
}
