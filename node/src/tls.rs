//! TLS for listeners: certificates from files, replaced while connections run.
//!
//! [`Tls::load`] reads the files and says clearly what is wrong with them. [`Tls::watch`] looks at
//! them again and again: what can be used takes the place of what was there for connections that
//! come later, what cannot is told and changes nothing.
//!
//! This room accepts no connection and knows neither HTTP nor who may read what.

mod certificate;
mod config;
mod error;
mod files;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use serde::Serialize;

pub use certificate::client_names;
pub use config::{ClientAuth, Config, MinimumTls};
pub use error::TlsError;
pub use files::Files;

use files::{Fingerprint, Loaded};

use crate::watch::{self, Refusal, Unusable};

/// From this time before its end on, a certificate is complained about at every start and reload.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// The certificate of a listener; clones share it.
#[derive(Clone, Debug)]
pub struct Tls {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    files: Files,
    current: ArcSwap<Loaded>,
    refused: Unusable<Fingerprint>,
}

/// The certificate in use.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// End of the chain's validity, in seconds since 1970.
    pub not_after_unix_seconds: u64,
    /// How often the files were taken over since the start.
    pub reloads: u64,
    /// Why the files as they are now are not used; absent when they are.
    pub refused: Option<Refusal>,
}

impl Tls {
    /// Reads certificate, key and client authorities; blocks.
    ///
    /// # Errors
    /// [`TlsError`], naming the file that is at fault.
    pub fn load(files: Files) -> Result<Self, TlsError> {
        let loaded = files.load(&files.read()?, SystemTime::now())?;
        loaded.warn_if_short();
        let inner = Inner {
            files,
            current: ArcSwap::from_pointee(loaded),
            refused: Unusable::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Returns what the next connection is to be accepted with.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.inner.current.load().server)
    }

    /// Returns what is in use, and what is wrong with the files.
    pub fn status(&self) -> Status {
        let current = self.inner.current.load();
        Status {
            not_after_unix_seconds: current.not_after_unix_seconds,
            reloads: current.generation,
            refused: self.inner.refused.last(),
        }
    }

    /// Takes over changes of the files until `stopping` resolves.
    ///
    /// # Cancel safety
    /// Dropping the future ends the watching; a file that is being read is taken over or not.
    pub async fn watch(self, stopping: impl Future<Output = ()>) {
        watch::poll("the certificate files", move || self.reload(), stopping).await;
    }

    /// Looks at the files once; blocks.
    fn reload(&self) {
        let files = &self.inner.files;
        let (fingerprint, read) = match files.read() {
            Ok(read) => (read.fingerprint(), Ok(read)),
            Err(error) => (Fingerprint::of_error(&error), Err(error)),
        };
        let current = self.inner.current.load();
        if current.fingerprint == fingerprint {
            // Back to what is in use: whatever was wrong is not there any more.
            self.inner.refused.clear();
            return;
        }
        if self.inner.refused.is_known(&fingerprint) {
            return;
        }
        match read.and_then(|read| files.load(&read, SystemTime::now())) {
            Ok(mut loaded) => {
                loaded.generation = current.generation + 1;
                loaded.warn_if_short();
                self.inner.current.store(Arc::new(loaded));
                self.inner.refused.clear();
                tracing::info!("the certificate files have changed and are in use");
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the certificate files have changed and cannot be used; the old ones stay"
                );
                self.inner.refused.refuse(fingerprint, &error);
            }
        }
    }
}

impl Loaded {
    fn warn_if_short(&self) {
        let soon = unix_seconds(SystemTime::now() + EXPIRES_SOON);
        if self.not_after_unix_seconds < soon {
            let end = Duration::from_secs(self.not_after_unix_seconds);
            let end = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + end);
            tracing::warn!(not_after = %end, "the certificate ends soon");
        }
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
