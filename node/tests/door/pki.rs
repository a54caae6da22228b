//! Certificates made for one test, and a TLS client that trusts them.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace::tls::{ClientAuth, Files, MinimumTls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An authority with a folder for what it signs.
pub(crate) struct Pki {
    pub(crate) folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key, as PEM.
pub(crate) struct Signed {
    pub(crate) certificate: String,
    pub(crate) key: String,
    der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("signed");
        let folder = TempDir::new().expect("a folder");
        Self { folder, authority }
    }

    /// Signs a certificate for `name`, with an end in this year.
    pub(crate) fn sign(&self, name: &str, until: i32) -> Signed {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.authority).expect("signed");
        Signed {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    /// Writes certificate and key of a listener.
    pub(crate) fn install(&self, signed: &Signed) {
        self.write("cert.pem", &signed.certificate);
        self.write("key.pem", &signed.key);
    }

    /// Writes a file in one step, as those who renew certificates do.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text).expect("written");
        fs::rename(new, self.path(name)).expect("renamed");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files of a listener that takes certificates of this authority from clients, if it is to.
    pub(crate) fn files(&self, clientauth: Option<ClientAuth>) -> Files {
        self.write("ca.pem", &self.authority.pem());
        Files {
            certificate: self.path("cert.pem"),
            key: self.path("key.pem"),
            clientcas: clientauth
                .map(|_| self.path("ca.pem"))
                .into_iter()
                .collect(),
            clientauth: clientauth.unwrap_or(ClientAuth::Require),
            minimum: MinimumTls::Tls12,
        }
    }

    /// Opens a connection that trusts this authority, by `versions`, with a certificate or without.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        versions: &[&'static rustls::SupportedProtocolVersion],
        own: Option<&Signed>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        self.greet(stream, versions, own).await
    }

    /// Begins TLS on a connection.
    pub(crate) async fn greet(
        &self,
        stream: TcpStream,
        versions: &[&'static rustls::SupportedProtocolVersion],
        own: Option<&Signed>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.authority.der().clone())
            .expect("an authority");
        let builder =
            ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots);
        let config = match own {
            Some(own) => {
                let key = PrivateKeyDer::try_from(own.key_der.clone()).expect("a key");
                builder
                    .with_client_auth_cert(vec![own.der.clone()], key)
                    .expect("a certificate")
            }
            None => builder.with_no_client_auth(),
        };
        let name = ServerName::try_from("mirror.test").expect("a name");
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    /// Sends a request by TLS 1.3 and returns all that comes.
    pub(crate) async fn ask(
        &self,
        address: SocketAddr,
        request: &[u8],
        own: Option<&Signed>,
    ) -> std::io::Result<String> {
        let mut stream = self
            .connect(address, &[&rustls::version::TLS13], own)
            .await?;
        talk(&mut stream, request).await
    }
}

/// Sends a request and reads to the end.
pub(crate) async fn talk(
    stream: &mut TlsStream<TcpStream>,
    request: &[u8],
) -> std::io::Result<String> {
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The certificate that a server shows.
pub(crate) fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().expect("a chain");
    chain[0].clone().into_owned()
}

impl Signed {
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }
}

/// Reads a file that a test broke, for its message.
pub(crate) fn shorten(path: &Path, text: &str) {
    fs::write(path, &text[..text.len() / 2]).expect("written");
}
