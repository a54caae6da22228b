//! The members that a test gives a node, so that views may differ and be wrong.

use std::net::SocketAddr;
use std::sync::Arc;

use millrace::cluster::{Member, Standing, View};
use millrace::peer::Members;
use millrace_protocol::node_id::NodeId;
use parking_lot::Mutex;
use tokio::sync::watch;

/// The members that a test gives a node.
#[derive(Debug)]
pub(crate) struct Given {
    view: Mutex<Arc<View>>,
    number: watch::Sender<u64>,
}

impl Given {
    pub(super) fn alone(id: NodeId, zone: &str) -> Self {
        Self {
            view: Mutex::new(Arc::new(View::of(id, zone, Vec::new()))),
            number: watch::Sender::new(0),
        }
    }

    /// Lets the node see that a split has just healed.
    pub(crate) fn heal(&self) {
        let mut view = self.view.lock();
        let healed = View::clone(&view).healed_at(Some(std::time::Instant::now()));
        *view = Arc::new(healed);
        drop(view);
        self.number.send_modify(|number| *number += 1);
    }

    pub(crate) fn set(&self, members: Vec<Member>) {
        let mut view = self.view.lock();
        *view = Arc::new(View::of(view.me(), view.zone(), members));
        drop(view);
        self.number.send_modify(|number| *number += 1);
    }
}

impl Members for Given {
    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.lock())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.number.subscribe()
    }
}

pub(super) fn member(id: NodeId, zone: &str, address: SocketAddr) -> Member {
    Member {
        id,
        generation: 1,
        zone: zone.to_owned(),
        addresses: vec![address],
        weight: 1,
        version: "test".to_owned(),
        wire_version: millrace_protocol::wire::frame::VERSION,
        load: 0,
        standing: Standing::Alive,
    }
}
