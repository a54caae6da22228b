//! A real upstream: the distribution's `docker-registry` with its log of requests.
//!
//! Images are pushed by skopeo, digest by digest. It can be stopped and started again on the same
//! port with the same content, which is how a test takes the upstream away. What a healthy
//! registry never does is the fake registry's part.

mod access;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::component;
use crate::condition::{patience, within};
use crate::http::Request;
use crate::image::{Image, ROOT_NAME};
use crate::port::free_address;
use crate::process::{self, Process};

pub use access::Access;

/// A push of 256 MiB to a local registry takes a few seconds; on a busy machine more.
const PUSH_LIMIT: Duration = Duration::from_secs(120);

/// Starts with another port, when somebody took it between choosing and binding.
const START_ATTEMPTS: usize = 5;

/// User and password of a registry that wants them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The password.
    pub password: String,
}

/// A registry process, running or stopped.
#[derive(Debug)]
pub struct Upstream {
    process: Option<Process>,
    folder: TempDir,
    listen: Ipv4Addr,
    /// Where this machine reaches it.
    address: SocketAddr,
    login: Option<Login>,
    scheme: &'static str,
}

impl Upstream {
    /// Starts an empty registry that anybody may read and write.
    ///
    /// # Errors
    /// When `docker-registry` is missing or does not start.
    pub async fn start() -> Result<Self> {
        Self::start_with(Ipv4Addr::LOCALHOST, None, json!({})).await
    }

    /// Starts an empty registry that listens on every address of this machine, so that hosts of a
    /// [`crate::netns::Net`] reach it: see [`Upstream::url_at`].
    ///
    /// # Errors
    /// When `docker-registry` is missing or does not start.
    pub async fn start_everywhere() -> Result<Self> {
        Self::start_with(Ipv4Addr::UNSPECIFIED, None, json!({})).await
    }

    /// Starts an empty registry that wants `login` for everything (htpasswd, bcrypt).
    ///
    /// # Errors
    /// When `docker-registry` or `htpasswd` is missing, or the registry does not start.
    pub async fn start_private(user: &str, password: &str) -> Result<Self> {
        let login = Login {
            user: user.to_owned(),
            password: password.to_owned(),
        };
        Self::start_with(Ipv4Addr::LOCALHOST, Some(login), json!({})).await
    }

    /// Starts an empty registry that speaks TLS with this certificate for `127.0.0.1`, and its key.
    /// [`Upstream::accesses`] is not for it.
    ///
    /// # Errors
    /// When `docker-registry` is missing or does not start.
    pub async fn start_tls((certificate, key): &(PathBuf, PathBuf)) -> Result<Self> {
        let tls = json!({"tls": {"certificate": certificate, "key": key}});
        Self::start_with(Ipv4Addr::LOCALHOST, None, json!({"http": tls})).await
    }

    /// Starts the registry as a pull-through cache of `remote`: the rival, and the plain mirror
    /// against which the client scenarios are known to work.
    ///
    /// # Errors
    /// When `docker-registry` is missing or does not start.
    pub async fn start_mirror_of(remote: &str) -> Result<Self> {
        let settings = json!({"proxy": {"remoteurl": remote}});
        Self::start_with(Ipv4Addr::LOCALHOST, None, settings).await
    }

    async fn start_with(listen: Ipv4Addr, login: Option<Login>, settings: Value) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("millrace-upstream-")
            .tempdir()?;
        if let Some(login) = &login {
            write_htpasswd(&folder.path().join("htpasswd"), login).await?;
        }
        let address = free_address()?;
        let mut upstream = Self {
            process: None,
            folder,
            listen,
            address,
            login,
            scheme: match settings.pointer("/http/tls") {
                Some(_) => "https",
                None => "http",
            },
        };
        for _ in 1..START_ATTEMPTS {
            upstream.configure(&settings)?;
            match upstream.restart().await {
                Ok(()) => return Ok(upstream),
                Err(_) if upstream.log().contains("address already in use") => {
                    upstream.address = free_address()?
                }
                Err(error) => return Err(error),
            }
        }
        upstream.configure(&settings)?;
        upstream.restart().await?;
        Ok(upstream)
    }

    /// Writes the registry's configuration. JSON is YAML, so it is written as it stands.
    fn configure(&self, settings: &Value) -> Result<()> {
        let folder = self.folder.path();
        let mut configuration = json!({
            "version": 0.1,
            // The access log comes in Apache's format on standard output, the rest on standard error.
            "log": {"level": "error", "accesslog": {"disabled": false}},
            "storage": {"filesystem": {"rootdirectory": folder.join("data")}, "delete": {"enabled": true}},
            "http": {"addr": format!("{}:{}", self.listen, self.address.port()), "secret": "the secret of a test"},
        });
        if self.login.is_some() {
            configuration["auth"] =
                json!({"htpasswd": {"realm": "private", "path": folder.join("htpasswd")}});
        }
        for (section, keys) in settings.as_object().into_iter().flatten() {
            for (key, value) in keys.as_object().into_iter().flatten() {
                configuration[section][key] = value.clone();
            }
        }
        Ok(std::fs::write(
            folder.join("config.yml"),
            serde_json::to_vec_pretty(&configuration)?,
        )?)
    }

    /// Starts the registry again, on the same address with the same content.
    ///
    /// # Errors
    /// When it does not answer within the patience.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop();
        let mut command = Command::new(component::find("docker-registry")?);
        command
            .arg("serve")
            .arg(self.folder.path().join("config.yml"));
        let mut process = Process::start("upstream", &command, self.folder.path())?;
        let address = self.address;
        let is_tls = self.scheme == "https";
        process
            .ready(async || match is_tls {
                true => TcpStream::connect(address).await.ok().map(drop),
                false => Request::get("/v2/").send(address).await.ok().map(drop),
            })
            .await?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends the registry; connections to it are refused from now on.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Returns the address, which stays the same over stop and restart.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the process id.
    ///
    /// # Panics
    /// When the registry is stopped.
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().expect("the registry runs").id()
    }

    /// Returns `http://<address>`, or `https` where it speaks TLS.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Returns its URL for those who reach this machine by `address`.
    pub fn url_at(&self, address: impl Into<IpAddr>) -> String {
        let address = SocketAddr::new(address.into(), self.address.port());
        format!("{}://{address}", self.scheme)
    }

    /// Returns user and password, if the registry wants them.
    pub fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }

    /// Pushes `image` to `<repository>:<tag>`, all platforms, without changing a digest.
    ///
    /// # Errors
    /// When skopeo is missing or the registry refuses.
    pub async fn push(&self, image: &Image, repository: &str, tag: &str) -> Result<()> {
        let mut command = Command::new(component::find("skopeo")?);
        command.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--all",
            "--preserve-digests",
        ]);
        command.arg("--dest-tls-verify=false");
        if let Some(Login { user, password }) = &self.login {
            command.arg(format!("--dest-creds={user}:{password}"));
        }
        command.arg(format!("oci:{}:{ROOT_NAME}", image.folder().display()));
        command.arg(format!("docker://{}/{repository}:{tag}", self.address));
        process::run(&command, PUSH_LIMIT).await.map(drop)
    }

    /// Puts only the root of `image` to `<repository>:<tag>`, byte by byte.
    ///
    /// For what skopeo cannot push unchanged: an index with an `artifactType` in its entries.
    ///
    /// # Errors
    /// When the registry refuses; it wants everything that the manifest lists.
    pub async fn put_root(&self, image: &Image, repository: &str, tag: &str) -> Result<()> {
        let root = image.root();
        let mut request = Request::new("PUT", &format!("/v2/{repository}/manifests/{tag}"))
            .header("Content-Type", &root.media_type)
            .body(image.read(&root.digest)?);
        if let Some(Login { user, password }) = &self.login {
            let basic = BASE64_STANDARD.encode(format!("{user}:{password}"));
            request = request.header("Authorization", &format!("Basic {basic}"));
        }
        let answer = request.send(self.address).await?;
        ensure!(
            answer.status() == 201,
            "docker-registry refused {tag}: {answer:?}"
        );
        Ok(())
    }

    /// Returns the requests that were answered since the registry was first started.
    ///
    /// # Errors
    /// When the registry runs but does not answer a request of our own, which marks the end.
    pub async fn accesses(&self) -> Result<Vec<Access>> {
        if self.process.is_some() {
            self.flush_log().await?;
        }
        Ok(self.logged_accesses())
    }

    /// Returns the requests for bodies of manifests and blobs among [`Upstream::accesses`].
    ///
    /// # Errors
    /// As there.
    pub async fn content_accesses(&self) -> Result<Vec<Access>> {
        Ok(self
            .accesses()
            .await?
            .into_iter()
            .filter(Access::is_content)
            .collect())
    }

    /// Waits until the log holds everything that was answered before: the registry writes a line
    /// after the answer, so the line of a request of our own is waited for, and then those that it may
    /// have overtaken.
    async fn flush_log(&self) -> Result<()> {
        let marks =
            |accesses: &[Access]| accesses.iter().filter(|access| access.path == MARK).count();
        let before = marks(&self.logged_accesses());
        Request::get(MARK).send(self.address).await?;
        within(patience(), async || {
            (marks(&self.logged_accesses()) > before).then_some(())
        })
        .await
        .context("the registry does not log its requests")?;
        within(patience(), async || {
            let lines = self.logged_accesses().len();
            tokio::time::sleep(QUIET).await;
            (self.logged_accesses().len() == lines).then_some(())
        })
        .await
        .context("the registry does not stop logging")
    }

    fn logged_accesses(&self) -> Vec<Access> {
        let log =
            std::fs::read_to_string(self.folder.path().join("upstream.out")).unwrap_or_default();
        log.lines().filter_map(Access::parse).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("upstream.err")).unwrap_or_default()
    }

    /// Returns the folder in which the registry keeps its blobs.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

/// A path that nobody else asks for.
const MARK: &str = "/millrace-tests/mark";

/// For how long a log grows no more that holds everything.
const QUIET: Duration = Duration::from_millis(100);

async fn write_htpasswd(path: &Path, login: &Login) -> Result<()> {
    let mut command = Command::new(component::find("htpasswd")?);
    // -B bcrypt, -b password as argument (a test's password is no secret), -c create
    command
        .arg("-Bbc")
        .arg(path)
        .args([&login.user, &login.password]);
    process::run(&command, patience()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::referrers_tag;

    #[tokio::test]
    async fn every_test_image_arrives_byte_by_byte() {
        let upstream = Upstream::start().await.expect("a registry");
        let two = Image::of_two_platforms("upstream").expect("an image");
        let artifact =
            Image::artifact("application/example", two.root(), b"payload").expect("an artifact");
        let referrers = Image::referrers_index(&artifact, "application/example").expect("an index");
        upstream.push(&two, "a/two", "1").await.expect("pushed");
        upstream
            .push(&artifact, "a/two", "artifact")
            .await
            .expect("pushed");
        upstream
            .put_root(&referrers, "a/two", &referrers_tag(&two.root().digest))
            .await
            .expect("pushed");
        for (image, tag) in [(&two, "1"), (&artifact, "artifact")] {
            let answer = Request::get(&format!("/v2/a/two/manifests/{tag}"))
                .header("Accept", &image.root().media_type)
                .send(upstream.address())
                .await
                .expect("an answer");
            assert_eq!(
                answer.body,
                image.read(&image.root().digest).expect("in the layout")
            );
        }
        for content in two.platforms().iter().flat_map(|platform| &platform.layers) {
            let path = format!("/v2/a/two/blobs/{}", content.blob.digest);
            let answer = Request::get(&path)
                .send(upstream.address())
                .await
                .expect("an answer");
            assert_eq!(
                answer.body,
                two.read(&content.blob.digest).expect("in the layout")
            );
            let accesses = upstream.content_accesses().await.expect("a log");
            let bodies = accesses
                .iter()
                .filter(|access| access.path == path && access.status == 200);
            assert_eq!(bodies.count(), 1);
        }
    }

    #[tokio::test]
    async fn a_stopped_registry_refuses_and_comes_back_with_its_content() {
        let mut upstream = Upstream::start_private("ann", "secret")
            .await
            .expect("a registry");
        let image = Image::runnable("private").expect("an image");
        upstream
            .push(&image, "team/app", "1")
            .await
            .expect("pushed with the password");
        let request =
            Request::get("/v2/team/app/manifests/1").header("Accept", &image.root().media_type);
        upstream.stop();
        request
            .clone()
            .send(upstream.address())
            .await
            .expect_err("nobody listens");
        upstream.restart().await.expect("a registry");
        let anonymous = request
            .clone()
            .send(upstream.address())
            .await
            .expect("an answer");
        assert_eq!(anonymous.status(), 401);
        // base64 of ann:secret
        let known = request.header("Authorization", "Basic YW5uOnNlY3JldA==");
        let answer = known.send(upstream.address()).await.expect("an answer");
        assert_eq!(
            (answer.status(), answer.body.len() as u64),
            (200, image.root().size)
        );
    }
}
