//! What a manifest refers to.
//!
//! A manifest is any JSON object that an upstream serves as one: images, indexes, Helm charts,
//! build caches, signatures. Only the members that name other content are read, and unknown
//! kinds are as good as known ones. The bytes themselves are kept elsewhere, untouched.
//! Source: OCI Image Spec, `manifest.md` and `image-index.md`; CLIENT-CONTRACT section 9.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::descriptor::Descriptor;

/// Largest manifest that is accepted, in bytes.
///
/// The specification asks for at least 4 MiB; containerd reads at most that, others more.
pub const MAX_MANIFEST_BYTES: usize = 8 * 1024 * 1024;

/// A media type exactly as it was received, such as `application/vnd.oci.image.index.v1+json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MediaType(String);

impl MediaType {
    /// Every manifest type that is asked of an upstream, most wanted first.
    pub const MANIFESTS: [&'static str; 4] = [
        Self::OCI_INDEX,
        Self::OCI_MANIFEST,
        Self::DOCKER_LIST,
        Self::DOCKER_MANIFEST,
    ];

    /// OCI image index.
    pub const OCI_INDEX: &'static str = "application/vnd.oci.image.index.v1+json";
    /// OCI image manifest.
    pub const OCI_MANIFEST: &'static str = "application/vnd.oci.image.manifest.v1+json";
    /// Docker manifest list, schema 2.
    pub const DOCKER_LIST: &'static str =
        "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker image manifest, schema 2.
    pub const DOCKER_MANIFEST: &'static str =
        "application/vnd.docker.distribution.manifest.v2+json";

    /// Takes a header's value as it is, without surrounding space.
    pub fn new(text: impl Into<String>) -> Self {
        let text: String = text.into();
        Self(text.trim().to_owned())
    }

    /// Returns the text, parameters included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the old schema 1, whose digest leaves out the signatures and so does not
    /// match the bytes.
    pub fn is_schema1(&self) -> bool {
        self.0
            .starts_with("application/vnd.docker.distribution.manifest.v1")
    }

    /// Whether content of this type is itself a manifest.
    pub fn is_manifest(&self) -> bool {
        Self::MANIFESTS.contains(&self.0.as_str())
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The content that a manifest names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// The type that the manifest states of itself, if it does.
    #[serde(rename = "mediaType", default)]
    pub media_type: Option<MediaType>,
    /// Configuration of an image; absent in an index.
    #[serde(default)]
    pub config: Option<Descriptor>,
    /// Layers of an image in order; empty in an index.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// Content of an early OCI artifact manifest.
    #[serde(default)]
    pub blobs: Vec<Descriptor>,
    /// Children of an index, in order; empty in an image.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

impl Manifest {
    /// Reads the bytes of a manifest.
    ///
    /// # Errors
    /// [`InvalidManifest::TooLarge`] over [`MAX_MANIFEST_BYTES`], [`InvalidManifest::Json`] when
    /// the bytes are not a JSON object or a descriptor in it is malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidManifest> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(InvalidManifest::TooLarge);
        }
        serde_json::from_slice(bytes).map_err(InvalidManifest::Json)
    }

    /// Whether it lists alternatives (platforms, attestations) rather than parts of one image.
    pub fn is_index(&self) -> bool {
        self.config.is_none() && self.layers.is_empty() && !self.manifests.is_empty()
    }

    /// Yields the blobs that a client needs from a registry: configuration, layers and artifact
    /// content, without foreign layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.config
            .iter()
            .chain(&self.layers)
            .chain(&self.blobs)
            .filter(|descriptor| !descriptor.is_foreign())
    }
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidManifest {
    /// Larger than [`MAX_MANIFEST_BYTES`].
    #[error("manifest is larger than {MAX_MANIFEST_BYTES} bytes")]
    TooLarge,
    /// Not a JSON object, or one whose descriptors are malformed.
    #[error("manifest is not valid JSON")]
    Json(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(json: &str) -> Manifest {
        Manifest::parse(json.replace("DIGEST", DIGEST).as_bytes()).expect("valid manifest")
    }

    #[test]
    fn an_image_names_its_configuration_and_layers() {
        let image = parse(
            r#"{"schemaVersion":2,"config":{"mediaType":"c","digest":"DIGEST","size":1},
                "layers":[{"mediaType":"l","digest":"DIGEST","size":2},
                          {"mediaType":"f","digest":"DIGEST","size":3,"urls":["https://x/y"]}]}"#,
        );
        assert!(!image.is_index());
        let sizes: Vec<u64> = image.blobs().map(|blob| blob.size).collect();
        assert_eq!(sizes, [1, 2], "the foreign layer is not the registry's");
    }

    #[test]
    fn an_index_names_its_children() {
        let index = parse(
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json",
                "manifests":[{"mediaType":"m","digest":"DIGEST","size":1,"platform":{"os":"linux"}}]}"#,
        );
        assert!(index.is_index());
        assert_eq!(index.manifests.len(), 1);
        assert!(!index.manifests[0].is_attestation());
        assert_eq!(index.blobs().count(), 0);
    }

    #[test]
    fn an_attestation_is_told_from_an_image() {
        let index = parse(
            r#"{"manifests":[{"mediaType":"m","digest":"DIGEST","size":1,
                "annotations":{"vnd.docker.reference.type":"attestation-manifest"}}]}"#,
        );
        assert!(index.manifests[0].is_attestation());
    }

    #[test]
    fn any_json_object_is_a_manifest() {
        assert_eq!(parse("{}"), Manifest::default());
        assert!(Manifest::parse(b"<html>").is_err());
        assert!(matches!(
            Manifest::parse(&vec![b' '; MAX_MANIFEST_BYTES + 1]),
            Err(InvalidManifest::TooLarge)
        ));
    }

    #[test]
    fn schema1_is_recognised_signed_or_not() {
        for suffix in ["+json", "+prettyjws"] {
            let text = format!("application/vnd.docker.distribution.manifest.v1{suffix}");
            assert!(MediaType::new(text).is_schema1());
        }
        assert!(!MediaType::new(MediaType::OCI_INDEX).is_schema1());
    }
}
