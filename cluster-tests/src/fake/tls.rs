//! A certificate for one test run, and TLS with it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::component;
use crate::process::run;

/// The certificate is its own authority, but not one for others.
const EXTENSIONS: [&str; 2] = [
    "subjectAltName=IP:127.0.0.1",
    "basicConstraints=critical,CA:FALSE",
];

/// TLS of a fake.
#[derive(Clone)]
pub(super) struct Tls {
    acceptor: TlsAcceptor,
    certificate: PathBuf,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = formatter.debug_struct("Tls");
        debug.field("certificate", &self.certificate);
        debug.finish_non_exhaustive()
    }
}

impl Tls {
    /// Makes a key and a certificate in `folder`.
    pub(super) async fn generate(folder: &Path) -> Result<Self> {
        let (certificate, key) = (folder.join("fake.crt"), folder.join("fake.key"));
        let mut command = Command::new(component::find("openssl")?);
        command.args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]);
        command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        command.args(["-config", "/dev/null", "-subj", "/CN=fake"]);
        for extension in EXTENSIONS {
            command.args(["-addext", extension]);
        }
        command
            .arg("-out")
            .arg(&certificate)
            .arg("-keyout")
            .arg(&key);
        run(&command, Duration::from_secs(30)).await?;
        let chain = vec![CertificateDer::from_pem_file(&certificate)?];
        let key = PrivateKeyDer::from_pem_file(&key)?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("the certificate that openssl made")?;
        Ok(Self {
            acceptor: Arc::new(config).into(),
            certificate,
        })
    }

    pub(super) fn certificate(&self) -> &Path {
        &self.certificate
    }

    pub(super) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }
}
