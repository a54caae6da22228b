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
    /// changes nothing; each reason is said once.
    pub(super) async fn keep_reading(mut self, changes: mpsc::Sender<Reloaded>) {
        let mut complained = (None, None);
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

/// Returns what was read; says why it was not, unless that was the `complaint` before.
fn keep<T, E: Display>(
    read: Result<T, E>,
    complaint: &mut Option<String>,
    path: &Path,
) -> Option<T> {
    let error = match read {
        Ok(value) => {
            *complaint = None;
            return Some(value);
        }
        Err(error) => error.to_string(),
    };
    if complaint.as_ref() != Some(&error) {
        let path = path.display();
        tracing::error!(%error, %path, "cannot be used; what was read before stays in force");
        *complaint = Some(error);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::time::timeout;

    use super::*;
    use crate::cluster::fresh_secret;

    fn write(path: &Path, content: &str, mode: u32) {
        // Nodes find the old or the new file, and the new one with its rights.
        let next = path.with_extension("next");
        fs::write(&next, content).expect("written");
        fs::set_permissions(&next, Permissions::from_mode(mode)).expect("changed");
        fs::rename(&next, path).expect("replaced");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_used_any_more_changes_nothing() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("secret");
        let (old, new) = (fresh_secret(), fresh_secret());
        let (old, new) = (old.expect("random"), new.expect("random"));
        write(&path, &old, 0o640);
        let config = Config {
            secret_file: Some(path.clone()),
            ..Config::default()
        };
        let files = Files::read(&config).expect("usable");
        let known = files.known.0.clone();
        let (changes, mut changed) = mpsc::channel(1);
        let telling = async {
            let polls = 3 * POLL_INTERVAL;
            for (content, mode) in [("", 0o640), ("hunter2", 0o640), (new.as_str(), 0o644)] {
                write(&path, content, mode);
                let change = timeout(polls, changed.recv()).await;
                assert!(change.is_err(), "{content} {mode:o}: {change:?}");
            }
            fs::remove_file(&path).expect("removed");
            let change = timeout(polls, changed.recv()).await;
            assert!(change.is_err(), "no file: {change:?}");
            write(&path, &new, 0o640);
            let change = timeout(polls, changed.recv()).await;
            let Ok(Some(Reloaded::Secrets(secrets))) = change else {
                panic!("the new secret is not read: {change:?}");
            };
            assert!(!secrets.is_same(&known));
            drop(changed);
        };
        tokio::join!(files.keep_reading(changes), telling);
    }
}
