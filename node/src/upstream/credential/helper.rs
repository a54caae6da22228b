//! A docker credential helper: run, asked for one host, and its answer kept for as long as it lasts.
//!
//! What it prints may be a secret, so none of it goes into an error. Whether it is asked at all, and
//! where its answer may be sent, is not known here.
//! Source of its protocol: docker-credential-helpers, as the Docker registry's `proxy.exec` uses it.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::Instant;

use super::super::config::ExecConfig;
use super::super::error::CredentialError;
use super::super::secret::Secret;
use super::super::shortage::Shortage;
use super::{Login, LoginError, MAX_SECRET_BYTES};

/// How long a helper may run: it may have to ask a cloud, but a client is waiting.
const HELPER_PATIENCE: Duration = Duration::from_secs(10);

/// A docker credential helper and its last answer.
#[derive(Debug)]
pub(in crate::upstream) struct Helper {
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
    /// `host` is the one that the helper is asked about.
    pub(super) fn new(config: &ExecConfig, host: String) -> Self {
        let command = config.command.as_str().into();
        Self {
            command,
            host,
            lifetime: config.lifetime,
            cached: tokio::sync::Mutex::default(),
        }
    }

    /// Returns its last answer while that lasts, else runs it.
    ///
    /// # Errors
    /// [`LoginError`] when it cannot be run or gives none.
    /// # Cancel safety
    /// Dropping the future kills a helper that it runs.
    pub(super) async fn login(&self) -> Result<Login, LoginError> {
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

    /// Forgets its last answer, which was refused; returns whether there was one.
    pub(super) async fn forget(&self) -> bool {
        self.cached.lock().await.take().is_some()
    }

    /// Runs `<command> get` with the host on its standard input.
    async fn run(&self) -> Result<Login, LoginError> {
        let start = |error: io::Error| {
            let (command, kind) = (self.command.clone(), error.kind());
            let otherwise = CredentialError::Start { command, kind };
            LoginError::of(Shortage::of_start(&error), otherwise)
        };
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

    #[tokio::test]
    async fn a_helper_gets_the_host_and_runs_once_until_it_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let config = script(
            folder.path(),
            r#"echo x >> "$0.runs"; test "$1" = get || exit 1
               printf '{"ServerURL":"x","Username":"%s","Secret":"s"}' "$(cat)""#,
        );
        let runs = folder.path().join("helper.runs");
        let helper = Helper::new(&config, "r.io:5000".to_owned());
        for _ in 0..2 {
            let login = helper.login().await.expect("runs");
            assert_eq!(
                (&*login.username, login.password.reveal()),
                ("r.io:5000", "s")
            );
        }
        assert_eq!(std::fs::read_to_string(&runs).expect("ran"), "x\n");
        assert!(helper.forget().await);
        helper.login().await.expect("runs again");
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
