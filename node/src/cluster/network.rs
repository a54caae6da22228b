//! The control plane: TCP, noise, the gate, yamux; on it gossip and greetings.
//!
//! What is said there is decided by the driver. Bounds of what strangers and members can cost are
//! here.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::Transport as _;
use libp2p::core::transport::timeout::TransportTimeout;
use libp2p::core::upgrade::Version;
use libp2p::futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity, ValidationMode};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::{StreamProtocol, Swarm, identity, noise, swarm, tcp};
use millrace_protocol::membership::{Greeting, MAX_GREETING_BYTES, decode, encode};
use tracing::Span;

use super::admission::Admission;
use super::error::StartError;
use super::metrics::{self, Metrics};
use super::names::{socket_address, tcp};
use super::{Identity, StartError::Setup};
use crate::task::Tasks;

/// How long a connection may take until both ends are admitted: what a stranger can hold.
const HANDSHAKE: Duration = Duration::from_secs(3);

/// Connections that wait for admission; strangers can take all of them, for [`HANDSHAKE`].
const MAX_PENDING_INCOMING: u32 = 128;

/// Dials under way.
const MAX_PENDING_OUTGOING: u32 = 128;

/// Connections of admitted nodes: 150 members that each dialled twice.
const MAX_ESTABLISHED: u32 = 512;

/// Both ends may dial at the same time, and one may come back before the old one is noticed gone.
const MAX_PER_PEER: u32 = 4;

/// Members whom each announcement is passed on to; its author gives it to everybody it is
/// connected to, so this only matters to those who cannot reach the author. At least, usually, and
/// at most: a random graph of three each holds together, and every further one is a copy of every
/// announcement more.
const GOSSIP_PEERS: [usize; 3] = [2, 3, 4];

/// Most bytes of a frame of gossip. All that was read of a connection is held against it, not only the
/// frame that comes first, and a connection is read 8 KiB at a time: what waits when a node was busy must
/// not look like one frame too large, because that ends the stream, and the fifth time gossip with that node.
const MAX_FRAME: usize = 64 * 1024;

/// Most messages that are named in one list of what was heard in the last three seconds. From 150 members
/// that is 450, and the other end takes a list of more than 16 KiB for an attack.
const MAX_NAMED: usize = 128;

/// How long a greeting may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Greetings under way with one node.
const MAX_GREETINGS: usize = 8;

/// Connections are kept as long as both ends live, whatever travels on them.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Attempts to find a port that is free for TCP and UDP.
const PORT_ATTEMPTS: usize = 32;

/// The topic of announcements.
pub(super) fn topic() -> IdentTopic {
    IdentTopic::new("millrace/members/1")
}

/// The topic of what registries say of their limits.
pub(super) fn budgets_topic() -> IdentTopic {
    IdentTopic::new("millrace/budgets/1")
}

/// What is spoken on a connection.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(super) gossip: gossipsub::Behaviour,
    pub(super) greetings: request_response::Behaviour<GreetingCodec>,
}

/// Sets up the control plane and listens; returns the address with its real port, whose number is
/// free for UDP as well where the configuration left it open.
///
/// # Errors
/// [`StartError`] when the address cannot be had.
pub(super) fn listen(
    address: SocketAddr,
    identity: &Identity,
    admission: &Arc<Admission>,
    metrics: &Metrics,
    tasks: &Tasks,
) -> Result<(Swarm<Behaviour>, SocketAddr), StartError> {
    let behaviour = behaviour(&identity.keypair(), metrics)?;
    let mut swarm = swarm(&identity.keypair(), behaviour, admission, tasks)?;
    let error = |source| StartError::Listen { address, source };
    let mut attempts = 1;
    loop {
        // The peer room binds UDP on the same number: a number that is taken there is no use.
        let reserved = UdpSocket::bind(address).map_err(error)?;
        let chosen = reserved.local_addr().map_err(error)?;
        match try_listen(&mut swarm, chosen) {
            Ok(()) => return Ok((swarm, chosen)),
            Err(_) if address.port() == 0 && attempts < PORT_ATTEMPTS => attempts += 1,
            Err(source) => return Err(error(source)),
        }
    }
}

fn try_listen(swarm: &mut Swarm<Behaviour>, address: SocketAddr) -> io::Result<()> {
    // libp2p would share the port with a process that listens on it already.
    drop(std::net::TcpListener::bind(address)?);
    let listening = swarm.listen_on(tcp(address));
    listening.map(drop).map_err(io::Error::other)
}

fn swarm(
    keypair: &identity::Keypair,
    behaviour: Behaviour,
    admission: &Arc<Admission>,
    tasks: &Tasks,
) -> Result<Swarm<Behaviour>, StartError> {
    let noise = noise::Config::new(keypair).map_err(|error| Setup(error.to_string()))?;
    let admission = Arc::clone(admission);
    let transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1)
        .authenticate(noise)
        .multiplex_ext(move |peer, _| admission.gate(peer))
        .boxed();
    // Around what is boxed, so that `admission` knows an end of the time by its type.
    let transport = TransportTimeout::new(transport, HANDSHAKE).boxed();
    let tasks = tasks.clone();
    let executor = move |future| drop(tasks.spawn(Span::current(), future));
    let config = swarm::Config::with_executor(executor).with_idle_connection_timeout(FOREVER);
    let id = keypair.public().to_peer_id();
    Ok(Swarm::new(transport, behaviour, id, config))
}

fn behaviour(keypair: &identity::Keypair, metrics: &Metrics) -> Result<Behaviour, StartError> {
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(MAX_PENDING_INCOMING))
        .with_max_pending_outgoing(Some(MAX_PENDING_OUTGOING))
        .with_max_established(Some(MAX_ESTABLISHED))
        .with_max_established_per_peer(Some(MAX_PER_PEER));
    let greetings = request_response::Config::default()
        .with_request_timeout(GREETING_TIMEOUT)
        .with_max_concurrent_streams(MAX_GREETINGS);
    let protocol = StreamProtocol::new("/millrace/greeting/1");
    Ok(Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        gossip: gossip(keypair)?,
        greetings: request_response::Behaviour::with_codec(
            GreetingCodec::new(metrics),
            [(protocol, ProtocolSupport::Full)],
            greetings,
        ),
    })
}

fn gossip(keypair: &identity::Keypair) -> Result<gossipsub::Behaviour, StartError> {
    let authenticity = MessageAuthenticity::Signed(keypair.clone());
    let mut gossip = gossipsub::Behaviour::new(authenticity, gossip_config()?)
        .map_err(|error| Setup(error.to_owned()))?;
    for topic in [topic(), budgets_topic()] {
        let subscribed = gossip.subscribe(&topic);
        subscribed.map_err(|error| Setup(error.to_string()))?;
    }
    Ok(gossip)
}

fn gossip_config() -> Result<gossipsub::Config, StartError> {
    let [fewest, usual, most] = GOSSIP_PEERS;
    gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(MAX_FRAME)
        .max_control_messages_sent(MAX_NAMED)
        .heartbeat_initial_delay(Duration::from_millis(100))
        .flood_publish(true)
        .mesh_n_low(fewest)
        .mesh_n(usual)
        .mesh_n_high(most)
        .mesh_outbound_min(1)
        .gossip_lazy(fewest)
        .build()
        .map_err(|error| Setup(error.to_string()))
}

/// Where a connection leads, if it can be said in one address.
pub(super) fn remote_address(endpoint: &libp2p::core::ConnectedPoint) -> Option<SocketAddr> {
    socket_address(endpoint.get_remote_address())
}

/// How a greeting travels: its bytes, and the end of the stream.
#[derive(Clone, Debug)]
pub(super) struct GreetingCodec {
    metrics: Metrics,
}

impl GreetingCodec {
    fn new(metrics: &Metrics) -> Self {
        let metrics = metrics.clone();
        Self { metrics }
    }

    /// Counts what was no greeting here: nobody else is told of a request that could not be read.
    async fn read<T: AsyncRead + Unpin>(&self, io: &mut T) -> io::Result<Greeting> {
        let read = read_greeting(io).await;
        if read
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::InvalidData)
        {
            self.metrics.nonsense(metrics::Message::Greeting);
        }
        read
    }
}

impl request_response::Codec for GreetingCodec {
    type Protocol = StreamProtocol;
    type Request = Greeting;
    type Response = Greeting;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Greeting>
    where
        T: AsyncRead + Unpin + Send,
    {
        self.read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Greeting>
    where
        T: AsyncRead + Unpin + Send,
    {
        self.read(io).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        greeting: Greeting,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&encode(&greeting)).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        greeting: Greeting,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&encode(&greeting)).await
    }
}

/// Reads to the end of the stream, and not more than a greeting can have.
async fn read_greeting<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Greeting> {
    let mut bytes = Vec::new();
    let most = MAX_GREETING_BYTES as u64 + 1;
    io.take(most).read_to_end(&mut bytes).await?;
    if bytes.len() > MAX_GREETING_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "greeting too large",
        ));
    }
    decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;
    use millrace_protocol::membership::{MAX_ANNOUNCEMENT_BYTES, MAX_BUDGETS_BYTES};

    use super::*;

    /// What is read of a connection at a time.
    const READ: usize = 8 * 1024;

    /// Signature, names and lengths around what is said.
    const AROUND: usize = 1024;

    #[test]
    fn what_members_say_fits_into_what_they_read() {
        let config = gossip_config().expect("a configuration");
        let longest = MAX_ANNOUNCEMENT_BYTES.max(MAX_BUDGETS_BYTES) + AROUND;
        let lists = config.max_control_message_size();
        assert!(longest.max(lists) + READ <= config.max_transmit_size());
        let name = config.message_id(&gossipsub::Message {
            source: Some(PeerId::random()),
            data: Vec::new(),
            sequence_number: Some(u64::MAX),
            topic: topic().hash(),
        });
        // Each behind its tag and its length.
        let list = config.max_control_messages_sent() * (name.0.len() + 2);
        assert!(list + AROUND <= lists, "{list} of {lists}");
    }
}
