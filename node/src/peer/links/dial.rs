//! Dialling: one attempt at a time for all who ask, and growing pauses between further ones while a
//! peer cannot be reached.
//!
//! What happens on a connection is `links`'. That an unreachable peer is passed over is up to who
//! chooses peers.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::wire::frame::VERSION;
use quinn::{ClientConfig, Connection, ConnectionError};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, info_span};

use crate::cluster::Member;
use crate::peer::config::MAX_BACK_OFF;
use crate::peer::error::{DialError, PeerError};
use crate::peer::link::{Dialler, Link};
use crate::peer::tls::SERVER_NAME;

use super::Links;

/// Addresses of one member that are tried, one after the other, until one answers.
const MAX_DIALLED_ADDRESSES: usize = 4;

impl Links {
    /// Returns a connection with the peer, and makes one if need be.
    ///
    /// # Errors
    /// `NoMember`, or `Unreachable`: at once during an outage, else after `connect_patience`.
    /// # Cancel safety
    /// An attempt that has begun goes on without the caller.
    pub(in crate::peer) async fn connect(
        self: &Arc<Self>,
        link: &Arc<Link>,
    ) -> Result<Connection, PeerError> {
        if let Some(known) = self.present(link) {
            return known;
        }
        let turn = link.dialling.clone().lock_owned().await;
        // Whoever had the turn before may have succeeded, or failed for everybody who waited.
        if let Some(known) = self.present(link) {
            return known;
        }
        let (links, dialled) = (self.clone(), link.clone());
        let attempt = self.tasks.spawn(info_span!("peer.dial"), async move {
            let result = links.dial(&dialled).await;
            drop(turn);
            result
        });
        let stopped = || DialError::Stopping;
        let result = attempt.await.unwrap_or_else(|_| Err(stopped()));
        result.map_err(|source| PeerError::Unreachable {
            peer: link.peer,
            source,
        })
    }

    /// Returns what is known without dialling: a connection, or an outage.
    fn present(&self, link: &Link) -> Option<Result<Connection, PeerError>> {
        if let Some(connection) = link.connection() {
            return Some(Ok(connection));
        }
        self.outage(link).map(|outage| {
            Err(PeerError::Unreachable {
                peer: link.peer,
                source: outage.why,
            })
        })
    }

    /// Dials once; a failure begins an outage, which a task of its own tries to end.
    async fn dial(self: &Arc<Self>, link: &Arc<Link>) -> Result<Connection, DialError> {
        let Some(member) = self.members.view().member(&link.peer).cloned() else {
            return Err(DialError::NoAddress);
        };
        match self.dial_member(&member).await {
            Ok(connection) => {
                self.adopt(link, Dialler::Here, connection.clone());
                Ok(connection)
            }
            Err(why) => {
                self.failed(link, &member, &why);
                Err(why)
            }
        }
    }

    /// Notes that a peer cannot be reached, and goes on trying if nobody does yet.
    pub(super) fn failed(self: &Arc<Self>, link: &Arc<Link>, member: &Member, why: &DialError) {
        self.metrics.failed_dials.inc();
        debug!(peer.id = %link.peer, error = %why, "dial failed");
        if !link.fail(why.clone(), member) {
            return;
        }
        info!(peer.id = %link.peer, reason = %why, "peer is unreachable, it is passed over");
        let (links, link) = (self.clone(), link.clone());
        self.tasks.spawn(info_span!("peer.redial"), async move {
            let stopping = links.tasks.stopping();
            tokio::select! {
                () = links.redial(&link) => {}
                () = stopping => {}
            }
        });
    }

    /// Dials with growing pauses until the peer is reached or is no member any more.
    async fn redial(self: &Arc<Self>, link: &Arc<Link>) {
        let mut pause = self.config.back_off;
        loop {
            let news = link.news.notified();
            if link.outage().is_none() {
                break;
            }
            tokio::select! {
                () = sleep(pause) => pause = (pause * 2).min(MAX_BACK_OFF),
                () = news => pause = self.config.back_off,
            }
            // A question may be dialling as well: a second connection would replace the first.
            let _turn = link.dialling.lock().await;
            let member = self.members.view().member(&link.peer).cloned();
            let (Some(member), Some(_)) = (member, link.outage()) else {
                break;
            };
            match self.dial_member(&member).await {
                Ok(connection) => self.adopt(link, Dialler::Here, connection),
                Err(why) => {
                    self.metrics.failed_dials.inc();
                    link.fail(why, &member);
                }
            }
        }
        if link.outage().is_none() {
            info!(peer.id = %link.peer, "peer is reachable again");
        }
    }

    /// Connects to whichever address of a member answers first; each is tried when the one before it has
    /// failed, or has had some time.
    async fn dial_member(&self, member: &Member) -> Result<Connection, DialError> {
        if member.wire_version != VERSION {
            let theirs = member.wire_version;
            return Err(DialError::Version { theirs });
        }
        let mut addresses = member.addresses.iter().take(MAX_DIALLED_ADDRESSES);
        let first = async {
            let mut attempts = FuturesUnordered::new();
            let mut failure = DialError::NoAddress;
            loop {
                let next = addresses.next();
                attempts.extend(next.map(|address| self.dial_address(member.id, *address)));
                if attempts.is_empty() {
                    return Err(failure);
                }
                match timeout(self.config.dial_interval, attempts.next()).await {
                    Ok(Some(Ok(connection))) => return Ok(connection),
                    Ok(Some(Err(error))) => failure = error,
                    Ok(None) | Err(_) => {}
                }
            }
        };
        let first = timeout(self.config.connect_patience, first).await;
        first.unwrap_or(Err(DialError::TimedOut))
    }

    async fn dial_address(
        &self,
        peer: NodeId,
        address: SocketAddr,
    ) -> Result<Connection, DialError> {
        let tls = self.gate.client(peer);
        let mut config = ClientConfig::new(Arc::new(tls.expect("the server's settings were made")));
        config.transport_config(self.transport.clone());
        let connecting = self
            .endpoint
            .connect_with(config, address, SERVER_NAME)
            .map_err(|reason| DialError::Address { address, reason })?;
        connecting.await.map_err(|error| match error {
            ConnectionError::TimedOut => DialError::TimedOut,
            ConnectionError::LocallyClosed => DialError::Stopping,
            error => DialError::Refused(error),
        })
    }
}
