//! All connections: taken into use, answered on, and closed with those who are removed or dead.
//!
//! How a connection is made, and what follows when none can be, is `dial`'s; what is answered on
//! one is `answer`'s.

mod dial;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::wire::message::{AskHolds, Purpose};
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, Endpoint, TransportConfig};
use tokio::sync::{Semaphore, SetOnce};
use tracing::{debug, info, info_span};

use super::answer::Answerer;
use super::ask;
use super::config::Config;
use super::endpoint;
use super::error::{DialError, PeerError};
use super::handler::Members;
use super::link::{Close, Dialler, Link, Outage};
use super::metrics::Metrics;
use super::tls::Gate;
use crate::cluster::Standing;
use crate::task::Tasks;

/// Questions of one connection that are read at a time, 160 KiB each at most; further streams wait in
/// its window. An honest peer sends each question at once.
const MAX_QUESTIONS_READ: usize = 256;

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

    /// Returns the link to a peer that was talked to.
    pub(super) fn known(&self, peer: &NodeId) -> Option<Arc<Link>> {
        self.table.lock().get(peer).cloned()
    }

    /// Returns all links, in order of ids.
    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        self.table.lock().values().cloned().collect()
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
        let reading = Arc::new(Semaphore::new(MAX_QUESTIONS_READ));
        loop {
            let turn = tokio::select! {
                turn = reading.clone().acquire_owned() => turn.expect("it is never closed"),
                why = connection.closed() => return why,
            };
            match connection.accept_bi().await {
                Ok(streams) => answerer.answer(self, link, streams, turn),
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
