//! TLS for listeners: certificates from files, replaced while connections run.
//!
//! [`Tls::load`] reads the files and says clearly what is wrong with them. [`Tls::watch`] looks at
//! them again and again: what can be used takes the place of what was there for connections that
//! come later, what cannot is told and changes nothing. Polling and not notification, because
//! files in containers are often links that are swapped far from the path that is configured.
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
use parking_lot::Mutex;
use rustls::ServerConfig;
use serde::Serialize;

pub use certificate::client_names;
pub use config::{ClientAuth, Config, MinimumTls};
pub use error::TlsError;
pub use files::Files;

use files::Loaded;

/// How often the files are looked at. A renewed certificate is urgent by days, a withdrawn client
/// authority by less; reading a few kilobytes costs nothing.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

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
    /// The content that could not be used, by its fingerprint, and why.
    refused: Mutex<Option<(files::Fingerprint, Refusal)>>,
}

/// A change of the files that could not be used.
#[derive(Clone, Debug, Serialize)]
pub struct Refusal {
    /// When it was found, in seconds since 1970.
    pub at_unix_seconds: u64,
    /// What is wrong.
    pub message: String,
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
            refused: Mutex::default(),
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
        let refused = self.inner.refused.lock();
        Status {
            not_after_unix_seconds: current.not_after_unix_seconds,
            reloads: current.generation,
            refused: refused.as_ref().map(|(_, refusal)| refusal.clone()),
        }
    }

    /// Takes over changes of the files until `stopping` resolves.
    ///
    /// # Cancel safety
    /// Dropping the future ends the watching; a file that is being read is taken over or not.
    pub async fn watch(self, stopping: impl Future<Output = ()>) {
        let mut stopping = std::pin::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => return,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
            let tls = self.clone();
            let reloaded = tokio::task::spawn_blocking(move || tls.reload()).await;
            if let Err(error) = reloaded {
                tracing::error!(%error, "the certificate files cannot be looked at");
            }
        }
    }

    /// Looks at the files once; blocks.
    fn reload(&self) {
        let files = &self.inner.files;
        let (fingerprint, read) = match files.read() {
            Ok(read) => (read.fingerprint(), Ok(read)),
            Err(error) => (files::Fingerprint::of_error(&error), Err(error)),
        };
        let current = self.inner.current.load();
        if current.fingerprint == fingerprint {
            // Back to what is in use: whatever was wrong is not there any more.
            *self.inner.refused.lock() = None;
            return;
        }
        let is_known =
            matches!(&*self.inner.refused.lock(), Some((known, _)) if *known == fingerprint);
        if is_known {
            return;
        }
        match read.and_then(|read| files.load(&read, SystemTime::now())) {
            Ok(mut loaded) => {
                loaded.generation = current.generation + 1;
                loaded.warn_if_short();
                self.inner.current.store(Arc::new(loaded));
                *self.inner.refused.lock() = None;
                tracing::info!("the certificate files have changed and are in use");
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the certificate files have changed and cannot be used; the old ones stay"
                );
                *self.inner.refused.lock() = Some((fingerprint, Refusal::now(&error)));
            }
        }
    }
}

impl Refusal {
    /// Describes an error that was found now, with what is behind it.
    fn now(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        Self {
            at_unix_seconds: unix_seconds(SystemTime::now()),
            message,
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
