//! Who may connect: both ends prove the key that is their name, within the handshake.
//!
//! TLS 1.3 with raw public keys (RFC 7250): there is no certificate, only the ed25519 key itself,
//! and a node is let in if its name is that of a current member. There is no resumption and no
//! early data, because both would let a removed member in without another look.

use std::sync::Arc;

use millrace_protocol::node_id::NodeId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use ring::hmac;
use rustls::CertificateError;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as provider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;

use super::error::BindError;
use super::handler::Members;
use super::metrics::{Metrics, Reject};
use super::raw_key::{self, Admit};
use crate::cluster::Identity;

/// The protocol and its version, as TLS names it; another version ends in the handshake.
const ALPN: &[u8] = b"millrace/2";

/// Name that is dialled. Nobody looks at it: a peer is recognised by its key.
pub(super) const SERVER_NAME: &str = "millrace";

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
        let key = raw_key::certified_key(identity).map_err(BindError::Tls)?;
        Ok(Self {
            me: identity.id(),
            key,
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
        let mut config =
            raw_key::server_config(self.provider.clone(), self.key.clone(), self.expect(None))
                .map_err(BindError::Tls)?;
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
        let mut config = raw_key::client_config(
            self.provider.clone(),
            self.key.clone(),
            self.expect(Some(peer)),
        )
        .map_err(BindError::Tls)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        QuicClientConfig::try_from(config).map_err(BindError::Suite)
    }

    fn expect(self: &Arc<Self>, peer: Option<NodeId>) -> Expect {
        Expect {
            gate: self.clone(),
            peer,
        }
    }
}

/// Lets any member in, or exactly one.
#[derive(Debug)]
struct Expect {
    gate: Arc<Gate>,
    peer: Option<NodeId>,
}

impl Admit for Expect {
    fn admit(&self, spki: &[u8]) -> Result<(), rustls::Error> {
        let gate = &self.gate;
        let shown = raw_key::node_id(spki);
        let admitted = shown
            .filter(|id| *id != gate.me && self.peer.is_none_or(|expected| expected == *id))
            .filter(|id| gate.members.view().member(id).is_some());
        if let Some(id) = admitted {
            tracing::trace!(peer.id = %id, "peer is a member");
            return Ok(());
        }
        let shown = shown.map(|id| id.short());
        tracing::warn!(peer.id = shown, "refused a node that is no member");
        gate.metrics.rejected(Reject::Stranger);
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

/// AES-128-GCM has hardware on every server and is the fastest there; ChaCha for the rest.
fn fast_suites_first() -> CryptoProvider {
    let mut provider = provider::default_provider();
    provider.cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
        provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider
}
