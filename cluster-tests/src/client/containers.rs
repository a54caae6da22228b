//! Configuration that skopeo, podman and buildah share: mirrors, policy, storage.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::mirror::Mirror;
use super::{CLIENT_LIMIT, isolated};
use crate::component;
use crate::process;

/// A temporary home of one client of this family.
#[derive(Debug)]
pub(super) struct Home {
    folder: TempDir,
    program: &'static str,
}

impl Home {
    /// Writes the configuration of `program` with `mirror` for docker.io.
    pub(super) fn create(program: &'static str, mirror: &Mirror) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("millrace-{program}-"))
            .tempdir()?;
        let path = folder.path();
        std::fs::write(path.join("storage.conf"), storage(path))?;
        std::fs::write(path.join("auth.json"), logins(mirror).to_string())?;
        // Looked for in the home folder even by root.
        let user = path.join(".config/containers");
        std::fs::create_dir_all(&user)?;
        mirror.fill(&user.join("certs.d").join(mirror.host()))?;
        std::fs::write(user.join("registries.conf"), registries(mirror))?;
        std::fs::write(
            user.join("policy.json"),
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
        )?;
        Ok(Self { folder, program })
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns a command of the program that uses only this home.
    fn command(&self) -> Result<Command> {
        let path = self.folder.path();
        let mut command = isolated(&component::find(self.program)?, path);
        command.env("CONTAINERS_STORAGE_CONF", path.join("storage.conf"));
        command.env("REGISTRY_AUTH_FILE", path.join("auth.json"));
        Ok(command)
    }

    /// Runs the program with `arguments` and returns what it printed.
    pub(super) async fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command()?;
        command.args(arguments);
        process::run(&command, CLIENT_LIMIT).await
    }
}

/// What `podman login` writes.
fn logins(mirror: &Mirror) -> Value {
    match mirror.basic() {
        Some(basic) => json!({"auths": {mirror.host(): {"auth": basic}}}),
        None => json!({}),
    }
}

fn registries(mirror: &Mirror) -> String {
    // `insecure` makes the client try HTTPS first and HTTP after it (T2 of the client contract).
    format!(
        "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n\
         [[registry.mirror]]\nlocation = \"{}\"\ninsecure = {}\n",
        mirror.location,
        mirror.ca.is_none()
    )
}

fn storage(home: &Path) -> String {
    // vfs copies layers instead of mounting them: it works on every file system and leaves no mounts.
    format!(
        "[storage]\ndriver = \"vfs\"\nrunroot = \"{0}/run\"\ngraphroot = \"{0}/storage\"\n",
        home.display()
    )
}
