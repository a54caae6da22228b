//! Descriptors: how a manifest names other content.
//!
//! Source: OCI Image Spec, `descriptor.md`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::digest::Digest;
use super::manifest::MediaType;

/// A reference to content by media type, digest and size, as it stands in a manifest.
///
/// Fields that Millrace does not act on are ignored when reading; nothing is ever written back.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// Type of the content; empty where an old image leaves it out.
    #[serde(rename = "mediaType", default)]
    pub media_type: MediaType,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// Places outside the registry that have the content ("foreign layers"); Millrace never
    /// fetches them.
    #[serde(default)]
    pub urls: Vec<String>,
    /// Remarks; some say what kind of content this is.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Whether this child of an index describes an image instead of being one, as BuildKit's
    /// provenance and SBOM manifests do.
    pub fn is_attestation(&self) -> bool {
        let kind = self.annotations.get("vnd.docker.reference.type");
        kind.is_some_and(|kind| kind == "attestation-manifest")
    }

    /// Whether clients fetch this content from elsewhere, so that no registry need have it.
    pub fn is_foreign(&self) -> bool {
        !self.urls.is_empty()
    }
}
