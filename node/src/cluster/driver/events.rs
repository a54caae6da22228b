//! What the network tells, one event after the other.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Instant;

use libp2p::core::ConnectedPoint;
use libp2p::gossipsub::{self, MessageAcceptance};
use libp2p::request_response::{self, Message};
use libp2p::swarm::{DialError, ListenError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, TransportError};
use millrace_protocol::membership::{
    Announcement, Greeting, Heard, MAX_ANNOUNCEMENT_BYTES, Recognised, decode,
};
use millrace_protocol::node_id::NodeId;

use super::super::admission::{Refusal, causes, refused};
use super::super::metrics::Message as Said;
use super::super::names::{node_id, peer_id, socket_address};
use super::super::network::{BehaviourEvent, budgets_topic, remote_address};
use super::super::reach::local_ip_towards;
use super::{Dial, Driver};

type GreetingEvent = request_response::Event<Greeting, Greeting>;

impl Driver {
    pub(super) fn handle_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                num_established,
                ..
            } => {
                let dial = self.progress.dials.remove(&connection_id);
                self.handle_connected(peer_id, dial, &endpoint, num_established.get());
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                num_established: 0,
                ..
            } => self.handle_disconnected(&peer_id),
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                error,
                ..
            } => {
                if let Some(dial) = self.progress.dials.remove(&connection_id) {
                    self.handle_dial_failed(dial, &error);
                }
            }
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => self.handle_not_let_in(&send_back_addr, &error),
            SwarmEvent::ListenerClosed { reason, .. } => {
                tracing::error!(?reason, "other nodes cannot reach this one any more");
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "a connection could not be accepted");
            }
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => self.handle_gossip(event),
            SwarmEvent::Behaviour(BehaviourEvent::Greetings(event)) => {
                self.handle_greeting_event(event);
            }
            _ => {}
        }
    }

    fn handle_connected(
        &mut self,
        peer: PeerId,
        dial: Option<Dial>,
        endpoint: &ConnectedPoint,
        connections: u32,
    ) {
        let now = Instant::now();
        // The gate lets nobody in without such an id.
        let Some(id) = node_id(&peer) else { return };
        self.learn_own_address(endpoint);
        if let Some(Dial::Join(address)) = dial {
            self.progress.joining.reached(address, id, now);
        }
        if connections > 1 {
            return;
        }
        self.membership.handle_connected(id, now);
        tracing::debug!(peer.id = %id, dialled = endpoint.is_dialer(), "connected");
        if endpoint.is_dialer() {
            self.greet(&peer, &id);
        }
    }

    fn handle_not_let_in(&self, from: &Multiaddr, error: &ListenError) {
        // Strangers can do this as often as they like, so it is no line that anybody must read.
        let reason = refused(error);
        tracing::debug!(%from, ?reason, %error, "not let in");
        if let Some(reason) = reason {
            self.publisher.metrics().refused(reason);
        }
    }

    fn greet(&mut self, peer: &PeerId, id: &NodeId) {
        let greeting = self.greeting(id);
        let greetings = &mut self.swarm.behaviour_mut().greetings;
        greetings.send_request(peer, greeting);
    }

    fn learn_own_address(&mut self, endpoint: &ConnectedPoint) {
        let local = match endpoint {
            ConnectedPoint::Listener { local_addr, .. } => {
                socket_address(local_addr).map(|address| address.ip())
            }
            ConnectedPoint::Dialer { .. } => {
                remote_address(endpoint).and_then(|remote| local_ip_towards(remote).ok())
            }
        };
        if let Some(ip) = local
            && self.addresses.learn(ip)
        {
            tracing::info!(addresses = ?self.addresses.get(), "announcing itself at");
            self.publisher.renew();
        }
    }

    fn handle_disconnected(&mut self, peer: &PeerId) {
        if let Some(id) = node_id(peer) {
            tracing::debug!(peer.id = %id, "disconnected");
            self.admission.forget(&id);
            self.membership.handle_disconnected(id, Instant::now());
        }
    }

    pub(super) fn handle_dial_failed(&mut self, dial: Dial, error: &DialError) {
        let now = Instant::now();
        match (dial, error) {
            (Dial::Member(id), _) => self.membership.handle_dial_failed(id, now),
            (Dial::Twin, _) => tracing::debug!(%error, "no other node with this identity there"),
            // libp2p leaves out the addresses that it listens on itself.
            (Dial::Join(address), DialError::LocalPeerId { .. } | DialError::NoAddresses) => {
                self.progress.joining.is_mine(address);
            }
            (Dial::Join(address), _) if is_myself(error) => {
                self.progress.joining.is_mine(address);
            }
            (Dial::Join(address), _) => self.join_failed(address, error, now),
        }
    }

    fn join_failed(&mut self, address: SocketAddr, error: &DialError, now: Instant) {
        let reason = reason(error);
        if self.progress.joining.failed(address, reason.clone(), now) {
            tracing::warn!(%address, reason, "cannot join there, trying on");
        }
    }

    fn handle_gossip(&mut self, event: gossipsub::Event) {
        let gossipsub::Event::Message {
            propagation_source,
            message_id,
            message,
        } = event
        else {
            return;
        };
        if message.topic == budgets_topic().hash() {
            let acceptance = self.hear_budgets(message.source.as_ref(), &message.data);
            let gossip = &mut self.swarm.behaviour_mut().gossip;
            gossip.report_message_validation_result(&message_id, &propagation_source, acceptance);
            return;
        }
        let from = message.source.as_ref().and_then(node_id);
        let heard = match (from, announcement(&message.data)) {
            (Some(from), Some(announcement)) => Some(self.hear(from, announcement)),
            _ => {
                self.publisher.metrics().nonsense(Said::Announcement);
                None
            }
        };
        // Only news travel on.
        let acceptance = match heard {
            Some(Heard::Fresh) => MessageAcceptance::Accept,
            Some(Heard::Invalid(_)) | None => MessageAcceptance::Reject,
            Some(_) => MessageAcceptance::Ignore,
        };
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        gossip.report_message_validation_result(&message_id, &propagation_source, acceptance);
    }

    /// Takes in what `from` says of itself.
    fn hear(&mut self, from: NodeId, announcement: Announcement) -> Heard {
        let heard = self
            .membership
            .handle_announcement(from, announcement, Instant::now());
        self.publisher.metrics().heard(heard);
        match heard {
            Heard::Invalid(error) => {
                tracing::debug!(peer.id = %from, %error, "announcement not believed");
                self.publisher.metrics().nonsense(Said::Announcement);
            }
            // Of two connections to one id, requests take turns.
            Heard::Former if self.membership.is_connected(&from) => {
                if let Some(peer) = peer_id(&from) {
                    self.greet(&peer, &from);
                }
            }
            _ => {}
        }
        heard
    }

    fn handle_greeting_event(&mut self, event: GreetingEvent) {
        let GreetingEvent::Message { peer, message, .. } = event else {
            // The connection says more about the other end than a greeting that got lost.
            return;
        };
        let Some(id) = node_id(&peer) else { return };
        match message {
            Message::Request {
                request, channel, ..
            } => {
                self.take_greeting(id, request);
                let answer = self.greeting(&id);
                let greetings = &mut self.swarm.behaviour_mut().greetings;
                // The connection is gone: so is whoever waited for the answer.
                let _ = greetings.send_response(channel, answer);
            }
            Message::Response { response, .. } => self.take_greeting(id, response),
        }
    }

    fn take_greeting(&mut self, from: NodeId, greeting: Greeting) {
        let now = Instant::now();
        match self.membership.handle_known_as(greeting.you) {
            Recognised::Fine => {}
            Recognised::Raised(generation) => {
                tracing::warn!(
                    generation,
                    peer.id = %from,
                    "others know a later start of this node: counting on from there"
                );
                let memory = self.memory.clone();
                drop(self.save(move || memory.keep_generation(generation)));
                let mut known = greeting.contacts.iter();
                if let Some(twin) = known.find(|contact| contact.id == self.me.id) {
                    self.look_for_twin(&twin.addresses);
                }
            }
            Recognised::Implausible => {
                tracing::debug!(peer.id = %from, "knows a start of this node that never was");
                self.publisher.metrics().nonsense(Said::Greeting);
            }
        }
        self.hear(from, greeting.announcement);
        self.membership.handle_contacts(greeting.contacts, now);
        self.progress.greeted = true;
    }
}

/// Reads what somebody says of itself.
fn announcement(data: &[u8]) -> Option<Announcement> {
    let data = Some(data).filter(|data| data.len() <= MAX_ANNOUNCEMENT_BYTES)?;
    decode(data).ok()
}

/// Whether the gate has noticed that this node dialled itself.
fn is_myself(error: &DialError) -> bool {
    let DialError::Transport(errors) = error else {
        return false;
    };
    let myself =
        |error| causes(error).any(|cause| matches!(cause.downcast_ref(), Some(Refusal::Myself)));
    errors
        .iter()
        .any(|(_, error)| matches!(error, TransportError::Other(error) if myself(error)))
}

/// Says why a dial failed, in a few words.
fn reason(error: &DialError) -> String {
    match error {
        DialError::Transport(errors) => {
            let last = errors.last().map(|(_, error)| match error {
                TransportError::Other(error) => root_cause(error),
                TransportError::MultiaddrNotSupported(_) => "not an address".to_owned(),
            });
            last.unwrap_or_else(|| "no address".to_owned())
        }
        DialError::Denied { cause } => root_cause(cause),
        other => other.to_string(),
    }
}

fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
