//! A member that has been let in and says what a test lets it say.
//!
//! It comes in as SPEC.md "Admission" has it and speaks behind the gate in raw bytes; nothing of it is
//! the node's own code. It dials one node, and nobody can dial it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use libp2p::core::Transport as _;
use libp2p::core::upgrade::{
    InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo, Version,
};
use libp2p::futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _,
};
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity};
use libp2p::identity::{Keypair, PublicKey};
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::request_response::{self, Message, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, Swarm, noise, swarm, tcp, yamux};
use millrace_protocol::membership::{Announcement, Greeting, Presence, decode};
use millrace_protocol::node_id::NodeId;
use ring::hmac;

use super::host::PATIENCE;

/// Topics of SPEC.md.
pub(crate) const MEMBERS: &str = "millrace/members/1";
pub(crate) const BUDGETS: &str = "millrace/budgets/1";

/// What it says of its run.
const INSTANCE: u64 = 77;

/// Announcements that wait to leave, at most.
const QUEUE: usize = 20_000;

/// The member.
pub(crate) struct Rogue {
    pub(crate) id: NodeId,
    node: PeerId,
    sequence: u64,
    swarm: Swarm<Speech>,
}

#[derive(NetworkBehaviour)]
struct Speech {
    gossip: gossipsub::Behaviour,
    greetings: request_response::Behaviour<Raw>,
    /// Bytes where the other end expects gossip.
    noise: request_response::Behaviour<Raw>,
}

impl Rogue {
    /// Is let in by the node at `address`.
    pub(crate) async fn enter(address: SocketAddr, secret: &str) -> Self {
        let keys = Keypair::generate_ed25519();
        let mut swarm = swarm_of(&keys, secret);
        let to = Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()));
        swarm.dial(to).expect("dialled");
        let node = loop {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { peer_id, .. } => break peer_id,
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                _ => {}
            }
        };
        let id = node_id(&keys.public().to_peer_id());
        Self {
            id,
            node,
            sequence: 0,
            swarm,
        }
    }

    /// Returns what a sound member would say next of itself.
    pub(crate) fn announcement(&mut self) -> Announcement {
        self.sequence += 1;
        Announcement {
            generation: 1,
            sequence: self.sequence,
            instance: INSTANCE,
            presence: Presence::Here,
            zone: "default".to_owned(),
            // Nobody listens there.
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 1))],
            weight: 0,
            version: "0.1.0".to_owned(),
            wire_version: millrace_protocol::wire::frame::VERSION,
            load: 0,
            placement: 0,
            denied: Vec::new(),
        }
    }

    /// Returns what a sound member would greet with.
    pub(crate) fn greeting(&mut self) -> Greeting {
        Greeting {
            announcement: self.announcement(),
            you: None,
            contacts: Vec::new(),
        }
    }

    /// Sends `bytes` as a greeting; returns the node's, if it answers.
    pub(crate) async fn greet(&mut self, bytes: Vec<u8>) -> Option<Greeting> {
        let node = self.node;
        let greetings = &mut self.swarm.behaviour_mut().greetings;
        let sent = greetings.send_request(&node, bytes);
        loop {
            let SwarmEvent::Behaviour(SpeechEvent::Greetings(event)) = self.next().await else {
                continue;
            };
            match event {
                request_response::Event::Message {
                    message:
                        Message::Response {
                            request_id,
                            response,
                        },
                    ..
                } if request_id == sent => return decode(&response).ok(),
                request_response::Event::OutboundFailure { request_id, .. }
                    if request_id == sent =>
                {
                    return None;
                }
                _ => {}
            }
        }
    }

    /// Gossips `bytes`, as soon as there is room for them and somebody who listens.
    pub(crate) async fn gossip(&mut self, topic: &str, bytes: Vec<u8>) {
        let start = Instant::now();
        let topic = IdentTopic::new(topic);
        loop {
            let gossip = &mut self.swarm.behaviour_mut().gossip;
            let Err(error) = gossip.publish(topic.clone(), bytes.clone()) else {
                return;
            };
            assert!(start.elapsed() < PATIENCE, "{error}");
            let turn = tokio::time::timeout(Duration::from_millis(10), self.next());
            let _elapsed = turn.await;
        }
    }

    /// Sends bytes where the node expects the frames of gossip.
    pub(crate) fn make_noise(&mut self, bytes: Vec<u8>) {
        let node = self.node;
        self.swarm.behaviour_mut().noise.send_request(&node, bytes);
    }

    /// Goes on speaking and listening until `done`.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(
                start.elapsed() < PATIENCE,
                "{what}: not within {PATIENCE:?}"
            );
            let turn = tokio::time::timeout(Duration::from_millis(10), self.next());
            let _elapsed = turn.await;
        }
    }

    async fn next(&mut self) -> SwarmEvent<SpeechEvent> {
        self.swarm.select_next_some().await
    }
}

fn swarm_of(keys: &Keypair, secret: &str) -> Swarm<Speech> {
    let (me, key) = (
        node_id(&keys.public().to_peer_id()),
        hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
    );
    let transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1)
        .authenticate(noise::Config::new(keys).expect("keys"))
        .multiplex_ext(move |peer, _| Door {
            me,
            node: node_id(peer),
            key: key.clone(),
        })
        .boxed();
    let config = swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(3600));
    Swarm::new(transport, speech(keys), keys.public().to_peer_id(), config)
}

fn speech(keys: &Keypair) -> Speech {
    let config = gossipsub::ConfigBuilder::default()
        .max_transmit_size(1 << 20)
        .connection_handler_queue_len(QUEUE)
        .publish_queue_duration(PATIENCE)
        .flood_publish(true)
        .build()
        .expect("a configuration");
    let signed = MessageAuthenticity::Signed(keys.clone());
    let mut gossip = gossipsub::Behaviour::new(signed, config).expect("a configuration");
    for topic in [MEMBERS, BUDGETS] {
        gossip.subscribe(&IdentTopic::new(topic)).expect("allowed");
    }
    let raw = |protocol| {
        let protocol = (StreamProtocol::new(protocol), ProtocolSupport::Outbound);
        request_response::Behaviour::new([protocol], request_response::Config::default())
    };
    Speech {
        gossip,
        greetings: raw("/millrace/greeting/1"),
        noise: raw("/meshsub/1.1.0"),
    }
}

fn node_id(peer: &PeerId) -> NodeId {
    let key = PublicKey::try_decode_protobuf(peer.as_ref().digest()).expect("a key");
    NodeId::new(key.try_into_ed25519().expect("an ed25519 key").to_bytes())
}

/// The dialling end of an admission.
#[derive(Clone)]
struct Door {
    me: NodeId,
    node: NodeId,
    key: hmac::Key,
}

type Opening<M> = Pin<Box<dyn Future<Output = io::Result<M>> + Send>>;

impl UpgradeInfo for Door {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/millrace/admission/1")
    }
}

impl<C> InboundConnectionUpgrade<C> for Door
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = yamux::Muxer<C>;
    type Error = io::Error;
    type Future = Opening<Self::Output>;

    fn upgrade_inbound(self, _: C, _: Self::Info) -> Self::Future {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
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
        let (mine, mut theirs) = ([5; 32], [0; 32]);
        io.write_all(&mine).await?;
        io.flush().await?;
        io.read_exact(&mut theirs).await?;
        let instance = INSTANCE.to_be_bytes();
        let mut statement = b"millrace admission 1: dialler".to_vec();
        statement.extend(self.me.as_bytes());
        statement.extend(mine);
        statement.extend(self.node.as_bytes());
        statement.extend(theirs);
        statement.extend(instance);
        let mut message = instance.to_vec();
        message.push(1);
        message.extend(hmac::sign(&self.key, &statement).as_ref());
        io.write_all(&message).await?;
        io.flush().await?;
        // Its index, its instance and its proof, which a rogue believes.
        io.read_exact(&mut [0; 1 + 8 + 32]).await
    }
}

/// Bytes, and the end of the stream.
#[derive(Clone, Debug, Default)]
struct Raw;

impl request_response::Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }
}

async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.read_to_end(&mut bytes).await?;
    Ok(bytes)
}
