//! A registry that misbehaves on demand, for what a healthy one never does.
//!
//! It serves content that a test adds, breaks the answers that a test scripts, and records every
//! request with what became of its answer, so that tests can count the bytes that left the
//! upstream and look at the credentials that reached it. It is no proxy and keeps nothing on disk;
//! a healthy registry is [`crate::upstream`].
//!
//! ```text
//! server      listens, stops, comes back on the same port
//! connection  reads requests, writes answers at a rate, breaks them off
//! wire        the bytes below: TCP or TLS, end by FIN or by RST
//! script      which request gets which treatment
//! answer      what a healthy registry would say
//! content     blobs, manifests, tags and referrers of its repositories
//! guard       Basic and Bearer, with a token service
//! record      what was asked and how it ended
//! gate        lets a test decide when something goes on
//! scene       a node in front of a fake, as most tests want it
//! ```

mod answer;
mod connection;
mod content;
mod gate;
mod guard;
mod record;
mod request;
mod scene;
mod script;
mod server;
mod tls;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use millrace_protocol::oci::Digest;
use parking_lot::Mutex;

pub use content::{Image, noise, sha256};
pub use gate::Gate;
pub use guard::{Bearer, Guard};
pub use record::{Ended, Record};
pub use scene::{Scene, assert_unfinished, assert_whole, code_of};
pub use script::{Canned, Then, When};

use content::Content;
use guard::Guards;
use record::Log;
use script::Script;
use server::Server;
use tls::Tls;

/// What every connection of one fake shares.
#[derive(Debug, Default)]
struct State {
    content: Mutex<Content>,
    script: Mutex<Script>,
    guards: Mutex<Guards>,
    log: Arc<Log>,
}

/// A running fake registry; it ends with the value.
#[derive(Debug)]
pub struct Fake {
    state: Arc<State>,
    address: SocketAddr,
    tls: Option<Tls>,
    server: Mutex<Option<Server>>,
}

impl Fake {
    /// Starts a fake on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start() -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST).await
    }

    /// Starts a fake on a free port of `host`, which is in 127.0.0.0/8: to clients every address
    /// there is another host.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start_at(host: Ipv4Addr) -> Result<Self> {
        Self::listen(host, None).await
    }

    /// Starts a fake that speaks TLS; its certificate is written into `folder` for the node's `ca`.
    ///
    /// # Errors
    /// When no port is free or the certificate cannot be made.
    pub async fn start_tls(folder: &Path) -> Result<Self> {
        Self::listen(Ipv4Addr::LOCALHOST, Some(Tls::generate(folder).await?)).await
    }

    async fn listen(host: Ipv4Addr, tls: Option<Tls>) -> Result<Self> {
        let state = Arc::<State>::default();
        let server = Server::start((host, 0).into(), tls.clone(), state.clone()).await?;
        Ok(Self {
            state,
            address: server.address(),
            tls,
            server: Mutex::new(Some(server)),
        })
    }

    /// Returns where it listens, or listened before it was stopped.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its URL without a path.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Returns the file with its certificate, when it speaks TLS.
    pub fn certificate(&self) -> Option<&Path> {
        self.tls.as_ref().map(Tls::certificate)
    }

    /// Closes every connection and the port: new connections are refused.
    pub async fn stop(&self) {
        let server = self.server.lock().take();
        if let Some(server) = server {
            server.stop().await;
        }
    }

    /// Listens again, on the same port and with the same content.
    ///
    /// # Errors
    /// When somebody took the port meanwhile.
    pub async fn resume(&self) -> Result<()> {
        let server = Server::start(self.address, self.tls.clone(), self.state.clone()).await?;
        *self.server.lock() = Some(server);
        Ok(())
    }

    /// Adds a blob and returns its digest.
    pub fn add_blob(&self, repository: &str, content: impl Into<Bytes>) -> Digest {
        self.state
            .content
            .lock()
            .add_blob(repository, content.into())
    }

    /// Adds `content` as the blob `digest`, whether it is or not.
    pub fn add_blob_as(&self, repository: &str, digest: &Digest, content: impl Into<Bytes>) {
        let mut all = self.state.content.lock();
        all.add_blob_as(repository, digest, content.into());
    }

    /// Takes a blob away.
    pub fn remove_blob(&self, repository: &str, digest: &Digest) {
        self.state.content.lock().remove_blob(repository, digest);
    }

    /// Adds a manifest and returns its digest.
    pub fn add_manifest(
        &self,
        repository: &str,
        media_type: &str,
        content: impl Into<Bytes>,
    ) -> Digest {
        let mut all = self.state.content.lock();
        all.add_manifest(repository, media_type, content.into())
    }

    /// Lets a tag point to a manifest, also one that it did not point to before.
    pub fn set_tag(&self, repository: &str, tag: &str, digest: &Digest) {
        self.state.content.lock().set_tag(repository, tag, digest);
    }

    /// Takes a tag away.
    pub fn remove_tag(&self, repository: &str, tag: &str) {
        self.state.content.lock().remove_tag(repository, tag);
    }

    /// Adds an image of one platform: configuration, layers, manifest and tag.
    pub fn add_image(&self, repository: &str, tag: &str, layers: &[Bytes]) -> Image {
        self.state.content.lock().add_image(repository, tag, layers)
    }

    /// Sets what the referrers API says about `subject`; without it the API does not exist.
    pub fn set_referrers(&self, repository: &str, subject: &Digest, index: impl Into<Bytes>) {
        let mut all = self.state.content.lock();
        all.set_referrers(repository, subject, index.into());
    }

    /// Demands authentication from now on; nothing that was granted before is valid.
    pub fn protect(&self, guard: Guard) {
        self.state.guards.lock().set(guard);
    }

    /// Makes every token that was issued so far expire.
    pub fn expire_tokens(&self) {
        self.state.guards.lock().expire_tokens();
    }

    /// Treats requests that match `when` as `then` says; of several rules the earliest one wins
    /// that still applies.
    pub fn on(&self, when: When, then: Then) {
        self.state.script.lock().add(when, then);
    }

    /// Makes every blob's body stop after `bytes` until the gate that is returned opens.
    pub fn pause_blobs(&self, bytes: u64) -> Gate {
        let gate = Gate::default();
        self.on(When::get("/blobs/"), Then::healthy().stall(bytes, &gate));
        gate
    }

    /// Forgets all rules: healthy from now on. Answers under way go on as they were.
    pub fn heal(&self) {
        self.state.script.lock().clear();
    }

    /// Returns all requests so far, in order of their arrival.
    pub fn records(&self) -> Vec<Record> {
        self.state.log.all()
    }

    /// Returns the requests so far with this method whose target contains `part`.
    pub fn requests(&self, method: &str, part: &str) -> Vec<Record> {
        let mut records = self.records();
        records.retain(|record| record.method == method && record.target.contains(part));
        records
    }

    /// Counts the requests so far with this method whose target contains `part`.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.requests(method, part).len()
    }

    /// Returns the bytes of bodies that have left for targets that contain `part`.
    pub fn sent_bytes(&self, part: &str) -> u64 {
        let records = self.records();
        let matching = records.iter().filter(|record| record.target.contains(part));
        matching.map(|record| record.sent_bytes).sum()
    }
}
