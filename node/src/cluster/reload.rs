//! What a cluster is entered with: secrets, and who is kept out. Read before anything is started, and
//! again while the node runs, because files change. What a secret or an id is, `secrets` and `denied`
//! say.

use std::fmt::Display;
use std::path::Path;

use millrace_protocol::node_id::NodeId;
use tokio::sync::mpsc;

use super::config::Config;
use super::denied::DeniedSource;
use super::error::StartError;
use super::secrets::{SecretSource, Secrets};

use crate::watch::POLL_INTERVAL;

/// What has changed.
#[derive(Debug)]
pub(super) enum Reloaded {
    Secrets(Secrets),
    Denied(Vec<NodeId>),
}

/// Secrets and denied nodes as they last were, and where they come from.
#[derive(Debug)]
pub struct Files {
    secrets: SecretSource,
    denied: DeniedSource,
    pub(super) known: (Secrets, Vec<NodeId>),
}

impl Files {
    /// Reads what the configuration names.
    ///
    /// # Errors
    /// [`StartError::Config`], [`StartError::Secret`], [`StartError::DenyFile`]: each is to be mended by
    /// whoever wrote the configuration.
    pub fn read(config: &Config) -> Result<Self, StartError> {
        config
            .check()
            .map_err(|(key, error)| StartError::Config { key, error })?;
        let secrets = config.secret_source()?;
        let denied = DeniedSource::new(config);
        let known_denied = denied.read().map_err(|source| StartError::DenyFile {
            path: denied.path().to_owned(),
            source,
        })?;
        let known = (secrets.read()?, known_denied);
        Ok(Self {
            secrets,
            denied,
            known,
        })
    }

    /// Reads the files over and over, until nobody listens any more. A file that cannot be used
    /// changes nothing; that is said once.
    pub(super) async fn keep_reading(mut self, changes: mpsc::Sender<Reloaded>) {
        let mut complained = (false, false);
        loop {
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = changes.closed() => return,
            }
            let (secrets, denied) = (self.secrets.clone(), self.denied.clone());
            let reading = tokio::task::spawn_blocking(move || (secrets.read(), denied.read()));
            let Ok((secrets, denied)) = reading.await else {
                return;
            };
            let secrets = keep(secrets, &mut complained.0, Path::new("cluster.secret_file"));
            let denied = keep(denied, &mut complained.1, self.denied.path());
            for change in self.compare(secrets, denied) {
                if changes.send(change).await.is_err() {
                    return;
                }
            }
        }
    }

    fn compare(
        &mut self,
        secrets: Option<Secrets>,
        denied: Option<Vec<NodeId>>,
    ) -> impl Iterator<Item = Reloaded> + use<> {
        let secrets = secrets.filter(|secrets| !secrets.is_same(&self.known.0));
        if let Some(secrets) = &secrets {
            self.known.0 = secrets.clone();
        }
        let denied = denied.filter(|denied| *denied != self.known.1);
        if let Some(denied) = &denied {
            self.known.1.clone_from(denied);
        }
        let secrets = secrets.map(Reloaded::Secrets);
        secrets.into_iter().chain(denied.map(Reloaded::Denied))
    }
}

/// Returns what was read; says the first time that it was not.
fn keep<T, E: Display>(read: Result<T, E>, complained: &mut bool, path: &Path) -> Option<T> {
    match read {
        Ok(value) => {
            *complained = false;
            Some(value)
        }
        Err(error) => {
            if !std::mem::replace(complained, true) {
                let path = path.display();
                tracing::error!(%error, %path, "cannot be used; what was read before stays in force");
            }
            None
        }
    }
}
