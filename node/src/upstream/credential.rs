//! Where the user and password for an upstream come from.
//!
//! A password file is read anew for each use and a helper is run again when its answer expires or
//! is refused, so that both can rotate. Where credentials may be sent is `confine`'s to say.
//! Source of the helper's protocol: docker-credential-helpers, as the Docker registry's
//! `proxy.exec` uses it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use millrace_protocol::oci::{Algorithm, Digest};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::Instant;

use super::config::{ExecConfig, UpstreamConfig};
use super::error::CredentialError;
use super::secret::Secret;
use super::shortage::Shortage;

/// How long a helper may run: it may have to ask a cloud, but a client is waiting.
const HELPER_PATIENCE: Duration = Duration::from_secs(10);

/// Largest password file or helper output that is read, in bytes; cloud passwords have a few KiB.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Hexadecimal digits of a credential id: no two credentials of a cluster collide.
const ID_DIGITS: usize = 16;

/// Names the credentials that content was fetched with, without telling them.
///
/// `anonymous`, or a short hash over the upstream and the user: the same on every node that is
/// configured alike, and after the password changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct CredentialId(Arc<str>);

impl CredentialId {
    /// The id of requests without credentials.
    pub fn anonymous() -> Self {
        Self("anonymous".into())
    }

    /// Whether it stands for no credentials, so that what was fetched is public.
    pub fn is_anonymous(&self) -> bool {
        &*self.0 == "anonymous"
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn of(upstream: &str, config: &UpstreamConfig) -> Self {
        let account = match (&config.username, &config.exec) {
            (Some(username), _) => format!("user\0{username}"),
            (None, Some(exec)) => format!("exec\0{}", exec.command),
            (None, None) => return Self::anonymous(),
        };
        let text = format!("{upstream}\0{account}");
        let hex = Digest::of(Algorithm::Sha256, text.as_bytes()).hex();
        Self(hex[..ID_DIGITS].into())
    }
}

impl From<String> for CredentialId {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<CredentialId> for String {
    fn from(id: CredentialId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why there is no login.
#[derive(Clone, Debug)]
pub(super) enum LoginError {
    /// This node lacks what reading the file or running the helper takes.
    Shortage(Shortage),
    /// The file or the helper gives none.
    Credentials(CredentialError),
}

impl From<CredentialError> for LoginError {
    fn from(error: CredentialError) -> Self {
        Self::Credentials(error)
    }
}

impl LoginError {
    /// Takes the system's answer; `otherwise` says what failed if it is not for want of something.
    fn of(error: &io::Error, otherwise: impl FnOnce(io::ErrorKind) -> CredentialError) -> Self {
        match Shortage::of(error) {
            Some(shortage) => Self::Shortage(shortage),
            None => otherwise(error.kind()).into(),
        }
    }
}

/// A user and a password in hand.
#[derive(Clone, Debug)]
pub(super) struct Login {
    username: String,
    password: Secret,
}

impl Login {
    /// Returns the value of `Authorization: Basic`, marked as sensitive.
    pub(super) fn basic(&self) -> HeaderValue {
        let pair = format!("{}:{}", self.username, self.password.reveal());
        let text = format!("Basic {}", BASE64_STANDARD.encode(pair));
        let mut value = HeaderValue::try_from(text).expect("base64 is valid in a header");
        value.set_sensitive(true);
        value
    }
}

/// The credentials of one upstream.
#[derive(Debug)]
pub(super) enum Credentials {
    Anonymous,
    Fixed(Login),
    File { username: String, path: PathBuf },
    Exec(Helper),
}

impl Credentials {
    /// Takes the credentials of a checked entry; `host` is the primary URL's.
    pub(super) fn new(config: &UpstreamConfig, host: String) -> Self {
        let username = config.username.clone().unwrap_or_default();
        match (&config.password, &config.password_file, &config.exec) {
            (Some(password), _, _) => Self::Fixed(Login {
                username,
                password: password.clone(),
            }),
            (None, Some(path), _) => Self::File {
                username,
                path: path.clone(),
            },
            (None, None, Some(exec)) => Self::Exec(Helper::new(exec, host)),
            (None, None, None) => Self::Anonymous,
        }
    }

    pub(super) fn is_anonymous(&self) -> bool {
        matches!(self, Self::Anonymous)
    }

    /// Returns the login, or `None` when there is none.
    ///
    /// # Errors
    /// [`LoginError`] when the file or the helper gives none.
    /// # Cancel safety
    /// Dropping the future kills a helper that it runs.
    pub(super) async fn login(&self) -> Result<Option<Login>, LoginError> {
        match self {
            Self::Anonymous => Ok(None),
            Self::Fixed(login) => Ok(Some(login.clone())),
            Self::File { username, path } => {
                let failed = |kind| CredentialError::File {
                    path: path.clone(),
                    kind,
                };
                let text = read_bounded(path)
                    .await
                    .map_err(|error| LoginError::of(&error, failed))?;
                let password = Secret::new(text.trim_end_matches(['\r', '\n']));
                Ok(Some(Login {
                    username: username.clone(),
                    password,
                }))
            }
            Self::Exec(helper) => helper.login().await.map(Some),
        }
    }

    /// Notes that the upstream refused the login; returns whether the next one may differ.
    pub(super) async fn handle_refused(&self) -> bool {
        match self {
            Self::Exec(helper) => helper.cached.lock().await.take().is_some(),
            Self::Anonymous | Self::Fixed(_) | Self::File { .. } => false,
        }
    }
}

async fn read_bounded(path: &PathBuf) -> io::Result<String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(MAX_SECRET_BYTES)
        .read_to_string(&mut text)
        .await?;
    Ok(text)
}

/// A docker credential helper and its last answer.
#[derive(Debug)]
pub(super) struct Helper {
    command: Arc<str>,
    host: String,
    lifetime: Option<Duration>,
    /// Locked while the helper runs, so that it runs once for all who wait.
    cached: tokio::sync::Mutex<Option<(Login, Instant)>>,
}

#[derive(Deserialize)]
struct HelperOutput {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: Secret,
}

impl Helper {
    fn new(config: &ExecConfig, host: String) -> Self {
        let command = config.command.as_str().into();
        Self {
            command,
            host,
            lifetime: config.lifetime,
            cached: tokio::sync::Mutex::default(),
        }
    }

    async fn login(&self) -> Result<Login, LoginError> {
        let mut cached = self.cached.lock().await;
        if let Some((login, since)) = &*cached
            && self
                .lifetime
                .is_none_or(|lifetime| since.elapsed() < lifetime)
        {
            return Ok(login.clone());
        }
        let login = tokio::time::timeout(HELPER_PATIENCE, self.run())
            .await
            .map_err(|_| CredentialError::Slow {
                command: self.command.clone(),
                patience: HELPER_PATIENCE,
            })??;
        *cached = Some((login.clone(), Instant::now()));
        Ok(login)
    }

    /// Runs `<command> get` with the host on its standard input.
    async fn run(&self) -> Result<Login, LoginError> {
        let start = |kind| CredentialError::Start {
            command: self.command.clone(),
            kind,
        };
        let start = |error: io::Error| LoginError::of(&error, start);
        let mut child = Command::new(&*self.command)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let mut stdin = child.stdin.take().expect("standard input is piped");
        let stdout = child.stdout.take().expect("standard output is piped");
        // A helper that does not read the host closes its end; what it prints decides.
        let _ = stdin.write_all(self.host.as_bytes()).await;
        drop(stdin);
        let mut output = Vec::new();
        let read = stdout.take(MAX_SECRET_BYTES).read_to_end(&mut output).await;
        let status = child.wait().await.map_err(start)?;
        if read.is_err() || !status.success() {
            let command = self.command.clone();
            return Err(CredentialError::Failed { command }.into());
        }
        let malformed = |_| CredentialError::Malformed {
            command: self.command.clone(),
        };
        let output: HelperOutput = serde_json::from_slice(&output).map_err(malformed)?;
        Ok(Login {
            username: output.username,
            password: output.secret,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn decoded(login: &Login) -> String {
        let value = login.basic();
        let text = value
            .to_str()
            .expect("visible")
            .strip_prefix("Basic ")
            .expect("basic");
        String::from_utf8(BASE64_STANDARD.decode(text).expect("base64")).expect("text")
    }

    fn script(folder: &std::path::Path, body: &str) -> ExecConfig {
        let path = folder.join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("writes");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .expect("executable");
        ExecConfig {
            command: path.display().to_string(),
            lifetime: None,
        }
    }

    #[test]
    fn ids_tell_accounts_apart_and_passwords_nothing() {
        let user = |name: &str, password: &str| UpstreamConfig {
            username: Some(name.to_owned()),
            password: Some(Secret::new(password)),
            ..UpstreamConfig::default()
        };
        let id = CredentialId::of("r.io", &user("ci", "a"));
        assert_eq!(id, CredentialId::of("r.io", &user("ci", "b")));
        assert_ne!(id, CredentialId::of("r.io", &user("dev", "a")));
        assert_ne!(id, CredentialId::of("s.io", &user("ci", "a")));
        assert_eq!(id.as_str().len(), ID_DIGITS);
        let anonymous = CredentialId::of("r.io", &UpstreamConfig::default());
        assert!(anonymous.is_anonymous() && !id.is_anonymous());
        let json = serde_json::to_string(&id).expect("serializes");
        assert_eq!(
            serde_json::from_str::<CredentialId>(&json).expect("reads"),
            id
        );
    }

    #[tokio::test]
    async fn a_rotated_password_file_is_read_again() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("pass");
        let credentials = Credentials::File {
            username: "ci".to_owned(),
            path: path.clone(),
        };
        let missing = credentials.login().await.expect_err("no file");
        assert!(matches!(
            missing,
            LoginError::Credentials(CredentialError::File {
                kind: io::ErrorKind::NotFound,
                ..
            })
        ));
        for password in ["one", "two"] {
            std::fs::write(&path, format!("{password}\n")).expect("writes");
            let login = credentials.login().await.expect("reads").expect("a login");
            assert_eq!(decoded(&login), format!("ci:{password}"));
        }
    }

    #[tokio::test]
    async fn a_helper_gets_the_host_and_runs_once_until_it_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let config = script(
            folder.path(),
            r#"echo x >> "$0.runs"; test "$1" = get || exit 1
               printf '{"ServerURL":"x","Username":"%s","Secret":"s"}' "$(cat)""#,
        );
        let runs = folder.path().join("helper.runs");
        let credentials = Credentials::Exec(Helper::new(&config, "r.io:5000".to_owned()));
        for _ in 0..2 {
            let login = credentials.login().await.expect("runs").expect("a login");
            assert_eq!(decoded(&login), "r.io:5000:s");
        }
        assert_eq!(std::fs::read_to_string(&runs).expect("ran"), "x\n");
        assert!(credentials.handle_refused().await);
        credentials.login().await.expect("runs again");
        assert_eq!(std::fs::read_to_string(&runs).expect("ran"), "x\nx\n");
    }

    #[tokio::test]
    async fn a_lifetime_of_zero_runs_the_helper_every_time() {
        let folder = tempfile::tempdir().expect("folder");
        let body = r#"echo x >> "$0.runs"; echo '{"Username":"u","Secret":"s"}'"#;
        let config = ExecConfig {
            lifetime: Some(Duration::ZERO),
            ..script(folder.path(), body)
        };
        let helper = Helper::new(&config, String::new());
        for _ in 0..2 {
            helper.login().await.expect("runs");
        }
        let runs = std::fs::read_to_string(folder.path().join("helper.runs")).expect("ran");
        assert_eq!(runs, "x\nx\n");
    }

    #[tokio::test]
    async fn a_helper_that_fails_says_why_without_its_output() {
        let folder = tempfile::tempdir().expect("folder");
        let run = async |body: &str| {
            let config = script(folder.path(), body);
            let error = Helper::new(&config, String::new())
                .login()
                .await
                .expect_err("fails");
            let LoginError::Credentials(error) = error else {
                panic!("{error:?}");
            };
            assert!(!error.to_string().contains("hunter2"), "{error}");
            error
        };
        assert!(matches!(
            run("echo hunter2; exit 3").await,
            CredentialError::Failed { .. }
        ));
        assert!(matches!(
            run("echo hunter2").await,
            CredentialError::Malformed { .. }
        ));
        let none = ExecConfig {
            command: "/nonexistent".to_owned(),
            lifetime: None,
        };
        let error = Helper::new(&none, String::new())
            .login()
            .await
            .expect_err("fails");
        assert!(matches!(
            error,
            LoginError::Credentials(CredentialError::Start { .. })
        ));
    }
}
