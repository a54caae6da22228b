//! Settings of authentication: `auth`.

use std::path::PathBuf;

use serde::Deserialize;

/// Who may use `http.addr`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// A file of users; absent means that nobody is asked for a password.
    pub htpasswd: Option<HtpasswdConfig>,
}

/// A file of users as `htpasswd -B` writes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HtpasswdConfig {
    /// What clients are told that they log in to.
    pub realm: String,
    /// The file; read anew when it changes.
    pub path: PathBuf,
}
