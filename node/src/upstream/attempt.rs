//! One attempt at one endpoint: authentication, redirects, and what the answer means.
//!
//! Retries, fallbacks and the number of attempts are `fetch`'s. An attempt never sends the
//! credentials of this node, or a token that was got with them, to another host than the one
//! that it began with. Source: CLIENT-CONTRACT U1 to U5, U11.

use std::sync::Arc;

use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE};
use http::{Method, StatusCode};
use millrace_protocol::oci::MediaType;
use reqwest::Response;
use tokio::time::Instant;
use url::Url;

use super::Inner;
use super::challenge::Challenge;
use super::endpoint::Endpoint;
use super::error::{Defect, FetchError, Limit, Outage, Subject};
use super::metrics::Kind;
use super::token::{Token, TokenError, TokenKey};
use super::transport::{self, Exchange, ExchangeError, Patience};

/// Redirects that are followed: registries need one or two.
const MAX_REDIRECTS: usize = 5;

/// What ECR says, with 403, about a token that it would have to answer with 401.
const EXPIRED: &str = "authorization token has expired";

/// What is asked of an upstream, wherever it is sent.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) subject: Arc<Subject>,
    /// Path below `/v2/`.
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) range: Option<HeaderValue>,
}

impl Request {
    fn method(&self) -> Method {
        if self.kind == Kind::ManifestHead {
            Method::HEAD
        } else {
            Method::GET
        }
    }

    /// Whether the upstream counts it as a pull.
    pub(super) fn counts(&self) -> bool {
        self.kind == Kind::Manifest
    }

    /// Whether it may be one of a crowd, before which others go.
    pub(super) fn is_for_blob(&self) -> bool {
        self.kind == Kind::Blob
    }

    /// Every manifest type, whatever the client asked for: without them some upstreams convert.
    fn accept(&self) -> String {
        match self.kind {
            Kind::ManifestHead | Kind::Manifest => {
                format!("{}, */*", MediaType::MANIFESTS.join(", "))
            }
            Kind::Referrers => MediaType::OCI_INDEX.to_owned(),
            Kind::Blob | Kind::BlobProbe | Kind::Tags | Kind::Token => "*/*".to_owned(),
        }
    }

    fn headers(&self) -> HeaderMap {
        let accept =
            HeaderValue::try_from(self.accept()).expect("media types are valid in a header");
        let range = self.range.clone().map(|range| (RANGE, range));
        [Some((ACCEPT, accept)), range]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// One attempt at one endpoint.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) inner: &'a Inner,
    pub(super) endpoint: &'a Endpoint,
    pub(super) request: &'a Request,
    /// When it must have headers.
    pub(super) until: Instant,
}

/// What a request was authorised with.
struct Authorization {
    challenge: Challenge,
    header: HeaderValue,
    /// The token, unless it is user and password.
    token: Option<Arc<Token>>,
    /// Whether it is from before this request, so that a refusal may be due to its age.
    aged: bool,
}

/// What is to be done after an answer.
enum Verdict {
    Keep(Response),
    Authorize(Challenge),
}

impl Attempt<'_> {
    /// Runs the attempt to the headers of its final answer: 2xx, or 416 to a range, or a status
    /// by which a `HEAD` says that it is not supported.
    pub(super) async fn run(&self) -> Result<Response, FetchError> {
        let request = self.request;
        let mut url = self.endpoint.join(&request.path, request.query.as_deref());
        let mut trusted = self
            .inner
            .confines
            .endpoint_gets_credentials(self.endpoint.url());
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(&url, trusted).await?;
            let target = transport::redirect_target(&url, &response);
            let Some(target) = target.map_err(|defect| self.bad_answer(defect))? else {
                return self.judge(response).await;
            };
            // Once the request has left its host it is nobody's: not even on its way back.
            trusted &= target.origin() == url.origin();
            transport::read_refusal(response).await;
            url = target;
        }
        Err(self.bad_answer(Defect::TooManyRedirects))
    }

    /// Sends the request to `url`, answering one challenge.
    async fn ask(&self, url: &Url, trusted: bool) -> Result<Response, FetchError> {
        let tokens = &self.inner.tokens;
        let repository = self.request.subject.repository();
        let used = match tokens.known_challenge(url, repository) {
            Some(challenge) => self.authorize(challenge, trusted, None).await?,
            None => None,
        };
        let response = self.exchange(url, used.as_ref()).await?;
        let challenge = match self.verdict(response, used.as_ref()).await? {
            Verdict::Keep(response) => return Ok(response),
            Verdict::Authorize(challenge) => challenge,
        };
        let again = self.authorize(challenge, trusted, used.as_ref()).await?;
        let again = again.ok_or_else(|| self.denied(StatusCode::UNAUTHORIZED))?;
        let response = self.exchange(url, Some(&again)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            tokens.remember(url, repository, again.challenge);
        }
        Ok(response)
    }

    async fn exchange(
        &self,
        url: &Url,
        with: Option<&Authorization>,
    ) -> Result<Response, FetchError> {
        let mut headers = self.request.headers();
        if let Some(authorization) = with {
            headers.insert(AUTHORIZATION, authorization.header.clone());
        }
        let exchange = Exchange {
            method: self.request.method(),
            url,
            headers,
            may_be_private: self.inner.confines.redirect_may_be_private(url),
        };
        let patience = Patience {
            response: self.inner.timeouts.response,
            until: self.until,
        };
        let response = self.inner.clients.exchange(exchange, patience).await;
        let response = response.map_err(|error| match error {
            ExchangeError::Outage(reason) => self.unavailable(reason),
            ExchangeError::Shortage(shortage) => self.inner.shortage(shortage),
            ExchangeError::Defect(defect) => self.bad_answer(defect),
        })?;
        if url.origin() == self.endpoint.url().origin()
            && let Some(pulls) = self.endpoint.handle_headers(response.headers())
        {
            self.inner.metrics.set_remaining(pulls);
        }
        Ok(response)
    }

    /// Decides whether an answer asks for another authorization than it was given.
    async fn verdict(
        &self,
        response: Response,
        used: Option<&Authorization>,
    ) -> Result<Verdict, FetchError> {
        let status = response.status();
        let aged = used.filter(|used| used.aged);
        if status == StatusCode::FORBIDDEN
            && let Some(aged) = aged
        {
            let body = transport::read_refusal(response).await;
            let expired = String::from_utf8_lossy(&body)
                .to_lowercase()
                .contains(EXPIRED);
            return if expired {
                Ok(Verdict::Authorize(aged.challenge.clone()))
            } else {
                Err(self.denied(status))
            };
        }
        if status != StatusCode::UNAUTHORIZED {
            return Ok(Verdict::Keep(response));
        }
        let challenge = Challenge::of(response.headers(), self.request.subject.repository());
        let challenge = challenge.ok_or_else(|| self.denied(status))?;
        transport::read_refusal(response).await;
        match used {
            Some(used) if !used.aged && used.challenge == challenge => Err(self.denied(status)),
            _ => Ok(Verdict::Authorize(challenge)),
        }
    }

    /// Returns the answer to a challenge, or `None` when there is no other than the `refused` one.
    async fn authorize(
        &self,
        challenge: Challenge,
        trusted: bool,
        refused: Option<&Authorization>,
    ) -> Result<Option<Authorization>, FetchError> {
        let refused = refused.filter(|refused| refused.challenge == challenge);
        match &challenge {
            Challenge::Basic if !trusted => Ok(None),
            Challenge::Basic => self.login(challenge, refused.is_some()).await,
            Challenge::Bearer(grant) => {
                let with_login = trusted && !self.inner.credentials.is_anonymous();
                let key = TokenKey {
                    grant: grant.clone(),
                    with_login,
                };
                let refused = refused.and_then(|refused| refused.token.as_ref());
                let token = self.inner.tokens.token(&key, refused);
                let token = tokio::time::timeout_at(self.until, token).await;
                let (token, aged) = token
                    .map_err(|_| self.unavailable(Outage::Deadline))?
                    .map_err(|error| self.no_token(error))?;
                let header = token.bearer().ok_or_else(|| {
                    self.unavailable(Outage::TokenService("the token is not printable".into()))
                })?;
                Ok(Some(Authorization {
                    challenge,
                    header,
                    token: Some(token),
                    aged,
                }))
            }
        }
    }

    async fn login(
        &self,
        challenge: Challenge,
        was_refused: bool,
    ) -> Result<Option<Authorization>, FetchError> {
        let credentials = &self.inner.credentials;
        if was_refused && !credentials.handle_refused().await {
            return Ok(None);
        }
        let login = tokio::time::timeout_at(self.until, credentials.login()).await;
        let login = login
            .map_err(|_| self.unavailable(Outage::Deadline))?
            .map_err(|error| self.inner.no_login(error))?;
        let aged = !was_refused;
        Ok(login.map(|login| Authorization {
            challenge,
            header: login.basic(),
            token: None,
            aged,
        }))
    }

    /// Decides what the final answer means.
    async fn judge(&self, response: Response) -> Result<Response, FetchError> {
        let status = response.status();
        match status.as_u16() {
            200 | 206 => match transport::encoding(response.headers()) {
                Some(defect) => Err(self.bad_answer(defect)),
                None => Ok(response),
            },
            416 if self.request.range.is_some() => Ok(response),
            401 | 403 => {
                transport::read_refusal(response).await;
                Err(self.denied(status))
            }
            404 | 410 => {
                transport::read_refusal(response).await;
                Err(FetchError::NotFound {
                    upstream: self.inner.name.clone(),
                    subject: self.request.subject.clone(),
                })
            }
            429 => {
                let headers = response.headers().clone();
                let body = transport::read_refusal(response).await;
                let pause = self
                    .endpoint
                    .handle_refusal(self.request.counts(), &headers, &body);
                Err(self.inner.rate_limited(pause))
            }
            400..=499 | 501
                if self.request.kind == Kind::ManifestHead && status.as_u16() != 408 =>
            {
                Ok(response)
            }
            408 | 500..=599 => Err(self.unavailable(Outage::Status(status.as_u16()))),
            status => Err(self.bad_answer(Defect::Status(status))),
        }
    }

    fn no_token(&self, error: TokenError) -> FetchError {
        match error {
            TokenError::Denied(status) => FetchError::Denied {
                upstream: self.inner.name.clone(),
                subject: self.request.subject.clone(),
                status,
            },
            TokenError::Limited(pause) => self
                .inner
                .rate_limited(self.endpoint.pause(Limit::Requests, pause)),
            TokenError::Shortage(shortage) => self.inner.shortage(shortage),
            TokenError::Failed(cause) => self.unavailable(Outage::TokenService(cause)),
            TokenError::Credentials(error) => self.unavailable(Outage::Credentials(error)),
        }
    }

    fn denied(&self, status: StatusCode) -> FetchError {
        FetchError::Denied {
            upstream: self.inner.name.clone(),
            subject: self.request.subject.clone(),
            status: status.as_u16(),
        }
    }

    fn unavailable(&self, reason: Outage) -> FetchError {
        self.inner.unavailable(reason)
    }

    fn bad_answer(&self, defect: Defect) -> FetchError {
        self.inner.bad_answer(&self.request.subject, defect)
    }
}
