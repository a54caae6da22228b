//! One repository as a plain HTTP client sees it: pulls whole images and compares every byte.
//!
//! It needs no real client and so shows headers and bodies as they are.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::http::{Answer, End, Request};
use crate::image::{Content, Image};

/// A repository at a node or registry.
#[derive(Clone, Debug)]
pub struct Repository {
    address: SocketAddr,
    name: String,
}

impl Repository {
    /// Names the repository as it stands behind `/v2/`.
    pub fn at(address: SocketAddr, name: &str) -> Self {
        Self {
            address,
            name: name.to_owned(),
        }
    }

    /// Sends `GET /v2/<name>/<path>` and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// When there is no answer or its body ends early.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        let answer = Request::get(&format!("/v2/{}/{path}", self.name))
            .send(self.address)
            .await?;
        ensure!(answer.end == End::Complete, "{path} ended {:?}", answer.end);
        Ok(answer)
    }

    /// Pulls all platforms of `image` by `reference` and compares everything with the original.
    ///
    /// # Errors
    /// When something is missing or its bytes, digest, length or media type differ.
    pub async fn pull(&self, image: &Image, reference: &str) -> Result<()> {
        self.compare(&format!("manifests/{reference}"), image.root(), image)
            .await?;
        for platform in image.platforms() {
            let manifest = format!("manifests/{}", platform.manifest.digest);
            self.compare(&manifest, &platform.manifest, image).await?;
            let layers = platform.layers.iter().map(|layer| &layer.blob);
            for blob in std::iter::once(&platform.config).chain(layers) {
                // A registry does not know what a blob is to its manifest.
                let blob = Content {
                    media_type: "application/octet-stream".into(),
                    ..blob.clone()
                };
                self.compare(&format!("blobs/{}", blob.digest), &blob, image)
                    .await?;
            }
        }
        Ok(())
    }

    async fn compare(&self, path: &str, content: &Content, image: &Image) -> Result<()> {
        let answer = self.get(path).await?;
        ensure!(
            answer.status() == 200,
            "{path}: {} {:?}",
            answer.status(),
            answer.body
        );
        ensure!(
            answer.body == image.read(&content.digest)?,
            "{path} has other bytes"
        );
        let expected = [
            ("content-length", content.size.to_string()),
            ("docker-content-digest", content.digest.to_string()),
            ("content-type", content.media_type.clone()),
        ];
        for (name, value) in expected {
            ensure!(
                answer.header(name) == Some(&value),
                "{path}: {name} is not {value}: {:?}",
                answer.head
            );
        }
        ensure!(
            answer.header("content-encoding").is_none(),
            "{path} is encoded: {:?}",
            answer.head
        );
        Ok(())
    }
}
