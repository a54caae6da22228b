//! An authority and what it signs, made by `openssl` for one test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::component;
use crate::process::run;

/// Making a key takes milliseconds.
const OPENSSL_LIMIT: Duration = Duration::from_secs(30);

/// An authority with a folder of its own.
#[derive(Debug)]
pub struct Pki {
    folder: TempDir,
}

impl Pki {
    /// Makes an authority.
    ///
    /// # Errors
    /// When `openssl` is missing or fails.
    pub async fn create() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("millrace-pki-").tempdir()?;
        let pki = Self { folder };
        let mut command = request(
            &pki.path("ca.crt"),
            &pki.path("ca.key"),
            "the authority of a test",
        )?;
        command.args(["-addext", "keyUsage=critical,keyCertSign"]);
        command.args(["-addext", "basicConstraints=critical,CA:TRUE"]);
        run(&command, OPENSSL_LIMIT).await?;
        Ok(pki)
    }

    /// Returns the authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// Signs a certificate with this common name and these alternative names, such as
    /// `IP:127.0.0.1`; returns its file and its key's.
    ///
    /// # Errors
    /// When `openssl` fails.
    pub async fn sign(&self, name: &str, alternative: &str) -> Result<(PathBuf, PathBuf)> {
        let (certificate, key) = (
            self.path(&format!("{name}.crt")),
            self.path(&format!("{name}.key")),
        );
        let mut command = request(&certificate, &key, name)?;
        command
            .arg("-CA")
            .arg(self.ca())
            .arg("-CAkey")
            .arg(self.path("ca.key"));
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        command.args(["-addext", &format!("subjectAltName={alternative}")]);
        run(&command, OPENSSL_LIMIT).await?;
        Ok((certificate, key))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A command that makes a key and a certificate of two days.
fn request(certificate: &Path, key: &Path, name: &str) -> Result<Command> {
    let mut command = Command::new(component::find("openssl")?);
    command.args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]);
    command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    command
        .args(["-config", "/dev/null", "-subj"])
        .arg(format!("/CN={name}"));
    command.arg("-out").arg(certificate).arg("-keyout").arg(key);
    Ok(command)
}
