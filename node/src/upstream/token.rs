//! Bearer tokens: asked for once, kept until shortly before they expire.
//!
//! A token is asked for by a task of its own, so that all who need it share one request and none
//! of them can cancel it. What a challenge means is `challenge`'s to say, whether the credentials
//! go along `confine`'s.
//! Source: CLIENT-CONTRACT U2, U3; distribution's token authentication specification.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use millrace_protocol::oci::RepositoryName;
use moka::sync::Cache;
use parking_lot::Mutex;
use reqwest::Response;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::challenge::{Challenge, Grant};
use super::confine::Confines;
use super::credential::{Credentials, LoginError};
use super::error::CredentialError;
use super::metrics::{Kind, Outcome, UpstreamMetrics};
use super::quota::retry_after;
use super::secret::Secret;
use super::shortage::Shortage;
use super::transport::{self, Clients, Exchange, ExchangeError, Patience};
use crate::task::Tasks;

/// Tokens and challenges that are kept per upstream: one per repository in use, some KiB each.
const MAX_CACHED: u64 = 4096;

/// Largest answer of a token service that is read, in bytes; real tokens have a few KiB.
const MAX_TOKEN_BYTES: usize = 256 * 1024;

/// Lifetime of a token whose service does not state one, by the specification.
const DEFAULT_LIFETIME_SECONDS: u64 = 60;

/// Longest lifetime that is believed.
const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A token is not used in the last part of its life, so that it does not expire on its way; at
/// most this long and never more than a quarter.
const MARGIN: Duration = Duration::from_secs(15);

/// Redirects of a token service that are followed.
const MAX_REDIRECTS: usize = 5;

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

/// How tokens of one upstream are asked for.
#[derive(Debug)]
pub(super) struct TokenService {
    pub(super) clients: Clients,
    pub(super) confines: Confines,
    pub(super) credentials: Arc<Credentials>,
    /// For the whole dance: redirects and a second login included.
    pub(super) patience: Duration,
    pub(super) metrics: UpstreamMetrics,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
    issued_at: Option<String>,
}

impl TokenService {
    async fn fetch(&self, key: &TokenKey) -> Result<Arc<Token>, TokenError> {
        let result = self.login_and_ask(key).await;
        let outcome = match &result {
            Ok(_) => Outcome::Success,
            Err(TokenError::Denied(_)) => Outcome::Denied,
            Err(TokenError::Limited(_)) => Outcome::RateLimited,
            Err(TokenError::Shortage(_)) => Outcome::Shortage,
            Err(TokenError::Failed(_) | TokenError::Credentials(_)) => Outcome::Unavailable,
        };
        self.metrics.count_request(Kind::Token, outcome);
        result.map(Arc::new)
    }

    async fn login_and_ask(&self, key: &TokenKey) -> Result<Token, TokenError> {
        let until = Instant::now() + self.patience;
        if !key.with_login || !self.confines.realm_gets_credentials(&key.grant.realm) {
            return self.ask(&key.grant, None, until).await;
        }
        match self.ask(&key.grant, self.login().await?, until).await {
            Err(TokenError::Denied(_)) if self.credentials.handle_refused().await => {
                self.ask(&key.grant, self.login().await?, until).await
            }
            result => result,
        }
    }

    async fn login(&self) -> Result<Option<HeaderValue>, TokenError> {
        let login = self.credentials.login().await.map_err(no_login)?;
        Ok(login.map(|login| login.basic()))
    }

    async fn ask(
        &self,
        grant: &Grant,
        mut login: Option<HeaderValue>,
        until: Instant,
    ) -> Result<Token, TokenError> {
        let mut url = grant.realm.clone();
        if let Some(service) = &grant.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", &grant.scope);
        let patience = Patience {
            response: self.patience,
            until,
        };
        for _ in 0..=MAX_REDIRECTS {
            let exchange = Exchange {
                method: Method::GET,
                url: &url,
                headers: headers(login.clone()),
                may_be_private: self.confines.realm_may_be_private(&url),
            };
            let response = self.clients.exchange(exchange, patience).await;
            let response = response.map_err(failed)?;
            let target = transport::redirect_target(&url, &response)
                .map_err(|defect| failed(ExchangeError::Defect(defect)))?;
            let Some(target) = target else {
                return read_answer(response, until).await;
            };
            if target.origin() != url.origin() {
                login = None;
            }
            url = target;
        }
        Err(TokenError::Failed("too many redirects".into()))
    }
}

fn headers(login: Option<HeaderValue>) -> HeaderMap {
    let login = login.map(|login| (AUTHORIZATION, login));
    let accept = (ACCEPT, HeaderValue::from_static("application/json"));
    [Some(accept), login].into_iter().flatten().collect()
}

fn no_login(error: LoginError) -> TokenError {
    match error {
        LoginError::Shortage(shortage) => TokenError::Shortage(shortage),
        LoginError::Credentials(error) => TokenError::Credentials(error),
    }
}

fn failed(error: ExchangeError) -> TokenError {
    let text = match error {
        ExchangeError::Shortage(shortage) => return TokenError::Shortage(shortage),
        ExchangeError::Outage(outage) => outage.to_string(),
        ExchangeError::Defect(defect) => defect.to_string(),
    };
    TokenError::Failed(text.into())
}

async fn read_answer(response: Response, until: Instant) -> Result<Token, TokenError> {
    let failed = |text: &str| TokenError::Failed(text.into());
    match response.status() {
        StatusCode::OK => {}
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            return Err(TokenError::Denied(status.as_u16()));
        }
        StatusCode::TOO_MANY_REQUESTS => {
            return Err(TokenError::Limited(retry_after(
                response.headers(),
                SystemTime::now(),
            )));
        }
        status => return Err(failed(&format!("status {}", status.as_u16()))),
    }
    let body = transport::read_bounded(response, MAX_TOKEN_BYTES);
    let body = tokio::time::timeout_at(until, body)
        .await
        .map_err(|_| failed("body stalled"))?;
    let body = body.map_err(|_| failed("body ended early or is too large"))?;
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| failed("malformed answer"))?;
    token(answer, SystemTime::now(), Instant::now()).ok_or_else(|| failed("no token in the answer"))
}

/// Takes a token and reckons how long it is used.
///
/// The time since `issued_at` is taken off where it is plausible: a clock that is wrong by hours
/// must not make every token look expired.
fn token(answer: Answer, wall: SystemTime, now: Instant) -> Option<Token> {
    let given = answer.token.into_iter().chain(answer.access_token);
    let value = given.into_iter().find(|token| !token.reveal().is_empty())?;
    let lifetime = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFETIME_SECONDS));
    let lifetime = lifetime.min(LONGEST_LIFETIME);
    let issued = answer
        .issued_at
        .and_then(|text| humantime::parse_rfc3339_weak(&text).ok());
    let age = issued.and_then(|issued| wall.duration_since(issued).ok());
    let age = age.filter(|age| *age < lifetime).unwrap_or_default();
    let margin = MARGIN.min(lifetime / 4);
    let fresh_until = now + lifetime.saturating_sub(age + margin);
    Some(Token { value, fresh_until })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str, wall: SystemTime) -> Option<(String, Duration)> {
        let now = Instant::now();
        let answer = serde_json::from_str(json).expect("valid JSON");
        token(answer, wall, now)
            .map(|token| (token.value.reveal().to_owned(), token.fresh_until - now))
    }

    #[test]
    fn either_name_and_no_lifetime_will_do() {
        let wall = SystemTime::now();
        let usual = Duration::from_secs(45);
        assert_eq!(
            parsed(r#"{"token":"a"}"#, wall),
            Some(("a".to_owned(), usual))
        );
        assert_eq!(
            parsed(r#"{"access_token":"b","x":1}"#, wall),
            Some(("b".to_owned(), usual))
        );
        assert_eq!(
            parsed(r#"{"token":"","access_token":"b"}"#, wall),
            Some(("b".to_owned(), usual))
        );
        assert_eq!(parsed(r#"{"token":"","expires_in":300}"#, wall), None);
    }

    #[test]
    fn the_lifetime_counts_from_when_it_was_issued() {
        let issued = humantime::parse_rfc3339("2026-01-01T00:00:00Z").expect("a date");
        let json = r#"{"token":"a","expires_in":300,"issued_at":"2026-01-01T00:00:00Z"}"#;
        let life = |wall| parsed(json, wall).expect("a token").1.as_secs();
        assert_eq!(life(issued), 285);
        assert_eq!(life(issued + Duration::from_secs(100)), 185);
        assert_eq!(
            life(issued + Duration::from_secs(9000)),
            285,
            "our clock is ahead"
        );
        assert_eq!(
            life(issued - Duration::from_secs(9000)),
            285,
            "our clock is behind"
        );
        let fraction = json.replace("00Z", "00.123456789Z");
        assert!(
            parsed(&fraction, issued + Duration::from_secs(100))
                .expect("a token")
                .1
                < Duration::from_secs(190)
        );
    }

    #[test]
    fn short_lives_keep_most_of_themselves_and_long_ones_are_cut() {
        let life = |json| parsed(json, SystemTime::now()).expect("a token").1;
        assert_eq!(
            life(r#"{"token":"a","expires_in":4}"#),
            Duration::from_secs(3)
        );
        assert_eq!(life(r#"{"token":"a","expires_in":0}"#), Duration::ZERO);
        let forever = life(r#"{"token":"a","expires_in":18446744073709551615}"#);
        assert_eq!(forever, LONGEST_LIFETIME - MARGIN);
    }
}
