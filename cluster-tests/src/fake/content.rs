//! What a fake has: repositories with blobs, manifests, tags and referrers.

use std::collections::BTreeMap;
use std::io::Read as _;

use bytes::Bytes;
use millrace_protocol::oci::{Algorithm, Digest};
use serde_json::json;

use crate::image::Noise;

/// Media type of an OCI image manifest.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Returns the sha256 digest of `content`.
pub fn sha256(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

/// Returns `size` bytes that look random and are the same for the same `seed`.
pub fn noise(seed: u64, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    Noise::new(seed)
        .read_exact(&mut bytes)
        .expect("noise has no end");
    bytes.into()
}

/// An image of one platform.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// The manifest.
    pub manifest_bytes: Bytes,
    /// Digest of the configuration blob.
    pub config: Digest,
    /// Digests of the layers.
    pub layers: Vec<Digest>,
}

#[derive(Debug, Default)]
struct Repository {
    blobs: BTreeMap<String, Bytes>,
    manifests: BTreeMap<String, (String, Bytes)>,
    tags: BTreeMap<String, String>,
    referrers: BTreeMap<String, Bytes>,
}

/// All repositories.
#[derive(Debug, Default)]
pub(super) struct Content {
    repositories: BTreeMap<String, Repository>,
}

impl Content {
    fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub(super) fn add_blob(&mut self, repository: &str, content: Bytes) -> Digest {
        let digest = sha256(&content);
        self.add_blob_as(repository, &digest, content);
        digest
    }

    pub(super) fn add_blob_as(&mut self, repository: &str, digest: &Digest, content: Bytes) {
        let blobs = &mut self.repository(repository).blobs;
        blobs.insert(digest.to_string(), content);
    }

    pub(super) fn remove_blob(&mut self, repository: &str, digest: &Digest) {
        let blobs = &mut self.repository(repository).blobs;
        blobs.remove(&digest.to_string());
    }

    pub(super) fn add_manifest(
        &mut self,
        repository: &str,
        media_type: &str,
        content: Bytes,
    ) -> Digest {
        let digest = sha256(&content);
        let manifests = &mut self.repository(repository).manifests;
        manifests.insert(digest.to_string(), (media_type.to_owned(), content));
        digest
    }

    pub(super) fn set_tag(&mut self, repository: &str, tag: &str, digest: &Digest) {
        let tags = &mut self.repository(repository).tags;
        tags.insert(tag.to_owned(), digest.to_string());
    }

    pub(super) fn remove_tag(&mut self, repository: &str, tag: &str) {
        self.repository(repository).tags.remove(tag);
    }

    pub(super) fn set_referrers(&mut self, repository: &str, subject: &Digest, index: Bytes) {
        let referrers = &mut self.repository(repository).referrers;
        referrers.insert(subject.to_string(), index);
    }

    pub(super) fn add_image(&mut self, repository: &str, tag: &str, layers: &[Bytes]) -> Image {
        let config_bytes = json!({"architecture": "amd64", "os": "linux", "config": {"Labels": {"tag": tag}},
            "rootfs": {"type": "layers", "diff_ids": []}});
        let config_bytes = Bytes::from(config_bytes.to_string());
        let config = self.add_blob(repository, config_bytes.clone());
        let descriptor = |media_type: &str, digest: &Digest, size: usize| json!({"mediaType": media_type, "digest": digest.to_string(), "size": size});
        let mut digests = Vec::new();
        let mut descriptors = Vec::new();
        for layer in layers {
            let digest = self.add_blob(repository, layer.clone());
            descriptors.push(descriptor(
                "application/vnd.oci.image.layer.v1.tar",
                &digest,
                layer.len(),
            ));
            digests.push(digest);
        }
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config, config_bytes.len()),
            "layers": descriptors});
        let manifest_bytes = Bytes::from(manifest.to_string());
        let manifest = self.add_manifest(repository, MANIFEST, manifest_bytes.clone());
        self.set_tag(repository, tag, &manifest);
        Image {
            manifest,
            manifest_bytes,
            config,
            layers: digests,
        }
    }

    pub(super) fn has_repository(&self, name: &str) -> bool {
        self.repositories.contains_key(name)
    }

    pub(super) fn blob(&self, repository: &str, digest: &str) -> Option<Bytes> {
        self.repositories
            .get(repository)?
            .blobs
            .get(digest)
            .cloned()
    }

    /// Returns digest, media type and bytes of a manifest by tag or digest.
    pub(super) fn manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Option<(String, String, Bytes)> {
        let repository = self.repositories.get(repository)?;
        let digest = repository
            .tags
            .get(reference)
            .map_or(reference, String::as_str);
        let (media_type, content) = repository.manifests.get(digest)?;
        Some((digest.to_owned(), media_type.clone(), content.clone()))
    }

    /// Returns the tags of a repository in order.
    pub(super) fn tags(&self, repository: &str) -> Option<Vec<String>> {
        let repository = self.repositories.get(repository)?;
        Some(repository.tags.keys().cloned().collect())
    }

    pub(super) fn referrers(&self, repository: &str, subject: &str) -> Option<Bytes> {
        let repository = self.repositories.get(repository)?;
        repository.referrers.get(subject).cloned()
    }
}
