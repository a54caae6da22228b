//! A peer without manners: the node's key and QUIC, but whatever bytes a test likes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use millrace::cluster::Identity;
use millrace_protocol::node_id::NodeId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::{default_provider, sign::any_eddsa_type};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};

/// What stands before an ed25519 key. Source: RFC 8410, section 4.
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

pub(crate) struct Raw {
    pub(crate) endpoint: Endpoint,
    pub(crate) id: NodeId,
    key: Arc<CertifiedKey>,
    _folder: tempfile::TempDir,
}

impl Raw {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let identity = Identity::open(folder.path()).expect("identity");
        Self::with(&identity, folder)
    }

    fn with(identity: &Identity, folder: tempfile::TempDir) -> Self {
        let spki = [&SPKI_PREFIX[..], identity.id().as_bytes()].concat();
        let key = any_eddsa_type(&identity.pkcs8()).expect("ed25519");
        let key = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key));
        let mut tls = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(Arc::new(Anybody))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(
                key.clone(),
            )));
        tls.alpn_protocols = vec![b"millrace/1".to_vec()];
        let crypto = QuicServerConfig::try_from(tls).expect("a suite");
        let server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            endpoint: Endpoint::server(server, address).expect("binds"),
            id: identity.id(),
            key,
            _folder: folder,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().expect("bound")
    }

    /// Connects as a node of this version, or of another one.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        alpn: &[u8],
    ) -> Result<Connection, quinn::ConnectionError> {
        let mut tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                self.key.clone(),
            )));
        tls.alpn_protocols = vec![alpn.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).expect("a suite");
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let connecting = self.endpoint.connect_with(config, address, "raw");
        connecting.expect("an address").await
    }

    /// Accepts one connection and the first stream on it.
    pub(crate) async fn accept(&self) -> (Connection, SendStream, RecvStream) {
        let incoming = self.endpoint.accept().await.expect("open");
        let connection = incoming.await.expect("connected");
        let (send, receive) = connection.accept_bi().await.expect("a stream");
        (connection, send, receive)
    }
}

/// Lets everybody in.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
