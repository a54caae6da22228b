//! dockerd with its own socket, data and containerd: classic pulls, containers, BuildKit builds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::mirror::Mirror;
use super::{CLIENT_LIMIT, Client, compare_inspected, isolated, mounts};
use crate::component;
use crate::image::Image;
use crate::process::{self, Process};

use super::Containerd;

/// dockerd unmounts its layers when it is asked to end; killed, it would leave them mounted.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// A dockerd of its own with a mirror for docker.io.
#[derive(Debug)]
pub struct Dockerd {
    // Fields are dropped in this order: dockerd needs its containerd to end well.
    process: Process,
    folder: TempDir,
    _certificates: Option<Certificates>,
    _containerd: Containerd,
}

impl Dockerd {
    /// Starts dockerd with `mirror` as its registry mirror.
    ///
    /// A mirror with TLS must not be at loopback: there dockerd believes any certificate and shows none.
    ///
    /// # Errors
    /// When dockerd is missing or does not answer.
    pub async fn start_through(mirror: impl Into<Mirror>) -> Result<Self> {
        let mirror = mirror.into();
        let certificates = mirror
            .ca
            .is_some()
            .then(|| Certificates::install(&mirror))
            .transpose()?;
        let containerd = Containerd::start().await?;
        let folder = tempfile::Builder::new()
            .prefix("millrace-dockerd-")
            .tempdir()?;
        let path = folder.path();
        // No network of its own: neither bridge nor packet filter of the machine is touched. The
        // storage driver is dockerd's choice: overlay2, or vfs where that does not work.
        let configuration = json!({
            "registry-mirrors": [mirror.url()],
            "hosts": [format!("unix://{}/docker.sock", path.display())],
            "containerd": containerd.socket(),
            "data-root": path.join("data"), "exec-root": path.join("exec"), "pidfile": path.join("docker.pid"),
            "iptables": false, "bridge": "none",
        });
        std::fs::write(
            path.join("daemon.json"),
            serde_json::to_vec_pretty(&configuration)?,
        )?;
        let mut command = isolated(&component::find("dockerd")?, path);
        command.arg("--config-file").arg(path.join("daemon.json"));
        let process = Process::start("dockerd", &command, path)?;
        let mut dockerd = Self {
            process,
            folder,
            _certificates: certificates,
            _containerd: containerd,
        };
        // dockerd listens before it is ready; its clients wait then.
        let socket = dockerd.socket();
        dockerd
            .process
            .ready(async || UnixStream::connect(&socket).await.ok())
            .await?;
        Ok(dockerd)
    }

    /// Runs `arguments` in a container of `reference` and returns what it printed.
    ///
    /// # Errors
    /// When dockerd or the program in the container fails.
    pub async fn execute(&self, reference: &str, arguments: &[&str]) -> Result<String> {
        let mut line = vec!["run", "--rm", "--network=none", "--pull=never", reference];
        line.extend(arguments);
        self.docker(&line).await
    }

    /// Builds `dockerfile` with the daemon's BuildKit as the image `tag`.
    ///
    /// # Errors
    /// When the build fails.
    pub async fn build(&self, dockerfile: &str, tag: &str) -> Result<()> {
        let context = self.folder.path().join("context");
        std::fs::create_dir_all(&context)?;
        std::fs::write(context.join("Dockerfile"), dockerfile)?;
        let mut command = self.command()?;
        command.env("DOCKER_BUILDKIT", "1").args([
            "build",
            "--progress=plain",
            "--network=none",
            "--tag",
            tag,
        ]);
        command.arg(&context);
        process::run(&command, CLIENT_LIMIT).await.map(drop)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    fn command(&self) -> Result<Command> {
        let path = self.folder.path();
        let mut command = isolated(&component::find("docker")?, path);
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        Ok(command)
    }

    async fn docker(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command()?;
        command.args(arguments);
        process::run(&command, CLIENT_LIMIT).await
    }
}

/// What dockerd shows and believes at one mirror; only this folder of the machine can tell it.
#[derive(Debug)]
struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    fn install(mirror: &Mirror) -> Result<Self> {
        let folder = Path::new("/etc/docker/certs.d").join(mirror.host());
        mirror.fill(&folder)?;
        Ok(Self { folder })
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        // The port was free, so the folder is the test's own.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Client for Dockerd {
    async fn pull(&self, reference: &str) -> Result<()> {
        self.docker(&["pull", "--quiet", reference]).await.map(drop)
    }

    async fn compare(&self, reference: &str, original: &Image) -> Result<()> {
        let inspected = self.docker(&["image", "inspect", reference]).await?;
        compare_inspected(&inspected, original)
    }

    async fn forget(&self) -> Result<()> {
        self.docker(&["image", "prune", "--all", "--force"])
            .await
            .map(drop)
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.process.stop_within(STOP_LIMIT);
        mounts::release(self.folder.path());
    }
}
