//! skopeo: copies an image with all platforms into a folder, byte by byte.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use millrace_protocol::oci::{Algorithm, Digest};

use super::Client;
use super::containers::Home;
use super::mirror::Mirror;
use crate::image::Image;

/// The name of the copy in its OCI image layout.
const COPY: &str = "copy";

/// skopeo with a mirror for docker.io.
#[derive(Debug)]
pub struct Skopeo {
    home: Home,
}

impl Skopeo {
    /// Configures skopeo to use `mirror` for docker.io.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn through(mirror: impl Into<Mirror>) -> Result<Self> {
        Ok(Self {
            home: Home::create("skopeo", &mirror.into())?,
        })
    }

    /// Returns the tags of `repository`, which is asked without the mirror: skopeo never uses one
    /// for that, so name the node itself (`127.0.0.1:5000/docker.io/library/busybox`).
    ///
    /// # Errors
    /// When skopeo fails.
    pub async fn tags(&self, repository: &str) -> Result<Vec<String>> {
        let name = format!("docker://{repository}");
        let text = self
            .home
            .run(&["list-tags", "--tls-verify=false", &name])
            .await?;
        let tags = super::parse(&text)?["Tags"].take();
        serde_json::from_value(tags).with_context(|| format!("no tags in {text}"))
    }

    /// Returns the manifest that `reference` names, as it was served.
    ///
    /// # Errors
    /// When skopeo fails.
    pub async fn raw(&self, reference: &str) -> Result<String> {
        let name = format!("docker://{reference}");
        self.home.run(&["inspect", "--raw", &name]).await
    }

    fn copies(&self) -> PathBuf {
        self.home.folder().join("copies")
    }

    fn copy_of(&self, reference: &str) -> PathBuf {
        self.copies().join(reference.replace(['/', ':'], "_"))
    }
}

impl Client for Skopeo {
    async fn pull(&self, reference: &str) -> Result<()> {
        let source = format!("docker://{reference}");
        std::fs::create_dir_all(self.copies())?;
        let target = format!("oci:{}:{COPY}", self.copy_of(reference).display());
        self.home
            .run(&[
                "copy",
                "--quiet",
                "--all",
                "--preserve-digests",
                &source,
                &target,
            ])
            .await?;
        Ok(())
    }

    async fn compare(&self, reference: &str, original: &Image) -> Result<()> {
        let mut pulled = BTreeSet::new();
        for entry in std::fs::read_dir(self.copy_of(reference).join("blobs/sha256"))? {
            let path = entry?.path();
            let digest = Digest::of(Algorithm::Sha256, &std::fs::read(&path)?);
            ensure!(
                path.ends_with(digest.hex()),
                "{} holds {digest}",
                path.display()
            );
            pulled.insert(digest.to_string());
        }
        let contents = original.contents();
        let expected: BTreeSet<_> = contents
            .iter()
            .map(|content| content.digest.to_string())
            .collect();
        ensure!(pulled == expected, "copied {pulled:#?}, not {expected:#?}");
        Ok(())
    }

    async fn forget(&self) -> Result<()> {
        std::fs::remove_dir_all(self.copies()).context("removing the copies")
    }
}
