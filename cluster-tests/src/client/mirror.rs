//! Where a client is sent, and what it shows there.

use std::path::PathBuf;

use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::upstream::Login;

/// A mirror as its users configure it.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// `host:port[/path]`.
    pub location: String,
    /// The authority that signed the mirror's certificate; without one it is plain HTTP.
    pub ca: Option<PathBuf>,
    /// The client's own certificate and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// What the client logs in with.
    pub login: Option<Login>,
}

impl Mirror {
    /// A mirror with nothing but an address.
    pub fn plain(location: &str) -> Self {
        Self {
            location: location.to_owned(),
            ca: None,
            certificate: None,
            login: None,
        }
    }

    /// Returns `host:port`.
    pub(super) fn host(&self) -> &str {
        let location = &self.location;
        location.split_once('/').map_or(location, |(host, _)| host)
    }

    /// Returns the URL of the location.
    pub(super) fn url(&self) -> String {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.location)
    }

    /// Returns name and password as `Authorization: Basic` has them.
    pub(super) fn basic(&self) -> Option<String> {
        let Login { user, password } = self.login.as_ref()?;
        Some(BASE64_STANDARD.encode(format!("{user}:{password}")))
    }

    /// Fills a folder such as `certs.d/host:port` of docker and of the podman family.
    pub(super) fn fill(&self, folder: &std::path::Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        if let Some(ca) = &self.ca {
            std::fs::copy(ca, folder.join("ca.crt"))?;
        }
        if let Some((certificate, key)) = &self.certificate {
            std::fs::copy(certificate, folder.join("client.cert"))?;
            std::fs::copy(key, folder.join("client.key"))?;
        }
        Ok(())
    }
}

impl From<&str> for Mirror {
    fn from(location: &str) -> Self {
        Self::plain(location)
    }
}

impl From<&String> for Mirror {
    fn from(location: &String) -> Self {
        Self::plain(location)
    }
}
