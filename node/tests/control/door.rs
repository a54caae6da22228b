//! Both ends of an admission, as SPEC.md "Admission" has it; nothing of them is the node's own code.
//!
//! `Door` is the admission of a connection of libp2p. `Wire` is a connection behind noise on which a
//! test says what it likes instead.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use libp2p::futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::identity::{Keypair, PublicKey};
use libp2p::tcp::tokio::TcpStream;
use libp2p::{PeerId, noise, yamux};
use millrace_protocol::node_id::NodeId;
use ring::hmac;

use super::host::PATIENCE;

/// What it says of its run.
pub(super) const INSTANCE: u64 = 77;

/// The exchange, by the name that both ends agree on before it.
const ADMISSION: &str = "/millrace/admission/1";

const DIALLER: &[u8] = b"millrace admission 1: dialler";
const LISTENER: &[u8] = b"millrace admission 1: listener";

/// This side's random number, which is none.
const MINE: [u8; 32] = [5; 32];

/// What a listening end answers to proofs that it does not check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Its own proof, under the secret that it has.
    Proof,
    /// The proof that it was given.
    Reflection,
    /// Its own proof, for a secret that was not offered.
    Beyond,
}

/// One end of an admission.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) me: NodeId,
    pub(super) node: NodeId,
    pub(super) key: hmac::Key,
    pub(super) answer: Answer,
}

type Opening<M> = Pin<Box<dyn Future<Output = io::Result<M>> + Send>>;

impl UpgradeInfo for Door {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(ADMISSION)
    }
}

impl<C> InboundConnectionUpgrade<C> for Door
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = yamux::Muxer<C>;
    type Error = io::Error;
    type Future = Opening<Self::Output>;

    fn upgrade_inbound(self, mut io: C, info: Self::Info) -> Self::Future {
        Box::pin(async move {
            self.believe(&mut io).await?;
            yamux::Config::default().upgrade_inbound(io, info).await
        })
    }
}

impl<C> OutboundConnectionUpgrade<C> for Door
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = yamux::Muxer<C>;
    type Error = io::Error;
    type Future = Opening<Self::Output>;

    fn upgrade_outbound(self, mut io: C, info: Self::Info) -> Self::Future {
        Box::pin(async move {
            self.prove(&mut io).await?;
            yamux::Config::default().upgrade_outbound(io, info).await
        })
    }
}

impl Door {
    async fn prove<C: AsyncRead + AsyncWrite + Unpin>(&self, io: &mut C) -> io::Result<()> {
        let theirs = exchange(io).await?;
        let (me, node) = ((self.me, MINE), (self.node, theirs));
        say(io, &proofs(&[proof(&self.key, DIALLER, me, node)])).await?;
        // Its index, its instance and its proof, which a rogue believes.
        io.read_exact(&mut [0; 1 + 8 + 32]).await
    }

    /// Takes any proof for a good one.
    async fn believe<C: AsyncRead + AsyncWrite + Unpin>(&self, io: &mut C) -> io::Result<()> {
        let theirs = exchange(io).await?;
        let mut head = [0; 8 + 1];
        io.read_exact(&mut head).await?;
        let mut given = vec![0; usize::from(head[8]) * 32];
        io.read_exact(&mut given).await?;
        let own = proof(&self.key, LISTENER, (self.node, theirs), (self.me, MINE));
        let (index, instance, proof) = match self.answer {
            Answer::Proof => (0, INSTANCE.to_be_bytes().to_vec(), own),
            Answer::Reflection => (0, head[..8].to_vec(), given[..32].to_vec()),
            Answer::Beyond => (head[8], INSTANCE.to_be_bytes().to_vec(), own),
        };
        say(io, &[&[index], &instance[..], &proof[..]].concat()).await
    }
}

/// A connection behind noise, at which the gate of the node that was dialled comes next.
pub(crate) struct Wire {
    io: noise::Output<TcpStream>,
    me: NodeId,
    node: NodeId,
}

impl Wire {
    /// Dials the node at `address`.
    pub(crate) async fn dial(address: SocketAddr, keys: &Keypair) -> Self {
        let stream = tokio::net::TcpStream::connect(address).await;
        let mut stream = TcpStream(stream.expect("connected"));
        settle(&mut stream, "/noise").await.expect("noise");
        let noise = noise::Config::new(keys).expect("keys");
        let shaken = noise.upgrade_outbound(stream, "/noise").await;
        let (node, mut io) = shaken.expect("a handshake");
        settle(&mut io, ADMISSION).await.expect("admission");
        Self {
            io,
            me: node_id(&keys.public().to_peer_id()),
            node: node_id(&node),
        }
    }

    /// Exchanges random numbers, and returns what a node of this secret would prove then.
    pub(crate) async fn proof(&mut self, secret: &str) -> Vec<u8> {
        let theirs = exchange(&mut self.io).await.expect("a number");
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        proof(&key, DIALLER, (self.me, MINE), (self.node, theirs))
    }

    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        say(&mut self.io, bytes).await.expect("said");
    }

    /// Ends this side, and leaves the other open.
    pub(crate) async fn end(&mut self) {
        self.io.close().await.expect("ended");
    }

    /// Returns what the node says until it closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, self.io.read_to_end(&mut said));
        match closed.await.expect("the node closes") {
            Ok(_) => {}
            // It has closed while something was on its way to it.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        said
    }

    /// Returns the next bytes that the node says.
    pub(crate) async fn hear<const BYTES: usize>(&mut self) -> [u8; BYTES] {
        let mut said = [0; BYTES];
        self.io.read_exact(&mut said).await.expect("said");
        said
    }
}

/// Returns what a dialling end says behind the numbers, with these proofs.
pub(crate) fn proofs(proofs: &[Vec<u8>]) -> Vec<u8> {
    let count = u8::try_from(proofs.len()).expect("a byte");
    let head = [&INSTANCE.to_be_bytes()[..], &[count]].concat();
    [head, proofs.concat()].concat()
}

pub(super) fn node_id(peer: &PeerId) -> NodeId {
    let key = PublicKey::try_decode_protobuf(peer.as_ref().digest()).expect("a key");
    NodeId::new(key.try_into_ed25519().expect("an ed25519 key").to_bytes())
}

/// Agrees with a listener on the protocol that is spoken next: multistream-select 1.0.
async fn settle<C: AsyncRead + AsyncWrite + Unpin>(io: &mut C, protocol: &str) -> io::Result<()> {
    let line = |text: &str| {
        let length = u8::try_from(text.len() + 1).expect("short");
        [&[length], text.as_bytes(), b"\n"].concat()
    };
    let asked = [line("/multistream/1.0.0"), line(protocol)].concat();
    say(io, &asked).await?;
    let mut answered = vec![0; asked.len()];
    io.read_exact(&mut answered).await?;
    match answered == asked {
        true => Ok(()),
        false => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Exchanges random numbers, and returns the other's.
async fn exchange<C: AsyncRead + AsyncWrite + Unpin>(io: &mut C) -> io::Result<[u8; 32]> {
    say(io, &MINE).await?;
    let mut theirs = [0; 32];
    io.read_exact(&mut theirs).await?;
    Ok(theirs)
}

async fn say<C: AsyncWrite + Unpin>(io: &mut C, bytes: &[u8]) -> io::Result<()> {
    io.write_all(bytes).await?;
    io.flush().await
}

/// Makes the proof of one end of an exchange.
fn proof(
    key: &hmac::Key,
    side: &[u8],
    dialler: (NodeId, [u8; 32]),
    listener: (NodeId, [u8; 32]),
) -> Vec<u8> {
    let mut statement = side.to_vec();
    for (id, nonce) in [dialler, listener] {
        statement.extend(id.as_bytes());
        statement.extend(nonce);
    }
    statement.extend(INSTANCE.to_be_bytes());
    hmac::sign(key, &statement).as_ref().to_vec()
}
