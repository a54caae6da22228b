//! Raw public keys as certificates (RFC 7250): a node's ed25519 key in the handshake of TLS 1.3.
//!
//! Knows the form of keys and proofs, and that both ends are checked alike. Who is let in is for
//! [`Admit`] to say. Public because tests and benchmarks speak to nodes, and measure them, with the
//! same handshake.

use std::fmt::Debug;
use std::sync::Arc;

use millrace_protocol::node_id::{NODE_ID_BYTES, NodeId};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring as provider;
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, PeerMisbehaved, ServerConfig,
    SignatureScheme,
};

use crate::cluster::Identity;

/// What stands before an ed25519 key in a `SubjectPublicKeyInfo`. Source: RFC 8410, section 4.
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Says who is let in.
pub trait Admit: Debug + Send + Sync + 'static {
    /// Lets the other end in by the key that it shows, a `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// What the handshake ends with.
    fn admit(&self, spki: &[u8]) -> Result<(), rustls::Error>;
}

/// Returns what a node shows of itself.
///
/// # Errors
/// The library does not take the key.
pub fn certified_key(identity: &Identity) -> Result<Arc<CertifiedKey>, rustls::Error> {
    let key = provider::sign::any_eddsa_type(&identity.pkcs8())?;
    let spki = [&SPKI_PREFIX[..], identity.id().as_bytes()].concat();
    // A raw key takes the place of the certificate.
    let key = CertifiedKey::new(vec![CertificateDer::from(spki)], key);
    Ok(Arc::new(key))
}

/// Returns the name of the node that showed this key.
pub fn node_id(spki: &[u8]) -> Option<NodeId> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    let key: [u8; NODE_ID_BYTES] = key.try_into().ok()?;
    Some(NodeId::new(key))
}

/// Returns the settings of an end that is connected to.
///
/// # Errors
/// The provider has no suite of TLS 1.3.
pub fn server_config(
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
    admit: impl Admit,
) -> Result<ServerConfig, rustls::Error> {
    Ok(ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Verifier(admit)))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key))))
}

/// Returns the settings of an end that connects.
///
/// # Errors
/// The provider has no suite of TLS 1.3.
pub fn client_config(
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
    admit: impl Admit,
) -> Result<ClientConfig, rustls::Error> {
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier(admit)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key))))
}

/// Checks that the other end has the key that it shows, and asks whether it is let in.
#[derive(Debug)]
struct Verifier<A>(A);

/// Checks the proof that the other end has the key that it shows.
fn verify_proof(
    message: &[u8],
    spki: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = provider::default_provider().signature_verification_algorithms;
    let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
    verify_tls13_signature_with_raw_key(message, &spki, signature, &algorithms)
}

/// What the library's traits for the two ends want alike; written once, so that neither end comes
/// to be checked less than the other.
macro_rules! raw_keys_only {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            // TLS 1.2 is not spoken, so its signatures are never asked for.
            Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_proof(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl<A: Admit> ServerCertVerifier for Verifier<A> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.admit(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    raw_keys_only!();
}

impl<A: Admit> ClientCertVerifier for Verifier<A> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.admit(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    raw_keys_only!();
}
