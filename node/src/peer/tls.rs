//! Who may connect: both ends prove the key that is their name, within the handshake.
//!
//! TLS 1.3 with raw public keys (RFC 7250): there is no certificate, only the ed25519 key itself,
//! and a node is let in if its name is that of a current member. There is no resumption and no
//! early data, because both would let a removed member in without another look.

use std::sync::Arc;

use millrace_protocol::node_id::{NODE_ID_BYTES, NodeId};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use ring::hmac;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::ring as provider;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, PeerMisbehaved,
    ServerConfig, SignatureScheme,
};

use super::error::BindError;
use super::handler::Members;
use super::metrics::{Metrics, Reject};
use crate::cluster::Identity;

/// The protocol and its version, as TLS names it; another version ends in the handshake.
const ALPN: &[u8] = b"millrace/1";

/// Name that is dialled. Nobody looks at it: a peer is recognised by its key.
pub(super) const SERVER_NAME: &str = "millrace";

/// What stands before an ed25519 key in a `SubjectPublicKeyInfo`. Source: RFC 8410, section 4.
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// What this node shows and whom it lets in; makes the TLS settings of both directions.
#[derive(Debug)]
pub(super) struct Gate {
    me: NodeId,
    key: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    members: Arc<dyn Members>,
    metrics: Metrics,
}

impl Gate {
    /// Prepares the node's key.
    ///
    /// # Errors
    /// [`BindError::Tls`] when the library does not take it.
    pub(super) fn new(
        identity: &Identity,
        members: Arc<dyn Members>,
        metrics: Metrics,
    ) -> Result<Self, BindError> {
        let key = provider::sign::any_eddsa_type(&identity.pkcs8()).map_err(BindError::Tls)?;
        let spki = [&SPKI_PREFIX[..], identity.id().as_bytes()].concat();
        // A raw key takes the place of the certificate.
        let key = CertifiedKey::new(vec![CertificateDer::from(spki)], key);
        Ok(Self {
            me: identity.id(),
            key: Arc::new(key),
            provider: Arc::new(fast_suites_first()),
            members,
            metrics,
        })
    }

    /// Returns the settings for everybody who connects.
    ///
    /// # Errors
    /// [`BindError`], which no build of this program meets.
    pub(super) fn server(self: &Arc<Self>) -> Result<QuicServerConfig, BindError> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(BindError::Tls)?
            .with_client_cert_verifier(Arc::new(Expect {
                gate: self.clone(),
                peer: None,
            }))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(
                self.key.clone(),
            )));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        QuicServerConfig::try_from(config).map_err(BindError::Suite)
    }

    /// Returns the settings for connecting to one peer, and nobody else in its place.
    ///
    /// # Errors
    /// [`BindError`], which no build of this program meets.
    pub(super) fn client(self: &Arc<Self>, peer: NodeId) -> Result<QuicClientConfig, BindError> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(BindError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Expect {
                gate: self.clone(),
                peer: Some(peer),
            }))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                self.key.clone(),
            )));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        QuicClientConfig::try_from(config).map_err(BindError::Suite)
    }

    /// Lets a node in, or not.
    fn admit(&self, shown: &[u8], expected: Option<NodeId>) -> Result<(), rustls::Error> {
        let admitted = node_id(shown)
            .filter(|id| *id != self.me && expected.is_none_or(|expected| expected == *id))
            .filter(|id| self.members.view().member(id).is_some());
        if let Some(id) = admitted {
            tracing::trace!(peer.id = %id, "peer is a member");
            return Ok(());
        }
        let shown = node_id(shown).map(|id| id.short());
        tracing::warn!(peer.id = shown, "refused a node that is no member");
        self.metrics.rejected(Reject::Stranger);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }
}

/// Returns the key by which the endpoint tells peers that it has forgotten a connection.
///
/// It outlives a restart, so that a peer of the process before notices at once.
pub(super) fn reset_key(identity: &Identity) -> hmac::Key {
    let seed = hmac::Key::new(hmac::HMAC_SHA256, identity.pkcs8().secret_pkcs8_der());
    let derived = hmac::sign(&seed, b"millrace/1 stateless reset");
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

/// Returns the name of the node that showed this key.
pub(super) fn node_id(spki: &[u8]) -> Option<NodeId> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    let key: [u8; NODE_ID_BYTES] = key.try_into().ok()?;
    Some(NodeId::new(key))
}

/// AES-128-GCM has hardware on every server and is the fastest there; ChaCha for the rest.
fn fast_suites_first() -> CryptoProvider {
    let mut provider = provider::default_provider();
    provider.cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
        provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider
}

/// Checks what the other end shows: any member, or exactly one.
#[derive(Debug)]
struct Expect {
    gate: Arc<Gate>,
    peer: Option<NodeId>,
}

impl Expect {
    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.gate.provider.signature_verification_algorithms
    }

    fn verify(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signature, self.algorithms())
    }
}

/// TLS 1.2 is not spoken, so its signatures are never asked for.
fn no_tls12() -> rustls::Error {
    PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()
}

impl ServerCertVerifier for Expect {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.gate.admit(end_entity, self.peer)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Expect {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.gate.admit(end_entity, self.peer)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
