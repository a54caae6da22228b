//! Real registry clients, each with its own storage and sent to a mirror for docker.io.
//!
//! A client is configured as CLIENT-CONTRACT section 11 tells its users. None of them can leave
//! the machine: what does not go to the mirror goes to a proxy that refuses, so that a fallback
//! to the real registry is an error and not a success. Clients that the distribution lacks are
//! replayed request by request in the tests.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_protocol::oci::Digest;
use serde_json::Value;

use crate::image::{Image, Platform};
use crate::process::machine_address;

mod buildah;
mod containerd;
mod containers;
mod dockerd;
mod mirror;
mod mounts;
mod podman;
mod skopeo;

pub use buildah::Buildah;
pub use containerd::Containerd;
pub use dockerd::Dockerd;
pub use mirror::Mirror;
pub use podman::Podman;
pub use skopeo::Skopeo;

/// A pull of 256 MiB takes seconds; a client that waits out its retries takes minutes.
const CLIENT_LIMIT: Duration = Duration::from_secs(180);

/// Where requests go that are not for the mirror: nothing listens on this port.
const NOWHERE: &str = "http://127.0.0.1:1";

/// What every client can do.
///
/// References are written in full, as `docker.io/library/busybox:1`.
#[expect(
    async_fn_in_trait,
    reason = "used by tests of this crate, on one thread"
)]
pub trait Client {
    /// Pulls `reference` through the mirror.
    ///
    /// # Errors
    /// When the client fails; the message carries what it printed.
    async fn pull(&self, reference: &str) -> Result<()>;

    /// Compares what was pulled as `reference` with the original, by digests.
    ///
    /// # Errors
    /// When something differs or is missing.
    async fn compare(&self, reference: &str, original: &Image) -> Result<()>;

    /// Removes everything that was pulled, so that the next pull asks for all of it again.
    ///
    /// # Errors
    /// When the client fails.
    async fn forget(&self) -> Result<()>;
}

/// Returns a command that reads no file of this user and reaches nothing but this machine.
fn isolated(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", home).env("TMPDIR", home);
    command.env(
        "PATH",
        "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
    );
    let machine = machine_address().map_or(String::new(), |address| format!(",{address}"));
    command
        .env("HTTP_PROXY", NOWHERE)
        .env("HTTPS_PROXY", NOWHERE)
        .env("NO_PROXY", format!("127.0.0.1{machine}"));
    command
}

/// Reads a JSON answer of a client; an array of one element counts as that element.
fn parse(text: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))?;
    Ok(match value {
        Value::Array(mut items) if items.len() == 1 => items.remove(0),
        other => other,
    })
}

/// Compares an image as `image inspect` of docker and podman shows it with the original.
fn compare_inspected(text: &str, original: &Image) -> Result<()> {
    let image = parse(text)?;
    compare_root(&image["RepoDigests"], original)?;
    let diff_ids = &image["RootFS"]["Layers"];
    compare_platform(&image["Id"], diff_ids, original.platform())
}

/// Compares configuration and layers, which clients name by diff id, with those of the original.
fn compare_platform(config: &Value, diff_ids: &Value, original: &Platform) -> Result<()> {
    let config = config.as_str().unwrap_or_default();
    let hex = config.strip_prefix("sha256:").unwrap_or(config);
    ensure!(
        hex == original.config.digest.hex(),
        "configuration {config}, not {}",
        original.config.digest
    );
    let pulled: Vec<Digest> = serde_json::from_value(diff_ids.clone())
        .with_context(|| format!("not a list of digests: {diff_ids}"))?;
    let expected: Vec<Digest> = original.layers.iter().map(|layer| layer.diff_id).collect();
    ensure!(pulled == expected, "layers {pulled:?}, not {expected:?}");
    Ok(())
}

/// Checks that one of `references` (`name@sha256:…`) carries the digest of the original.
fn compare_root(references: &Value, original: &Image) -> Result<()> {
    let digest = original.root().digest.to_string();
    let known = references
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    ensure!(
        known.into_iter().any(|name| name.ends_with(&digest)),
        "{references} lack {digest}"
    );
    Ok(())
}
