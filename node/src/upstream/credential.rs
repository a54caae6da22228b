//! Where the user and password for an upstream come from.
//!
//! A password file is read anew for each use and a helper (`helper`) is run again when its answer
//! expires or is refused, so that both can rotate. Where credentials may be sent is `confine`'s to
//! say.

mod helper;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use millrace_protocol::oci::{Algorithm, Digest};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use helper::Helper;

use super::config::UpstreamConfig;
use super::error::CredentialError;
use super::secret::Secret;
use super::shortage::Shortage;

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
    /// Takes what is known of a failure: that this node lacks something, or else `otherwise`.
    fn of(shortage: Option<Shortage>, otherwise: CredentialError) -> Self {
        shortage.map_or_else(|| otherwise.into(), Self::Shortage)
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
                let failed = |error: io::Error| {
                    let (path, kind) = (path.clone(), error.kind());
                    let otherwise = CredentialError::File { path, kind };
                    LoginError::of(Shortage::of(&error), otherwise)
                };
                let text = read_bounded(path).await.map_err(failed)?;
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
            Self::Exec(helper) => helper.forget().await,
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

#[cfg(test)]
mod tests {
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
}
