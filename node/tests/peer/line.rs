//! A line to a node over UDP, which loses what it is told to lose.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Larger than any packet.
const PACKET_BYTES: usize = 65_536;

/// A line from one node to another; it ends with the value.
pub(crate) struct Line {
    /// Where the one node finds the other.
    pub(crate) address: SocketAddr,
    carried: Arc<Carried>,
    _tasks: JoinSet<()>,
}

/// Bytes on the way back, headers included, and what is lost.
#[derive(Default)]
struct Carried {
    bytes: AtomicU64,
    /// So many packets are still to be lost on their way there.
    lost_there: AtomicU64,
    /// Behind so many packets are lost.
    most: AtomicU64,
}

impl Line {
    /// Makes a line to `node` that carries everything there, and up to `most` bytes back.
    pub(crate) async fn to(node: SocketAddr, most: u64) -> Self {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let front = Arc::new(bind().await.expect("a port"));
        let back = Arc::new(bind().await.expect("a port"));
        back.connect(node).await.expect("an address");
        let address = front.local_addr().expect("bound");
        let carried = Arc::new(Carried::default());
        carried.most.store(most, Ordering::Relaxed);
        let mut tasks = JoinSet::new();
        tasks.spawn(carry(front, back, carried.clone()));
        Self {
            address,
            carried,
            _tasks: tasks,
        }
    }

    /// Loses the next `packets` on their way there.
    pub(crate) fn lose_there(&self, packets: u64) {
        self.carried.lost_there.store(packets, Ordering::Relaxed);
    }

    /// Carries everything back from now on.
    pub(crate) fn open(&self) {
        self.carried.most.store(u64::MAX, Ordering::Relaxed);
    }

    /// Returns how many bytes came back.
    pub(crate) fn carried_bytes(&self) -> u64 {
        self.carried.bytes.load(Ordering::Relaxed)
    }
}

/// Carries packets both ways, for the one node whose packets come to `front`.
async fn carry(front: Arc<UdpSocket>, back: Arc<UdpSocket>, carried: Arc<Carried>) {
    let (mut there, mut here) = (vec![0; PACKET_BYTES], vec![0; PACKET_BYTES]);
    let mut asker = None;
    loop {
        tokio::select! {
            Ok((size, from)) = front.recv_from(&mut there) => {
                asker = Some(from);
                if carried.is_lost_there() { continue }
                // A packet that cannot be sent is lost.
                let _ = back.send(&there[..size]).await;
            }
            Ok(size) = back.recv(&mut here) => {
                let Some(asker) = asker.filter(|_| carried.admit(size)) else { continue };
                let _ = front.send_to(&here[..size], asker).await;
            }
        }
    }
}

impl Carried {
    fn is_lost_there(&self) -> bool {
        let relaxed = Ordering::Relaxed;
        let lost = self
            .lost_there
            .fetch_update(relaxed, relaxed, |left| left.checked_sub(1));
        lost.is_ok()
    }

    fn admit(&self, size: usize) -> bool {
        let admits = self.bytes.load(Ordering::Relaxed) < self.most.load(Ordering::Relaxed);
        if admits {
            self.bytes.fetch_add(size as u64, Ordering::Relaxed);
        }
        admits
    }
}
