//! From files to what connections are accepted with.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use millrace_protocol::oci::{Algorithm, Digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::certificate;
use super::config::{ClientAuth, MinimumTls};
use super::error::TlsError;

/// Largest file that is read, in bytes: a bundle of all public authorities has 250 KB.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// What is spoken inside: a body that breaks must end with FIN, for which HTTP/2 has no word.
const HTTP1: &[u8] = b"http/1.1";

/// Which files, and what is done with them.
#[derive(Clone, Debug)]
pub struct Files {
    /// The chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// Authorities of client certificates; empty asks for none.
    pub clientcas: Vec<PathBuf>,
    /// What is asked of clients, if there are authorities.
    pub clientauth: ClientAuth,
    /// Oldest version that is spoken.
    pub minimum: MinimumTls,
}

/// The bytes of the files; the key's are in here, so it is not printed.
pub(super) struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    clientcas: Vec<Vec<u8>>,
}

/// Tells contents from each other without keeping them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(String);

/// What connections are accepted with.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) server: Arc<ServerConfig>,
    pub(super) fingerprint: Fingerprint,
    /// The first end among the certificates of the chain.
    pub(super) not_after_unix_seconds: u64,
    /// How often the files were taken over before.
    pub(super) generation: u64,
}

impl Contents {
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let files = [&self.certificate, &self.key]
            .into_iter()
            .chain(&self.clientcas);
        let digests = files.map(|bytes| Digest::of(Algorithm::Sha256, bytes).to_string());
        Fingerprint(digests.collect::<Vec<_>>().join(" "))
    }
}

impl Fingerprint {
    /// Stands for contents that cannot be read for this reason.
    pub(super) fn of_error(error: &TlsError) -> Self {
        Self(error.to_string())
    }
}

impl Files {
    /// Reads the files; blocks.
    pub(super) fn read(&self) -> Result<Contents, TlsError> {
        let clientcas = self.clientcas.iter().map(|path| read(path));
        Ok(Contents {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            clientcas: clientcas.collect::<Result<_, _>>()?,
        })
    }

    /// Makes what connections are accepted with.
    pub(super) fn load(&self, contents: &Contents, now: SystemTime) -> Result<Loaded, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(&self.certificate, &contents.certificate)?;
        let validity = certificate::validity(&self.certificate, &chain, now)?;
        let fingerprint = contents.fingerprint();
        let key =
            PrivateKeyDer::from_pem_slice(&contents.key).map_err(|source| TlsError::Damaged {
                path: self.key.clone(),
                source,
            })?;
        let certified = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|source| self.key_error(source))?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions(self.minimum))
            .map_err(|source| TlsError::Setup { source })?;
        let builder = match self.verifier(contents)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        server.alpn_protocols = vec![HTTP1.to_vec()];
        Ok(Loaded {
            server: Arc::new(server),
            fingerprint,
            not_after_unix_seconds: validity,
            generation: 0,
        })
    }

    fn key_error(&self, source: rustls::Error) -> TlsError {
        match source {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
            },
            source => TlsError::Key {
                path: self.key.clone(),
                source,
            },
        }
    }

    fn verifier(
        &self,
        contents: &Contents,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        if self.clientcas.is_empty() {
            return Ok(None);
        }
        let mut roots = RootCertStore::empty();
        for (path, bytes) in self.clientcas.iter().zip(&contents.clientcas) {
            for authority in certificates(path, bytes)? {
                roots.add(authority).map_err(|source| TlsError::Authority {
                    path: path.clone(),
                    source,
                })?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = match self.clientauth {
            ClientAuth::Require => builder,
            ClientAuth::IfGiven => builder.allow_unauthenticated(),
        };
        let verifier = builder.build();
        verifier
            .map(Some)
            .map_err(|source| TlsError::Verifier { source })
    }
}

fn versions(minimum: MinimumTls) -> &'static [&'static SupportedProtocolVersion] {
    static FROM_1_2: [&SupportedProtocolVersion; 2] =
        [&rustls::version::TLS13, &rustls::version::TLS12];
    match minimum {
        MinimumTls::Tls12 => &FROM_1_2,
        MinimumTls::Tls13 => &FROM_1_2[..1],
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let error = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(error)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(error)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(TlsError::TooLarge {
            path: path.to_owned(),
            limit_bytes: MAX_FILE_BYTES,
        });
    }
    Ok(bytes)
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let certificates = read.map_err(|source| TlsError::Damaged {
        path: path.to_owned(),
        source,
    })?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate {
            path: path.to_owned(),
        });
    }
    Ok(certificates)
}
