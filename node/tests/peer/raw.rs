//! A peer without manners: the node's key and QUIC, but whatever bytes a test likes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use millrace::cluster::Identity;
use millrace::peer::raw_key::{self, Admit};
use millrace_protocol::node_id::NodeId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::crypto::ring::default_provider;
use rustls::sign::CertifiedKey;

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
        let key = raw_key::certified_key(identity).expect("ed25519");
        let provider = Arc::new(default_provider());
        let tls = raw_key::server_config(provider, key.clone(), Anybody);
        let mut tls = tls.expect("TLS 1.3");
        tls.alpn_protocols = vec![b"millrace/2".to_vec()];
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
        let provider = Arc::new(default_provider());
        let tls = raw_key::client_config(provider, self.key.clone(), Anybody);
        let mut tls = tls.expect("TLS 1.3");
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

impl Admit for Anybody {
    fn admit(&self, _spki: &[u8]) -> Result<(), rustls::Error> {
        Ok(())
    }
}
