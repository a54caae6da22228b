//! Who asks: passwords from an htpasswd file, and what a caller is after that.
//!
//! Every endpoint is behind the same question, because some clients look for the challenge at
//! `/v2/` and some only where they are refused (CLIENT-CONTRACT A2). What comes in may be somebody's
//! password for another registry (A4): it is compared and dropped, never logged, stored or sent on.
//! What a caller may read is not decided here.

mod basic;
mod caller;
mod logins;
pub mod users;

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;
use serde::Serialize;

pub use caller::Admission;
pub(super) use caller::Caller;

use basic::Basic;
use logins::Logins;
use users::{Users, UsersError};

use crate::watch::{self, Refusal, Unusable};

/// A file of users and passwords; clones share it.
#[derive(Clone)]
pub struct Htpasswd {
    inner: Arc<Inner>,
}

struct Inner {
    realm: String,
    path: PathBuf,
    users: ArcSwap<Users>,
    logins: Logins,
    /// The text that could not be used; `None` is one that could not be read.
    refused: Unusable<Option<String>>,
}

impl fmt::Debug for Htpasswd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Htpasswd")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

/// The users in force.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The file.
    pub path: PathBuf,
    /// How many users it names.
    pub users: usize,
    /// Why the file as it is now is not used; absent when it is.
    pub refused: Option<Refusal>,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// No password, or one that is wrong.
    Credentials,
    /// No certificate where one is needed and a password would not do.
    Certificate,
    /// Too many passwords wait to be verified.
    Busy,
}

/// How a password fared, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Missing,
    Right,
    Wrong,
    Busy,
}

impl Outcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Right => "right",
            Self::Wrong => "wrong",
            Self::Busy => "busy",
        }
    }
}

impl Htpasswd {
    /// Reads the file; blocks.
    ///
    /// # Errors
    /// [`UsersError`]: the file cannot be read, or has a line that cannot be used.
    pub fn load(realm: String, path: PathBuf) -> Result<Self, UsersError> {
        let users = Users::parse(&path, users::read(&path)?)?;
        if users.is_empty() {
            tracing::warn!(path = %path.display(), "the htpasswd file names nobody, so nobody can log in");
        }
        let inner = Inner {
            realm,
            path,
            users: ArcSwap::from_pointee(users),
            logins: Logins::new(),
            refused: Unusable::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Returns what clients are told that they log in to.
    pub(super) fn realm(&self) -> &str {
        &self.inner.realm
    }

    /// Returns what is in force, and what is wrong with the file.
    pub fn status(&self) -> Status {
        Status {
            path: self.inner.path.clone(),
            users: self.inner.users.load().len(),
            refused: self.inner.refused.last(),
        }
    }

    /// Returns the user whose name and password the headers carry.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a verification running, so that it is not for nothing.
    pub(super) async fn login(
        &self,
        headers: &HeaderMap,
        from: Option<IpAddr>,
    ) -> (Outcome, Option<Arc<str>>) {
        let Some(basic) = Basic::of(headers) else {
            return (Outcome::Missing, None);
        };
        let users = self.inner.users.load_full();
        let found = users.find(basic.user());
        let stored = found.map(|(_, hash)| hash);
        let checked = self
            .inner
            .logins
            .check(&basic, stored, users.max_cost(), from);
        match (checked.await, found) {
            (Ok(true), Some((name, _))) => (Outcome::Right, Some(Arc::clone(name))),
            (Ok(_), _) => (Outcome::Wrong, None),
            (Err(logins::Busy), _) => (Outcome::Busy, None),
        }
    }

    /// Takes over changes of the file until `stopping` resolves.
    ///
    /// # Cancel safety
    /// Dropping the future ends the watching; a file that is being read is taken over or not.
    pub async fn watch(self, stopping: impl Future<Output = ()>) {
        watch::poll("the htpasswd file", move || self.reload(), stopping).await;
    }

    /// Looks at the file once; blocks.
    fn reload(&self) {
        let inner = &self.inner;
        let text = users::read(&inner.path);
        let seen = text.as_ref().ok().cloned();
        if seen.as_deref() == Some(inner.users.load().text()) {
            inner.refused.clear();
            return;
        }
        if inner.refused.is_known(&seen) {
            return;
        }
        match text.and_then(|text| Users::parse(&inner.path, text)) {
            Ok(users) => {
                tracing::info!(
                    users = users.len(),
                    "the htpasswd file has changed and is in force"
                );
                inner.users.store(Arc::new(users));
                inner.refused.clear();
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the htpasswd file has changed and cannot be used; the users as they were stay"
                );
                inner.refused.refuse(seen, &error);
            }
        }
    }
}
