//! What type a manifest is of that came without one.
//!
//! Only the names of its members are looked at, and what it says of itself. Whether they make sense
//! is not asked: see [`super::manifest`].
//! Source: OCI Image Spec, `manifest.md` and `image-index.md`; Docker's image manifest, schema 1 and 2.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::manifest::MediaType;

/// Docker image manifest, schema 1, whether signed or not.
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// Configuration of an image with a Docker manifest.
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The members by which kinds of manifests differ.
#[derive(Deserialize)]
struct Shape {
    #[serde(rename = "mediaType")]
    media_type: Option<MediaType>,
    config: Option<Config>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "mediaType", default)]
    media_type: MediaType,
}

impl MediaType {
    /// Returns the type that a manifest states of itself, else the one that its members are of.
    ///
    /// `None` when there is neither, or the bytes are not JSON. Docker's schema 2 asks a manifest to
    /// state its type, the OCI's specification never did, so what does not is the OCI's, unless its
    /// configuration is Docker's.
    pub fn of_manifest(bytes: &[u8]) -> Option<Self> {
        let shape: Shape = serde_json::from_slice(bytes).ok()?;
        let is_empty = |stated: &Self| stated.as_str().is_empty();
        if let Some(stated) = shape.media_type.filter(|stated| !is_empty(stated)) {
            return Some(stated);
        }
        let by_members = match shape.config {
            _ if shape.fs_layers.is_some() => DOCKER_SCHEMA1,
            Some(config) if config.media_type.as_str() == DOCKER_CONFIG => Self::DOCKER_MANIFEST,
            Some(_) => Self::OCI_MANIFEST,
            None if shape.layers.is_some() => Self::OCI_MANIFEST,
            None if shape.manifests.is_some() => Self::OCI_INDEX,
            None => return None,
        };
        Some(Self::new(by_members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_of_the_type_that_it_states_or_that_its_members_are_of() {
        for (json, own) in [
            (
                r#"{"config":{"mediaType":"x"},"layers":[]}"#,
                Some(MediaType::OCI_MANIFEST),
            ),
            (r#"{"config":{}}"#, Some(MediaType::OCI_MANIFEST)),
            (r#"{"layers":[]}"#, Some(MediaType::OCI_MANIFEST)),
            (
                r#"{"config":{"mediaType":"application/vnd.docker.container.image.v1+json"}}"#,
                Some(MediaType::DOCKER_MANIFEST),
            ),
            (r#"{"manifests":[]}"#, Some(MediaType::OCI_INDEX)),
            (
                r#"{"mediaType":"","manifests":[1]}"#,
                Some(MediaType::OCI_INDEX),
            ),
            (r#"{"mediaType":"own","manifests":[]}"#, Some("own")),
            (r#"{"fsLayers":[],"history":[]}"#, Some(DOCKER_SCHEMA1)),
            (r#"{"schemaVersion":2,"config":null}"#, None),
            ("{}", None),
            ("<html>", None),
        ] {
            let found = MediaType::of_manifest(json.as_bytes());
            assert_eq!(found, own.map(MediaType::new), "{json}");
        }
    }
}
