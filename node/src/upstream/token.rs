//! Bearer tokens: asked for once, kept until shortly before they expire.
//!
//! A token is asked for by a task of its own, so that all who need it share one request and none
//! of them can cancel it. How it is asked for is `service`'s; what a challenge means is `challenge`'s
//! to say, whether the credentials go along `confine`'s.
//! Source: CLIENT-CONTRACT U2, U3; distribution's token authentication specification.

mod service;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use http::header::HeaderValue;
use millrace_protocol::oci::RepositoryName;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::time::Instant;
use url::Url;

pub(super) use service::TokenService;

use super::challenge::{Challenge, Grant};
use super::error::CredentialError;
use super::secret::Secret;
use super::shortage::Shortage;
use crate::task::Tasks;

/// Tokens and challenges that are kept per upstream: one per repository in use, some KiB each.
const MAX_CACHED: u64 = 4096;

/// A bearer token.
#[derive(Debug)]
pub(super) struct Token {
    value: Secret,
    fresh_until: Instant,
}

impl Token {
    /// Returns the value of `Authorization: Bearer`, or `None` when it cannot stand in a header.
    pub(super) fn bearer(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.value.reveal())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Why there is no token; shared by all who waited for it.
#[derive(Clone, Debug)]
pub(super) enum TokenError {
    /// The service says 401 or 403.
    Denied(u16),
    /// The service says 429.
    Limited(Option<Duration>),
    /// The service cannot be reached, fails or talks nonsense.
    Failed(Arc<str>),
    /// This node lacks what asking the service takes.
    Shortage(Shortage),
    /// The credentials cannot be read.
    Credentials(CredentialError),
}

/// A token that is asked for: what it grants and to whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) grant: Grant,
    /// Whether it may be asked for in the name of the configured user.
    pub(super) with_login: bool,
}

/// Where a challenge came from.
type Site = (String, RepositoryName);

type Pending = Shared<BoxFuture<'static, Result<Arc<Token>, TokenError>>>;

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Empty,
    Ready(Arc<Token>),
    Pending(Pending),
}

/// The tokens of one upstream.
#[derive(Debug)]
pub(super) struct Tokens {
    slots: Cache<TokenKey, Arc<Mutex<Slot>>>,
    challenges: Cache<Site, Challenge>,
    service: Arc<TokenService>,
    tasks: Tasks,
}

impl Tokens {
    pub(super) fn new(service: TokenService, tasks: Tasks) -> Self {
        Self {
            slots: Cache::new(MAX_CACHED),
            challenges: Cache::new(MAX_CACHED),
            service: Arc::new(service),
            tasks,
        }
    }

    /// Returns the challenge that requests for `repository` at `url` last had to answer.
    pub(super) fn known_challenge(
        &self,
        url: &Url,
        repository: &RepositoryName,
    ) -> Option<Challenge> {
        self.challenges.get(&site(url, repository))
    }

    /// Notes that answering `challenge` is what `url` wants for `repository`.
    pub(super) fn remember(&self, url: &Url, repository: &RepositoryName, challenge: Challenge) {
        self.challenges.insert(site(url, repository), challenge);
    }

    /// Returns a token, and whether it was here before the call.
    ///
    /// A token that the registry has just `refused` is not returned again.
    /// # Errors
    /// [`TokenError`] of the one request that all callers share.
    /// # Cancel safety
    /// Dropping the future does not stop the request.
    pub(super) async fn token(
        &self,
        key: &TokenKey,
        refused: Option<&Arc<Token>>,
    ) -> Result<(Arc<Token>, bool), TokenError> {
        let slot = self.slots.get_with_by_ref(key, Arc::default);
        let pending = {
            let mut state = slot.lock();
            match &*state {
                Slot::Ready(token) if is_usable(token, refused) => {
                    return Ok((token.clone(), true));
                }
                Slot::Pending(pending) if pending.peek().is_none() => pending.clone(),
                Slot::Empty | Slot::Ready(_) | Slot::Pending(_) => {
                    let pending = self.start(key.clone(), slot.clone());
                    *state = Slot::Pending(pending.clone());
                    pending
                }
            }
        };
        pending.await.map(|token| (token, false))
    }

    /// Starts the request; the task writes its result into `slot`, whose lock the caller holds.
    fn start(&self, key: TokenKey, slot: Arc<Mutex<Slot>>) -> Pending {
        let service = self.service.clone();
        let span =
            tracing::debug_span!("upstream.token", upstream.host = key.grant.realm.host_str());
        let stopping = self.tasks.stopping();
        let stopped = || Err(TokenError::Failed("the node is stopping".into()));
        let task = self.tasks.spawn(span, async move {
            let result = tokio::select! {
                result = service.fetch(&key) => result,
                () = stopping => stopped(),
            };
            *slot.lock() = result
                .as_ref()
                .map_or(Slot::Empty, |token| Slot::Ready(token.clone()));
            result
        });
        let ended = |_| Err(TokenError::Failed("the node is stopping".into()));
        task.map(move |result| result.unwrap_or_else(ended))
            .boxed()
            .shared()
    }
}

fn site(url: &Url, repository: &RepositoryName) -> Site {
    (url.origin().ascii_serialization(), repository.clone())
}

fn is_usable(token: &Arc<Token>, refused: Option<&Arc<Token>>) -> bool {
    let refused = refused.is_some_and(|refused| Arc::ptr_eq(refused, token));
    !refused && Instant::now() < token.fresh_until
}
