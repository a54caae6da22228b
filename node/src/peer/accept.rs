//! Letting peers connect: the handshake, bounded in number and time.

use std::sync::Arc;

use millrace_protocol::node_id::NodeId;
use quinn::{Connection, ConnectionError, Incoming};
use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, info_span};

use super::link::{Close, Dialler};
use super::links::Links;
use super::metrics::Reject;
use super::raw_key;

/// Handshakes under way; each costs a signature. A cluster that starts as a whole has 149 of them
/// at most, and who is refused comes back.
const MAX_HANDSHAKES: usize = 64;

/// With more under way than this, an address must first prove that it receives.
const SOME_HANDSHAKES: usize = 16;

/// Accepts connections until the endpoint is closed or the node stops.
///
/// # Cancel safety
/// May be dropped; nobody is let in any more then.
pub(super) async fn accept(links: Arc<Links>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let stopping = links.tasks.stopping();
    tokio::pin!(stopping);
    loop {
        let incoming = tokio::select! {
            incoming = links.endpoint.accept() => incoming,
            () = &mut stopping => return,
        };
        let Some(incoming) = incoming else {
            return;
        };
        let under_way = MAX_HANDSHAKES - handshakes.available_permits();
        if under_way > SOME_HANDSHAKES && incoming.may_retry() {
            // Cannot fail for one that may retry.
            let _ = incoming.retry();
            continue;
        }
        let Ok(turn) = handshakes.clone().try_acquire_owned() else {
            links.metrics.rejected(Reject::Crowded);
            incoming.refuse();
            continue;
        };
        let shared = links.clone();
        links.tasks.spawn(info_span!("peer.accept"), async move {
            let address = incoming.remote_address();
            if let Err(error) = shake_hands(&shared, incoming).await {
                debug!(%address, %error, "no connection");
            }
            drop(turn);
        });
    }
}

async fn shake_hands(links: &Arc<Links>, incoming: Incoming) -> Result<(), ConnectionError> {
    let patience = links.config.question_patience;
    let connection = timeout(patience, incoming.accept()?)
        .await
        .unwrap_or(Err(ConnectionError::TimedOut))?;
    // The handshake has let in members only; the view may have changed since.
    let link = shown_key(&connection).and_then(|id| links.link(id).ok());
    match link {
        Some(link) => links.adopt(&link, Dialler::There, connection),
        None => Close::Removed.apply(&connection),
    }
    Ok(())
}

/// Returns the name that the other end has proved.
fn shown_key(connection: &Connection) -> Option<NodeId> {
    let shown = connection.peer_identity()?;
    let keys = shown.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    raw_key::node_id(keys.first()?)
}
