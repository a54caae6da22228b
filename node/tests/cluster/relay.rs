//! A relay between nodes that can be cut.

use std::net::SocketAddr;

use millrace::task::Tasks;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes connections on, until it is cut: then it takes them and passes nothing.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Relay {
    /// Listens; where it passes connections on to is told later.
    pub(crate) async fn new(tasks: &Tasks, target: watch::Receiver<Option<SocketAddr>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let open = watch::Sender::new(true);
        let (spawner, gate) = (tasks.clone(), open.subscribe());
        tasks.spawn(tracing::Span::none(), async move {
            while let Ok((incoming, _)) = listener.accept().await {
                let (gate, target) = (gate.clone(), *target.borrow());
                if let Some(target) = target {
                    spawner.spawn(tracing::Span::none(), pass(incoming, target, gate));
                }
            }
        });
        Self { address, open }
    }

    pub(crate) fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

async fn pass(incoming: TcpStream, target: SocketAddr, gate: watch::Receiver<bool>) {
    let Ok(outgoing) = TcpStream::connect(target).await else {
        return;
    };
    let (from, to) = (incoming.into_split(), outgoing.into_split());
    tokio::join!(pump(from.0, to.1, gate.clone()), pump(to.0, from.1, gate));
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut gate: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::io::AsyncReadExt::read(&mut from, &mut buffer).await;
        let Ok(length @ 1..) = read else { return };
        if gate.wait_for(|open| *open).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
