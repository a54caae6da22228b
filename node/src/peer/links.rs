//! All connections: dialling, back-off, and the end of connections with those who are removed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::wire::frame::VERSION;
use millrace_protocol::wire::message::{AskHolds, Purpose};
use parking_lot::Mutex;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, TransportConfig};
use tokio::sync::SetOnce;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, info_span};

use super::answer::Answerer;
use super::ask;
use super::config::{Config, MAX_BACK_OFF};
use super::endpoint;
use super::error::{DialError, PeerError};
use super::handler::Members;
use super::link::{Close, Dialler, Link, Outage};
use super::metrics::Metrics;
use super::tls::{Gate, SERVER_NAME};
use crate::cluster::{Member, Standing};
use crate::task::Tasks;

/// Addresses of one member that are tried, all at the same time.
const MAX_DIALLED_ADDRESSES: usize = 4;

/// How long a suspect may take to answer a question about nothing, which costs it nothing.
const PROBE_PATIENCE: Duration = Duration::from_millis(500);

/// What the parts of this room share.
#[derive(Debug)]
pub(super) struct Links {
    pub(super) config: Config,
    pub(super) endpoint: Endpoint,
    pub(super) members: Arc<dyn Members>,
    pub(super) metrics: Metrics,
    pub(super) tasks: Tasks,
    gate: Arc<Gate>,
    transport: Arc<TransportConfig>,
    /// One for each member that was talked to; removed with the member.
    table: Mutex<BTreeMap<NodeId, Arc<Link>>>,
    /// Set when this node begins to answer.
    answerer: SetOnce<Answerer>,
}

impl Links {
    pub(super) fn new(
        config: Config,
        endpoint: Endpoint,
        (gate, members): (Arc<Gate>, Arc<dyn Members>),
        metrics: Metrics,
        tasks: Tasks,
    ) -> Self {
        Self {
            config,
            endpoint,
            members,
            metrics,
            tasks,
            gate,
            transport: endpoint::transport(),
            table: Mutex::default(),
            answerer: SetOnce::new(),
        }
    }

    /// Begins to answer the questions of peers; a second call has no effect.
    pub(super) fn set_answerer(&self, answerer: Answerer) -> bool {
        self.answerer.set(answerer).is_ok()
    }

    /// Returns how many upload slots are taken.
    pub(super) fn uploads(&self) -> usize {
        let answerer = self.answerer.get();
        answerer.map_or(0, Answerer::uploads_taken)
    }

    /// Returns the link to a member, which is not this node.
    ///
    /// # Errors
    /// [`PeerError::NoMember`].
    pub(super) fn link(&self, peer: NodeId) -> Result<Arc<Link>, PeerError> {
        let view = self.members.view();
        if peer == view.me() || view.member(&peer).is_none() {
            return Err(PeerError::NoMember { peer });
        }
        let mut table = self.table.lock();
        let link = table
            .entry(peer)
            .or_insert_with(|| Arc::new(Link::new(peer)));
        Ok(link.clone())
    }

    /// Returns the outage of a peer whose entry is still the one that could not be reached.
    pub(super) fn outage(&self, link: &Link) -> Option<Outage> {
        let outage = link.outage()?;
        let view = self.members.view();
        let moved = view
            .member(&link.peer)
            .is_some_and(|member| link.outage_is_stale(member));
        (!moved).then_some(outage)
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

    /// Returns the link to a peer that was talked to.
    pub(super) fn known(&self, peer: &NodeId) -> Option<Arc<Link>> {
        self.table.lock().get(peer).cloned()
    }

    /// Returns all links, in order of ids.
    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        self.table.lock().values().cloned().collect()
    }

    /// Returns a connection with the peer, and makes one if need be.
    ///
    /// # Errors
    /// `NoMember`, or `Unreachable`: at once during an outage, else after `connect_patience`.
    /// # Cancel safety
    /// An attempt that has begun goes on without the caller.
    pub(super) async fn connect(
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
    fn failed(self: &Arc<Self>, link: &Arc<Link>, member: &Member, why: &DialError) {
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

    /// Connects to whichever address of a member answers first.
    async fn dial_member(&self, member: &Member) -> Result<Connection, DialError> {
        if member.wire_version != VERSION {
            let theirs = member.wire_version;
            return Err(DialError::Version { theirs });
        }
        let addresses = member.addresses.iter().take(MAX_DIALLED_ADDRESSES);
        let mut attempts: FuturesUnordered<_> = addresses
            .map(|address| self.dial_address(member.id, *address))
            .collect();
        let first = async {
            let mut failure = DialError::NoAddress;
            while let Some(result) = attempts.next().await {
                match result {
                    Ok(connection) => return Ok(connection),
                    Err(error) => failure = error,
                }
            }
            Err(failure)
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

    /// Takes a connection into use, in both directions.
    pub(super) fn adopt(
        self: &Arc<Self>,
        link: &Arc<Link>,
        dialler: Dialler,
        connection: Connection,
    ) {
        debug!(peer.id = %link.peer, address = %connection.remote_address(), ?dialler, "connected");
        link.add(dialler, connection.clone());
        self.metrics.connections.inc();
        self.share_windows();
        // The view may have changed since the handshake; and a link that is not in the table any
        // more would never be cut.
        let known = self.known(&link.peer);
        let is_known = known.is_some_and(|known| Arc::ptr_eq(&known, link));
        if !is_known || self.members.view().member(&link.peer).is_none() {
            self.cut(link);
        }
        let (links, link) = (self.clone(), link.clone());
        let span = info_span!("peer.serve", peer.id = %link.peer);
        self.tasks.spawn(span, async move {
            let why = links.serve(&link, &connection).await;
            link.remove(&connection);
            links.metrics.connections.dec();
            links.share_windows();
            links.ended(&link, dialler, why);
        });
    }

    /// Answers on a connection until it ends; returns why it did.
    async fn serve(self: &Arc<Self>, link: &Arc<Link>, connection: &Connection) -> ConnectionError {
        let answerer = tokio::select! {
            answerer = self.answerer.wait() => answerer,
            why = connection.closed() => return why,
        };
        loop {
            match connection.accept_bi().await {
                Ok((send, receive)) => answerer.answer(self, link, (send, receive)),
                Err(why) => return why,
            }
        }
    }

    /// A peer that closes what was just dialled does not know this node: leave it alone a while.
    fn ended(self: &Arc<Self>, link: &Arc<Link>, dialler: Dialler, why: ConnectionError) {
        debug!(peer.id = %link.peer, reason = %why, "connection ended");
        let refused = matches!(&why, ConnectionError::ConnectionClosed(_));
        let view = self.members.view();
        if let Some(member) = view.member(&link.peer)
            && (dialler, refused) == (Dialler::Here, true)
            && link.connection().is_none()
        {
            self.failed(link, member, &DialError::Refused(why));
        }
    }

    fn share_windows(&self) {
        let links = self.all();
        let connections = links.iter().map(|link| link.count()).sum();
        let bytes = endpoint::share_bytes(connections);
        links.iter().for_each(|link| link.set_windows(bytes));
    }

    /// Ends everything with a node that is no member.
    fn cut(&self, link: &Link) {
        info!(peer.id = %link.peer, "node is no member any more, its connections are closed");
        link.close(Close::Removed);
        let mut table = self.table.lock();
        if table
            .get(&link.peer)
            .is_some_and(|l| std::ptr::eq(&**l, link))
        {
            table.remove(&link.peer);
        }
    }

    /// Closes the connections of a suspect that does not answer, so that whoever waits for it goes
    /// on at once: a process that was killed says nothing, and its silence would take longer.
    ///
    /// A suspect that answers keeps them: only its words to all are late.
    fn probe(self: &Arc<Self>, link: Arc<Link>) {
        if link.connection().is_none() {
            return;
        }
        let links = self.clone();
        let span = info_span!("peer.probe", peer.id = %link.peer.short());
        self.tasks.spawn(span, async move {
            let nothing = AskHolds {
                digests: Vec::new(),
                purpose: Purpose::Know,
            };
            let answer = ask::holds(&links, link.peer, nothing, PROBE_PATIENCE).await;
            if let Err(PeerError::Silent { .. }) = answer {
                info!("a suspect does not answer, its connections are closed");
                link.close(Close::Silent);
            }
        });
    }

    /// Follows the views until the node stops.
    ///
    /// # Cancel safety
    /// May be dropped; links are then no longer cut.
    pub(super) async fn follow_members(self: Arc<Self>) {
        let mut changes = self.members.changes();
        loop {
            let view = self.members.view();
            for link in self.all() {
                match view.member(&link.peer) {
                    None => self.cut(&link),
                    Some(member) if member.standing == Standing::Suspect => self.probe(link),
                    Some(member) if link.outage_is_stale(member) => link.news.notify_waiters(),
                    Some(_) => {}
                }
            }
            drop(view);
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}
