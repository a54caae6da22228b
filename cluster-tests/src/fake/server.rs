//! The listener of a fake and the tasks of its connections.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::State;
use super::connection;
use super::tls::Tls;
use crate::port::free_address;

/// A listening fake; dropping it ends all connections.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    tasks: JoinSet<()>,
}

impl Server {
    /// Listens on `address`, or where its port is 0 on one that stays free while the fake is stopped.
    pub(super) async fn start(
        mut address: SocketAddr,
        tls: Option<Tls>,
        state: Arc<State>,
    ) -> Result<Self> {
        if address.port() == 0 {
            address.set_port(free_address()?.port());
        }
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listening on {address}"))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, tls, state));
        Ok(Self { address, tasks })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends everything; when it returns, the port is closed.
    pub(super) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn accept(listener: TcpListener, tls: Option<Tls>, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        // An error means that the client is gone already, or that descriptors are short for a
        // moment: the next call shows.
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream, tls.clone(), state.clone()));
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, tls: Option<Tls>, state: Arc<State>) {
    // Fails only when the client is gone already.
    let _ = stream.set_nodelay(true);
    match tls {
        None => connection::serve(Box::new(stream), &state).await,
        Some(tls) => {
            // A client that does not trust the certificate is not served.
            if let Ok(stream) = tls.acceptor().accept(stream).await {
                connection::serve(Box::new(stream), &state).await;
            }
        }
    }
}
