//! containerd with `ctr --hosts-dir`: pulls into its own content store and runs what it pulled.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use millrace_protocol::oci::{Algorithm, Digest};
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::mirror::Mirror;
use super::{CLIENT_LIMIT, Client, NOWHERE, isolated, mounts};
use crate::component;
use crate::image::{Content, Image};
use crate::process::{self, Process};

/// A containerd of its own: socket, content, snapshots.
#[derive(Debug)]
pub struct Containerd {
    process: Process,
    folder: TempDir,
}

impl Containerd {
    /// Starts containerd without any mirror.
    ///
    /// # Errors
    /// When containerd is missing or does not answer.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("millrace-containerd-")
            .tempdir()?;
        let path = folder.path();
        std::fs::write(path.join("config.toml"), configuration(path))?;
        let mut command = isolated(&component::find("containerd")?, path);
        command.arg("--config").arg(path.join("config.toml"));
        let process = Process::start("containerd", &command, path)?;
        let mut containerd = Self { process, folder };
        let socket = containerd.socket();
        containerd
            .process
            .ready(async || UnixStream::connect(&socket).await.ok())
            .await?;
        Ok(containerd)
    }

    /// Starts containerd with `mirror` (`host:port[/path]`) for docker.io.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub async fn start_through(mirror: impl Into<Mirror>) -> Result<Self> {
        let containerd = Self::start().await?;
        containerd.add_mirror("docker.io", mirror)?;
        Ok(containerd)
    }

    /// Adds `mirror` for the registry that references call `registry`.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn add_mirror(&self, registry: &str, mirror: impl Into<Mirror>) -> Result<()> {
        let mirror = mirror.into();
        // A colon in the folder's name would not do on every system: containerd reads `host_port_`.
        let name = match registry.split_once(':') {
            Some((host, port)) => format!("{host}_{port}_"),
            None => registry.to_owned(),
        };
        let folder = self.hosts().join(name);
        std::fs::create_dir_all(&folder)?;
        let url = mirror.url();
        let mut hosts = format!(
            "server = \"{NOWHERE}\"\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        if let Some(ca) = &mirror.ca {
            hosts.push_str(&format!("ca = \"{}\"\n", ca.display()));
        }
        if let Some((certificate, key)) = &mirror.certificate {
            let pair = (certificate.display(), key.display());
            hosts.push_str(&format!("client = [[\"{}\", \"{}\"]]\n", pair.0, pair.1));
        }
        if let Some(basic) = mirror.basic() {
            hosts.push_str(&format!(
                "[host.\"{url}\".header]\nauthorization = \"Basic {basic}\"\n"
            ));
        }
        std::fs::write(folder.join("hosts.toml"), hosts).context("writing hosts.toml")
    }

    /// Runs `arguments` in a container of `reference` and returns what it printed.
    ///
    /// # Errors
    /// When containerd or the program in the container fails.
    pub async fn execute(&self, reference: &str, arguments: &[&str]) -> Result<String> {
        let mut line = vec![
            "run",
            "--rm",
            "--snapshotter=native",
            reference,
            "millrace-test",
        ];
        line.extend(arguments);
        self.ctr(&line).await
    }

    /// Returns the socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("containerd.sock")
    }

    fn hosts(&self) -> PathBuf {
        self.folder.path().join("hosts")
    }

    async fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let mut command: Command = isolated(&component::find("ctr")?, self.folder.path());
        command.arg("--address").arg(self.socket()).args(arguments);
        process::run(&command, CLIENT_LIMIT).await
    }

    /// Checks that a content is in the store, with the right bytes.
    fn compare_content(&self, content: &Content) -> Result<()> {
        let store = self
            .folder
            .path()
            .join("root/io.containerd.content.v1.content/blobs/sha256");
        let path = store.join(content.digest.hex());
        let bytes =
            std::fs::read(&path).with_context(|| format!("containerd lacks {}", content.digest))?;
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        ensure!(
            digest == content.digest,
            "{} holds {digest}",
            path.display()
        );
        Ok(())
    }
}

impl Client for Containerd {
    async fn pull(&self, reference: &str) -> Result<()> {
        let hosts = self.hosts();
        let hosts = hosts
            .to_str()
            .context("a temporary folder with a readable name")?;
        self.ctr(&[
            "images",
            "pull",
            "--snapshotter=native",
            "--hosts-dir",
            hosts,
            reference,
        ])
        .await
        .map(drop)
    }

    async fn compare(&self, reference: &str, original: &Image) -> Result<()> {
        let images = self
            .ctr(&["images", "list", &format!("name=={reference}")])
            .await?;
        let root = original.root().digest.to_string();
        ensure!(images.contains(&root), "{images} lacks {root}");
        let platform = original.platform();
        let layers = platform.layers.iter().map(|layer| &layer.blob);
        [original.root(), &platform.manifest, &platform.config]
            .into_iter()
            .chain(layers)
            .try_for_each(|content| self.compare_content(content))
    }

    async fn forget(&self) -> Result<()> {
        let references = self.ctr(&["images", "list", "--quiet"]).await?;
        // --sync waits for the garbage collector, which removes the content.
        let mut line = vec!["images", "remove", "--sync"];
        line.extend(references.lines());
        self.ctr(&line).await?;
        let rest = self.ctr(&["content", "list", "--quiet"]).await?;
        ensure!(rest.trim().is_empty(), "containerd still holds {rest}");
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.process.kill();
        mounts::release(self.folder.path());
    }
}

fn configuration(folder: &Path) -> String {
    // Without CRI, which would look for a network configuration of the machine.
    format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = \"{0}/containerd.sock\"\n[ttrpc]\naddress = \"{0}/containerd.sock.ttrpc\"\n",
        folder.display()
    )
}
