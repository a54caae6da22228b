//! Large blobs, the same in every run, put straight into the storage of a registry.
//!
//! A push would hash and copy gigabytes twice more; `docker-registry` serves a blob as soon as its
//! file and the link of its repository are there.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context, Result};
use millrace_protocol::oci::{Algorithm, Digest};

use crate::image::Noise;
use crate::upstream::Upstream;

const PIECE_BYTES: usize = 1 << 20;

/// A blob that `docker-registry` serves.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The path under which the registry, and whatever mirrors it, serves it.
    pub path: String,
    /// The file that holds it.
    pub file: PathBuf,
}

/// Adds a blob of `size` pseudo-random bytes to `repository` and waits until it is on disk, so that
/// writing it back does not disturb what is measured next.
///
/// Equal sizes and seeds yield equal blobs.
/// # Errors
/// When the storage cannot be written.
pub fn blob(upstream: &Upstream, repository: &str, size: u64, seed: u64) -> Result<Blob> {
    let storage = upstream.data().join("docker/registry/v2");
    std::fs::create_dir_all(&storage)?;
    let (unnamed, digest) = write(&storage.join("unnamed"), size, seed)?;
    let hex = digest.hex();
    let folder = storage.join("blobs/sha256").join(&hex[..2]).join(&hex);
    std::fs::create_dir_all(&folder)?;
    let file = folder.join("data");
    std::fs::rename(&unnamed, &file).context("naming a blob")?;
    let links = storage.join("repositories").join(repository);
    let links = links.join("_layers/sha256").join(&hex);
    std::fs::create_dir_all(&links)?;
    std::fs::write(links.join("link"), digest.to_string())?;
    Ok(Blob {
        digest,
        size,
        path: format!("/v2/{repository}/blobs/{digest}"),
        file,
    })
}

fn write(path: &std::path::Path, size: u64, seed: u64) -> Result<(PathBuf, Digest)> {
    let mut file = File::create(path).context("creating a blob")?;
    let mut noise = Noise::new(seed).take(size);
    let mut hasher = Algorithm::Sha256.hasher();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = noise.read(&mut piece)?;
        if count == 0 {
            break;
        }
        hasher.update(&piece[..count]);
        file.write_all(&piece[..count]).context("writing a blob")?;
    }
    file.sync_data().context("writing a blob to disk")?;
    Ok((path.to_owned(), hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Request;

    #[tokio::test]
    async fn the_registry_serves_a_seeded_blob() {
        let upstream = Upstream::start().await.expect("a registry");
        let size = 1_234_567;
        let seeded = blob(&upstream, "bench/blobs", size, 1).expect("writable storage");
        let answer = Request::get(&seeded.path).send(upstream.address()).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.body.len() as u64, size);
        assert_eq!(Digest::of(Algorithm::Sha256, &answer.body), seeded.digest);
        let other = blob(&upstream, "bench/blobs", size, 2).expect("writable storage");
        assert_ne!(other.digest, seeded.digest);
    }
}
