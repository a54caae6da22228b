//! A member that says what a test lets it say.
//!
//! It comes in by `door` and speaks behind the gate in raw bytes; nothing of it is the node's own code.
//! It dials one node and nobody can dial it, or it lies in wait and dials nobody.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use libp2p::core::Transport as _;
use libp2p::core::upgrade::Version;
use libp2p::futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _,
};
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity};
use libp2p::identity::Keypair;
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::request_response::{self, Message, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, Swarm, noise, swarm, tcp};
use millrace_protocol::membership::{Announcement, Greeting, Presence, decode, encode};
use millrace_protocol::node_id::NodeId;
use ring::hmac;

use super::door::{Answer, Door, INSTANCE, node_id};
use super::host::PATIENCE;

/// Topics of SPEC.md.
pub(crate) const MEMBERS: &str = "millrace/members/1";
pub(crate) const BUDGETS: &str = "millrace/budgets/1";

/// Announcements that wait to leave, at most.
const QUEUE: usize = 20_000;

/// The member.
pub(crate) struct Rogue {
    pub(crate) id: NodeId,
    /// The node that it is connected to, if it is.
    node: Option<PeerId>,
    /// Nodes that have dialled it, as often as it believed to be connected then.
    caught: usize,
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
        let mut rogue = Self::new(secret, Answer::Proof);
        let to = Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()));
        rogue.swarm.dial(to).expect("dialled");
        while rogue.node.is_none() {
            if let SwarmEvent::OutgoingConnectionError { error, .. } = rogue.next().await {
                panic!("{error}");
            }
        }
        rogue
    }

    /// Listens with this secret, and believes whoever dials. Returns where.
    pub(crate) async fn lie_in_wait(secret: &str, answer: Answer) -> (Self, SocketAddr) {
        let mut rogue = Self::new(secret, answer);
        let at = "/ip4/127.0.0.1/tcp/0".parse().expect("an address");
        rogue.swarm.listen_on(at).expect("listening");
        loop {
            let SwarmEvent::NewListenAddr { address, .. } = rogue.next().await else {
                continue;
            };
            let port = address.iter().find_map(|part| match part {
                Protocol::Tcp(port) => Some(port),
                _ => None,
            });
            return (rogue, ([127, 0, 0, 1], port.expect("TCP")).into());
        }
    }

    fn new(secret: &str, answer: Answer) -> Self {
        let keys = Keypair::generate_ed25519();
        Self {
            id: node_id(&keys.public().to_peer_id()),
            node: None,
            caught: 0,
            sequence: 0,
            swarm: swarm_of(&keys, secret, answer),
        }
    }

    fn node(&self) -> PeerId {
        self.node.expect("it is connected")
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
        let node = self.node();
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
        let node = self.node();
        self.swarm.behaviour_mut().noise.send_request(&node, bytes);
    }

    /// Goes on until a node has dialled it and heard its answer.
    pub(crate) async fn catch(&mut self) {
        while self.caught == 0 {
            self.next().await;
        }
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

    /// Whoever has dialled it is told at once what a member would tell.
    async fn next(&mut self) -> SwarmEvent<SpeechEvent> {
        let event = self.swarm.select_next_some().await;
        if let SwarmEvent::ConnectionEstablished {
            peer_id, endpoint, ..
        } = &event
        {
            self.node = Some(*peer_id);
            if endpoint.is_listener() {
                self.caught += 1;
                let greeting = encode(&self.greeting());
                let greetings = &mut self.swarm.behaviour_mut().greetings;
                greetings.send_request(peer_id, greeting);
            }
        }
        event
    }
}

fn swarm_of(keys: &Keypair, secret: &str, answer: Answer) -> Swarm<Speech> {
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
            answer,
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
