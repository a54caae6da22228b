//! The program that we are measured against: a file over TLS and TCP, plainly written.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use millrace::cluster::Identity;
use millrace::peer::raw_key::{self, Admit};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::part::told_to_end;
use crate::sink::{Received, Sink};

/// What is read, sent and written at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// Reads the file and sends it to the first who connects.
pub(crate) async fn send(source: &Path, listen: SocketAddr, folder: &Path) -> Result<()> {
    let key = key(&folder.join("rival-sender"))?;
    let config = raw_key::server_config(Arc::new(provider()), key, Anybody)?;
    let listener = TcpListener::bind(listen).await?;
    println!("{}", listener.local_addr()?);
    let (stream, _) = listener.accept().await?;
    let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
    let mut file = File::open(source)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        stream.write_all(&buffer[..read]).await?;
    }
    stream.shutdown().await?;
    told_to_end().await
}

/// Receives, hashes once and writes.
pub(crate) async fn receive(target: &Path, from: SocketAddr, folder: &Path) -> Result<Received> {
    let key = key(&folder.join("rival-receiver"))?;
    let config = raw_key::client_config(Arc::new(provider()), key, Anybody)?;
    let mut sink = Sink::create(target)?;
    let stream = TcpStream::connect(from).await?;
    let name = ServerName::try_from("rival").context("a name")?;
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(sink.finish());
        }
        sink.add(&buffer[..read])?;
    }
}

/// AES-128-GCM as well.
fn provider() -> CryptoProvider {
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider
}

/// Any key does: who is at the other end is not what is measured.
fn key(folder: &Path) -> Result<Arc<CertifiedKey>> {
    Ok(raw_key::certified_key(&Identity::open(folder)?)?)
}

/// Accepts every other end.
#[derive(Debug)]
struct Anybody;

impl Admit for Anybody {
    fn admit(&self, _spki: &[u8]) -> Result<(), rustls::Error> {
        Ok(())
    }
}
