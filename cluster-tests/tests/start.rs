//! What `millrace serve` does about files that the configuration names and that cannot be used: it
//! says which and why, ends with the status of a mistake, and has started nothing.

use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use millrace_cluster_tests::component;
use millrace_cluster_tests::condition::patience;
use millrace_cluster_tests::process::Process;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A mistake: nothing was started, and another attempt would end the same way.
const MISTAKE: Option<i32> = Some(2);

/// The node cannot run now.
const FAILURE: Option<i32> = Some(1);

/// What a node without the right to read everybody's files is started by, as root and as somebody else.
const NO_RIGHTS: [&str; 3] = ["--bounding-set", "-dac_override,-dac_read_search", "--"];

const SECRET: &str = "0123456789abcdefghijklmnopqrstuv";

/// A folder for files, and an address that somebody has already: who comes to open it fails by it.
struct Site {
    folder: TempDir,
    taken: TcpListener,
}

/// How an attempt to start has ended.
#[derive(Debug)]
struct Ended {
    status: Option<i32>,
    said: String,
}

impl Site {
    fn new() -> Result<Self> {
        Ok(Self {
            folder: TempDir::new()?,
            taken: TcpListener::bind("127.0.0.1:0")?,
        })
    }

    fn write(&self, name: &str, content: &str, mode: u32) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(path)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts a node with `settings` besides the taken address, and waits for its end.
    async fn serve(&self, settings: Value) -> Result<Ended> {
        let taken = self.taken.local_addr()?;
        let file = self.folder.path().join("config.yml");
        let configuration = configuration(taken, &self.data(), settings);
        fs::write(&file, serde_json::to_vec(&configuration)?)?;
        let mut command = match rustix::process::geteuid().is_root() {
            true => {
                let mut command = Command::new(component::find("setpriv")?);
                command.args(NO_RIGHTS).arg(component::millrace()?);
                command
            }
            false => Command::new(component::millrace()?),
        };
        command.arg("serve").arg("--config").arg(&file);
        let logs = TempDir::new()?;
        let mut process = Process::start("millrace", &command, logs.path())?;
        let status = process.wait(patience()).await?;
        let said = process.log();
        Ok(Ended {
            status: status.code(),
            said,
        })
    }

    /// Starts a node that is to refuse, for `reason` that names `path`.
    async fn refuses(&self, settings: Value, path: &Path, reason: &str) -> Result<()> {
        let ended = self.serve(settings).await?;
        let path = path.display().to_string();
        let line = ended.said.lines().last().context("it says nothing")?;
        ensure!(ended.status == MISTAKE, "{ended:?}");
        ensure!(
            line.starts_with("millrace: ") && line.contains(&path) && line.contains(reason),
            "{reason}: {ended:?}"
        );
        ensure!(!self.data().exists(), "a data folder was made: {ended:?}");
        Ok(())
    }
}

fn configuration(taken: SocketAddr, data: &Path, settings: Value) -> Value {
    let mut configuration = json!({
        "http": {"addr": taken.to_string(), "debug": {"addr": taken.to_string()}},
        "storage": {"filesystem": {"rootdirectory": data}},
    });
    merge(&mut configuration, settings);
    configuration
}

fn merge(into: &mut Value, settings: Value) {
    match (into, settings) {
        (Value::Object(into), Value::Object(settings)) => {
            for (key, value) in settings {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, settings) => *into = settings,
    }
}

fn cluster(secret: &Path) -> Value {
    json!({"cluster": {"listen": "127.0.0.1:0", "secret_file": secret}})
}

#[tokio::test]
async fn a_secret_file_that_cannot_be_used_is_named_and_nothing_is_started() -> Result<()> {
    let site = Site::new()?;
    let missing = site.folder.path().join("missing");
    for (path, reason) in [
        (missing, "does not exist"),
        (site.write("empty", "", 0o600)?, "no secret in"),
        (site.write("comment", "# soon\n", 0o600)?, "no secret in"),
        (site.write("short", "hunter2", 0o600)?, "too short"),
        (site.write("exposed", SECRET, 0o644)?, "chmod o="),
        (
            site.write("forbidden", SECRET, 0o000)?,
            "Permission denied (os error 13); millrace runs as user ",
        ),
    ] {
        site.refuses(cluster(&path), &path, reason).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_secret_file_for_the_group_is_read_before_addresses_are_opened() -> Result<()> {
    let site = Site::new()?;
    let secret = site.write("secret", SECRET, 0o640)?;
    let ended = site.serve(cluster(&secret)).await?;
    // A taken port may be free at the next attempt.
    ensure!(ended.status == FAILURE, "{ended:?}");
    ensure!(
        ended
            .said
            .contains("which is http.addr in the configuration"),
        "{ended:?}"
    );
    ensure!(!site.data().exists(), "a data folder was made: {ended:?}");
    Ok(())
}

#[tokio::test]
async fn other_files_that_cannot_be_used_are_refused_alike() -> Result<()> {
    let site = Site::new()?;
    let secret = site.write("secret", SECRET, 0o600)?;
    let forbidden = site.write("forbidden", "", 0o000)?;
    let garbage = site.write("garbage", "build7", 0o600)?;
    let missing = site.folder.path().join("missing");
    let denied = "Permission denied (os error 13); millrace runs as user ";
    let mut denying = cluster(&secret);
    merge(&mut denying, json!({"cluster": {"deny_file": garbage}}));
    for (settings, path, reason) in [
        (
            json!({"http": {"tls": {"certificate": forbidden, "key": forbidden}}}),
            &forbidden,
            denied,
        ),
        (
            json!({"auth": {"htpasswd": {"realm": "mirror", "path": forbidden}}}),
            &forbidden,
            denied,
        ),
        (
            json!({"upstreams": {"corp": {"url": "https://registry.corp", "ca": missing}}}),
            &missing,
            "upstreams.corp.ca",
        ),
        (denying, &garbage, "cluster.deny_file"),
    ] {
        site.refuses(settings, path, reason).await?;
    }
    Ok(())
}
