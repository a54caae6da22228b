//! Asking a token service: the login, redirects, and what its answer is worth.
//!
//! One request for one token; who waits for it and how long it is kept is `token`'s. A login never
//! follows a redirect to another host.
//! Source: CLIENT-CONTRACT U2, U3; distribution's token authentication specification.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use reqwest::Response;
use serde::Deserialize;
use tokio::time::Instant;

use super::super::challenge::Grant;
use super::super::confine::Confines;
use super::super::credential::{Credentials, LoginError};
use super::super::metrics::{Kind, Outcome, UpstreamMetrics};
use super::super::quota::retry_after;
use super::super::secret::Secret;
use super::super::transport::{self, Clients, Exchange, ExchangeError, Patience};
use super::{Token, TokenError, TokenKey};

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

/// How tokens of one upstream are asked for.
#[derive(Debug)]
pub(in crate::upstream) struct TokenService {
    pub(in crate::upstream) clients: Clients,
    pub(in crate::upstream) confines: Confines,
    pub(in crate::upstream) credentials: Arc<Credentials>,
    /// For the whole dance: redirects and a second login included.
    pub(in crate::upstream) patience: Duration,
    pub(in crate::upstream) metrics: UpstreamMetrics,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
    issued_at: Option<String>,
}

impl TokenService {
    /// Asks for a token, by a second login if the first is refused.
    pub(super) async fn fetch(&self, key: &TokenKey) -> Result<Arc<Token>, TokenError> {
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
