//! Test images, built here as OCI image layouts.
//!
//! Each one is a case that a cache must carry: a root file system that runs, many layers, one
//! large layer, an index of two platforms, an artifact that refers to an image. The same arguments
//! yield the same digests. Pushing them is [`crate::upstream`]'s part.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use millrace_protocol::oci::{Algorithm, Digest};
use serde_json::{Value, json};

use crate::component;

mod layout;
mod noise;

use layout::Layout;
pub(crate) use layout::ROOT_NAME;
pub use noise::Noise;

/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// What the layers of one architecture run on.
const AMD64: &str = "amd64";
const ARM64: &str = "arm64";

/// A blob or manifest: what a descriptor says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
}

impl Content {
    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

/// A layer of an image.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The blob that is pulled.
    pub blob: Content,
    /// The digest of the uncompressed tar archive, by which clients name it.
    pub diff_id: Digest,
}

/// The manifest of one platform.
#[derive(Clone, Debug)]
pub struct Platform {
    /// The manifest itself.
    pub manifest: Content,
    /// The configuration blob.
    pub config: Content,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
}

/// An image in a temporary OCI image layout.
#[derive(Debug)]
pub struct Image {
    layout: Layout,
    root: Content,
    platforms: Vec<Platform>,
}

impl Image {
    /// A root file system of busybox that runs on this machine; `mark` is the content of `/mark`.
    ///
    /// # Errors
    /// When busybox is not installed or the layout cannot be written.
    pub fn runnable(mark: &str) -> Result<Self> {
        let layout = Layout::create()?;
        let platform = busybox_platform(&layout, AMD64, mark)?;
        Self::of_platform(layout, platform)
    }

    /// Busybox below, and layers with one small file each on top: `count` layers in all.
    ///
    /// # Errors
    /// When busybox is not installed or the layout cannot be written.
    pub fn of_layers(count: usize) -> Result<Self> {
        let layout = Layout::create()?;
        let mut layers = vec![busybox_layer(&layout, "many layers")?];
        for number in 1..count {
            let mut archive = Archive::default();
            archive.file(
                &format!("layers/{number}"),
                0o644,
                format!("layer {number}\n").as_bytes(),
            )?;
            layers.push(archive.gzip_layer(&layout)?);
        }
        let platform = platform(&layout, AMD64, layers)?;
        Self::of_platform(layout, platform)
    }

    /// One layer that holds one file of `size` pseudo-random bytes, not compressed.
    ///
    /// # Errors
    /// When the layout cannot be written.
    pub fn of_size(size: u64, seed: u64) -> Result<Self> {
        Self::of_sizes(&[size], seed)
    }

    /// A layer for each of `sizes`, that holds one file of so many pseudo-random bytes, not
    /// compressed.
    ///
    /// # Errors
    /// When the layout cannot be written.
    pub fn of_sizes(sizes: &[u64], seed: u64) -> Result<Self> {
        let layout = Layout::create()?;
        // Numbers that do not meet those of the next seeds.
        let seeds = (0..).map(|layer| seed + layer * 1_000_000);
        let layers = sizes
            .iter()
            .zip(seeds)
            .map(|(size, seed)| noise_layer(&layout, *size, seed));
        let platform = platform(&layout, AMD64, layers.collect::<Result<_>>()?)?;
        Self::of_platform(layout, platform)
    }

    /// An index of two platforms, amd64 and arm64, that share no layer.
    ///
    /// # Errors
    /// When busybox is not installed or the layout cannot be written.
    pub fn of_two_platforms(mark: &str) -> Result<Self> {
        let layout = Layout::create()?;
        let mut platforms = Vec::new();
        let mut entries = Vec::new();
        for architecture in [AMD64, ARM64] {
            let platform =
                busybox_platform(&layout, architecture, &format!("{mark} on {architecture}"))?;
            let mut entry = platform.manifest.descriptor();
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entries.push(entry);
            platforms.push(platform);
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        let root = layout.add_json(INDEX, &index)?;
        Self::finish(layout, root, platforms)
    }

    /// An OCI artifact of type `artifact_type` about `subject`: a manifest with an empty
    /// configuration and one blob, as a signature or a bill of materials is stored.
    ///
    /// # Errors
    /// When the layout cannot be written.
    pub fn artifact(artifact_type: &str, subject: &Content, payload: &[u8]) -> Result<Self> {
        let layout = Layout::create()?;
        let config = layout.add(EMPTY, b"{}")?;
        let blob = layout.add("application/octet-stream", payload)?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": artifact_type,
            "config": config.descriptor(), "layers": [blob.descriptor()],
            "subject": subject.descriptor(),
        });
        let manifest = layout.add_json(MANIFEST, &manifest)?;
        let layer = Layer {
            diff_id: blob.digest,
            blob,
        };
        let platform = Platform {
            manifest,
            config,
            layers: vec![layer],
        };
        Self::of_platform(layout, platform)
    }

    /// An index that lists `artifact` as a referrer: what the tag schema of the OCI distribution
    /// specification keeps under the tag [`referrers_tag`] where a registry has no referrers API.
    ///
    /// # Errors
    /// When the layout cannot be written.
    pub fn referrers_index(artifact: &Self, artifact_type: &str) -> Result<Self> {
        let layout = Layout::create()?;
        let mut entry = artifact.root.descriptor();
        entry["artifactType"] = artifact_type.into();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        let root = layout.add_json(INDEX, &index)?;
        Self::finish(layout, root, Vec::new())
    }

    fn of_platform(layout: Layout, platform: Platform) -> Result<Self> {
        let root = platform.manifest.clone();
        Self::finish(layout, root, vec![platform])
    }

    fn finish(layout: Layout, root: Content, platforms: Vec<Platform>) -> Result<Self> {
        layout.close(&root)?;
        Ok(Self {
            layout,
            root,
            platforms,
        })
    }

    /// Returns what a tag of this image names: the index, or the only manifest.
    pub fn root(&self) -> &Content {
        &self.root
    }

    /// Returns the manifests, amd64 first; empty for an index of referrers.
    pub fn platforms(&self) -> &[Platform] {
        &self.platforms
    }

    /// Returns the manifest that clients on this machine choose.
    ///
    /// # Panics
    /// For an index of referrers, which has none.
    pub fn platform(&self) -> &Platform {
        self.platforms.first().expect("an image has a platform")
    }

    /// Returns every manifest and blob of the image once, the root first.
    pub fn contents(&self) -> Vec<Content> {
        let mut contents = vec![self.root.clone()];
        for platform in &self.platforms {
            let layers = platform.layers.iter().map(|layer| &layer.blob);
            for content in [&platform.manifest, &platform.config]
                .into_iter()
                .chain(layers)
            {
                if !contents.contains(content) {
                    contents.push(content.clone());
                }
            }
        }
        contents
    }

    /// Returns the bytes of a manifest or blob of the image.
    ///
    /// # Errors
    /// When the image has no such content.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.layout.path_of(digest);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Returns the folder of the OCI image layout.
    pub fn folder(&self) -> &Path {
        self.layout.folder()
    }
}

/// Returns the tag under which the referrers of `digest` are listed where there is no API for them.
pub fn referrers_tag(digest: &Digest) -> String {
    digest.to_string().replace(':', "-")
}

fn busybox_platform(layout: &Layout, architecture: &str, mark: &str) -> Result<Platform> {
    let layer = busybox_layer(layout, mark)?;
    platform(layout, architecture, vec![layer])
}

/// A layer with one file of pseudo-random bytes.
fn noise_layer(layout: &Layout, size: u64, seed: u64) -> Result<Layer> {
    let blob = layout.add_streamed(LAYER, |file| {
        let mut archive = tar::Builder::new(file);
        let mut header = header(0o644, size);
        archive.append_data(&mut header, "noise", Noise::new(seed).take(size))?;
        archive.finish()
    })?;
    Ok(Layer {
        diff_id: blob.digest,
        blob,
    })
}

fn busybox_layer(layout: &Layout, mark: &str) -> Result<Layer> {
    let busybox = std::fs::read(component::find("busybox")?).context("reading busybox")?;
    let mut archive = Archive::default();
    archive.file("bin/busybox", 0o755, &busybox)?;
    for applet in ["sh", "cat", "echo", "sleep"] {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n")?;
    archive.file("mark", 0o644, mark.as_bytes())?;
    archive.gzip_layer(layout)
}

fn platform(layout: &Layout, architecture: &str, layers: Vec<Layer>) -> Result<Platform> {
    let diff_ids: Vec<&Digest> = layers.iter().map(|layer| &layer.diff_id).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": layers.iter().map(|_| json!({"created_by": "millrace tests"})).collect::<Vec<_>>(),
    });
    let config = layout.add_json(CONFIG, &config)?;
    let blobs: Vec<Value> = layers.iter().map(|layer| layer.blob.descriptor()).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(), "layers": blobs,
    });
    let manifest = layout.add_json(MANIFEST, &manifest)?;
    Ok(Platform {
        manifest,
        config,
        layers,
    })
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header
}

/// A tar archive that is being written in memory.
struct Archive(tar::Builder<Vec<u8>>);

impl Default for Archive {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Archive {
    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = header(mode, content.len() as u64);
        Ok(self.0.append_data(&mut header, path, content)?)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = header(0o777, 0);
        header.set_entry_type(tar::EntryType::Symlink);
        Ok(self.0.append_link(&mut header, path, target)?)
    }

    fn gzip_layer(self, layout: &Layout) -> Result<Layer> {
        let archive = self.0.into_inner()?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&archive)?;
        let blob = layout.add(LAYER_GZIP, &encoder.finish()?)?;
        Ok(Layer {
            diff_id: Digest::of(Algorithm::Sha256, &archive),
            blob,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_arguments_yield_equal_digests() {
        let [one, same, other] = [("a", 1), ("a", 1), ("b", 2)]
            .map(|(_, seed)| Image::of_size(100_000, seed).expect("an image"));
        assert_eq!(one.root(), same.root());
        assert_ne!(one.root().digest, other.root().digest);
    }

    #[test]
    fn every_content_is_in_the_layout_under_its_digest() {
        let image = Image::of_two_platforms("x").expect("an image");
        // index, and for each of two platforms: manifest, config, layer
        assert_eq!(image.contents().len(), 7);
        for content in image.contents() {
            let bytes = image.read(&content.digest).expect("in the layout");
            assert_eq!(Digest::of(Algorithm::Sha256, &bytes), content.digest);
            assert_eq!(bytes.len() as u64, content.size);
        }
    }

    #[test]
    fn an_image_of_forty_layers_has_forty_distinct_layers() {
        let image = Image::of_layers(40).expect("an image");
        assert_eq!(image.platform().layers.len(), 40);
        assert_eq!(image.contents().len(), 42);
    }
}
