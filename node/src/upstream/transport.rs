//! One HTTP exchange: which client carries it, how long it may take, what its failure means.
//!
//! Nothing is followed, retried, decompressed or authenticated here. Errors never carry a URL:
//! its query may be a signature.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, LOCATION};
use http::{HeaderMap, Method, StatusCode};
use reqwest::{Certificate, Client, ClientBuilder, Response};
use tokio::time::Instant;
use url::Url;

use super::address::{PublicResolver, is_private_address, is_private_literal};
use super::config::UpstreamConfig;
use super::error::{Defect, Outage, SetupError};
use super::names::host_and_port;
use super::proxies::{self, Proxies};
use super::shortage::{Alarm, Shortage};

/// Largest body of a refusal that is read, in bytes: what it says stands at its beginning.
const MAX_REFUSAL_BYTES: usize = 16 * 1024;

/// How long to wait for the body of a refusal.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

/// The HTTP clients of an upstream; clones share their connections.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    /// For hosts that are configured.
    plain: Client,
    /// For hosts that an upstream names: connects to public addresses only.
    guarded: Client,
    proxies: Arc<Proxies>,
    pub(super) alarm: Arc<Alarm>,
}

/// Builds clients and shares them between upstreams that trust and wait alike.
#[derive(Debug, Default)]
pub(super) struct ClientPool {
    built: HashMap<(Option<PathBuf>, Duration), Clients>,
    /// One for all: what the node lacks, it lacks for every upstream.
    alarm: Arc<Alarm>,
}

impl ClientPool {
    /// Returns the clients for an upstream.
    ///
    /// # Errors
    /// [`SetupError`] when the certificates of `ca` cannot be read or no client can be built.
    pub(super) fn clients(
        &mut self,
        name: &str,
        config: &UpstreamConfig,
    ) -> Result<Clients, SetupError> {
        let key = (config.ca.clone(), config.timeouts.connect);
        if let Some(clients) = self.built.get(&key) {
            return Ok(clients.clone());
        }
        let certificates = match &config.ca {
            Some(path) => read_certificates(name, path)?,
            None => Vec::new(),
        };
        let failed = |error| SetupError::Client {
            upstream: name.to_owned(),
            error,
        };
        let trust = Trust::new(certificates).map_err(failed)?;
        let build = |builder: ClientBuilder| {
            trust
                .apply(builder)
                .connect_timeout(config.timeouts.connect)
                .build()
                .map_err(failed)
        };
        let clients = Clients {
            plain: build(Client::builder())?,
            guarded: build(Client::builder().dns_resolver(PublicResolver))?,
            proxies: Arc::new(Proxies::of_environment()),
            alarm: self.alarm.clone(),
        };
        self.built.insert(key, clients.clone());
        Ok(clients)
    }
}

/// Which certificates a client trusts.
#[derive(Debug)]
struct Trust {
    certificates: Vec<Certificate>,
    with_system: bool,
}

impl Trust {
    /// Trusts the given certificates and the system's.
    ///
    /// A system without any is no reason not to start: what needs none still works, and the rest
    /// fails when it is asked.
    fn new(certificates: Vec<Certificate>) -> reqwest::Result<Self> {
        let mut trust = Self {
            certificates,
            with_system: true,
        };
        let Err(error) = trust.apply(Client::builder()).build() else {
            return Ok(trust);
        };
        trust.with_system = false;
        trust.apply(Client::builder()).build()?;
        tracing::warn!(
            cause = root_cause(&error),
            "no certificates of the system are trusted: https upstreams will fail; install \
             ca-certificates or set SSL_CERT_FILE"
        );
        Ok(trust)
    }

    fn apply(&self, builder: ClientBuilder) -> ClientBuilder {
        let builder = builder
            .user_agent(concat!("millrace/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false);
        let certificates = self.certificates.iter().cloned();
        if self.with_system {
            builder.tls_certs_merge(certificates)
        } else {
            builder.tls_certs_only(certificates)
        }
    }
}

fn read_certificates(upstream: &str, path: &Path) -> Result<Vec<Certificate>, SetupError> {
    let (upstream, path) = (upstream.to_owned(), path.to_owned());
    let pem = match std::fs::read(&path) {
        Ok(pem) => pem,
        Err(error) => {
            return Err(SetupError::ReadCa {
                upstream,
                path,
                error,
            });
        }
    };
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(SetupError::ParseCa { upstream, path }),
    }
}

/// Why an exchange failed.
#[derive(Clone, Debug)]
pub(super) enum ExchangeError {
    Outage(Outage),
    Shortage(Shortage),
    Defect(Defect),
}

/// How long an exchange may take to its headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For one exchange.
    pub(super) response: Duration,
    /// For everything that is done for one attempt.
    pub(super) until: Instant,
}

/// One request to one URL.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    pub(super) method: Method,
    pub(super) url: &'a Url,
    pub(super) headers: HeaderMap,
    /// Whether the host is configured, so that its address does not matter.
    pub(super) may_be_private: bool,
}

impl Clients {
    /// Sends one request and returns the headers of its answer, whatever they say.
    ///
    /// # Errors
    /// An outage when no headers come or a proxy asks for a login, or a shortage when that is this
    /// node's fault;
    /// [`Defect::PrivateAddress`] when the host is not to be contacted.
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(super) async fn exchange(
        &self,
        exchange: Exchange<'_>,
        patience: Patience,
    ) -> Result<Response, ExchangeError> {
        let Exchange {
            method,
            url,
            headers,
            may_be_private,
        } = exchange;
        let proxy = self.proxies.before(url);
        let client = if may_be_private {
            &self.plain
        } else {
            self.client_for_stranger(url, proxy.is_some())?
        };
        let mut request = client.request(method, url.clone()).headers(headers);
        // Bodies are hashed and cut into ranges: they must be the bytes that the digest is of.
        request = request.header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let limit = patience.until.min(Instant::now() + patience.response);
        match tokio::time::timeout_at(limit, request.send()).await {
            Ok(Ok(response)) => not_from_proxy(response, proxy),
            Ok(Err(error)) => Err(failure(url, proxy, error)),
            Err(_) if limit == patience.until => Err(ExchangeError::Outage(Outage::Deadline)),
            Err(_) => Err(ExchangeError::Outage(Outage::Silent(patience.response))),
        }
    }

    /// Returns the client for a host that an upstream named.
    ///
    /// Behind a proxy it is the proxy that resolves names and so decides what they reach; here
    /// only literal addresses can be refused.
    fn client_for_stranger(&self, url: &Url, is_proxied: bool) -> Result<&Client, ExchangeError> {
        if is_private_literal(url) {
            return Err(ExchangeError::Defect(Defect::PrivateAddress(host(url))));
        }
        Ok(if is_proxied {
            &self.plain
        } else {
            &self.guarded
        })
    }
}

/// Passes an answer on, unless it is a proxy's that wants a login: an upstream never says so.
fn not_from_proxy(response: Response, proxy: Option<Arc<str>>) -> Result<Response, ExchangeError> {
    match proxy {
        Some(proxy) if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            let cause = proxies::WANTS_LOGIN.into();
            Err(ExchangeError::Outage(Outage::Proxy { proxy, cause }))
        }
        _ => Ok(response),
    }
}

fn failure(url: &Url, proxy: Option<Arc<str>>, error: reqwest::Error) -> ExchangeError {
    let error = error.without_url();
    if is_private_address(&error) {
        return ExchangeError::Defect(Defect::PrivateAddress(host(url)));
    }
    let cause: Arc<str> = root_cause(&error).into();
    if !error.is_connect() {
        return ExchangeError::Outage(Outage::Broken(cause));
    }
    if let Some(shortage) = Shortage::behind(&error) {
        return ExchangeError::Shortage(shortage);
    }
    ExchangeError::Outage(match proxy {
        Some(proxy) => Outage::Proxy {
            proxy,
            cause: proxies::in_words(&cause).into(),
        },
        None => Outage::Connect(cause),
    })
}

fn host(url: &Url) -> Arc<str> {
    host_and_port(url).into()
}

/// Returns the text of the innermost cause: "connection refused" rather than "error sending".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Returns where a redirect leads, or `None` when the answer is none.
///
/// # Errors
/// [`Defect::NoTarget`] for a redirect without a usable address, [`Defect::Downgrade`] for one
/// from https to http.
pub(super) fn redirect_target(from: &Url, response: &Response) -> Result<Option<Url>, Defect> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let target = location.and_then(|location| from.join(location).ok());
    let web = |url: &Url| matches!(url.scheme(), "http" | "https") && url.host().is_some();
    let mut target = target.filter(web).ok_or(Defect::NoTarget)?;
    if from.scheme() == "https" && target.scheme() == "http" {
        return Err(Defect::Downgrade(host(&target)));
    }
    // The client would turn these into an Authorization header.
    target.set_username("").map_err(|()| Defect::NoTarget)?;
    target.set_password(None).map_err(|()| Defect::NoTarget)?;
    Ok(Some(target))
}

/// Returns the encoding of a body that is not as it should be.
pub(super) fn encoding(headers: &HeaderMap) -> Option<Defect> {
    let encodings = headers.get_all(CONTENT_ENCODING).iter();
    let mut encodings = encodings.map(|value| value.to_str().unwrap_or("unreadable").trim());
    let encoding =
        encodings.find(|text| !text.is_empty() && !text.eq_ignore_ascii_case("identity"))?;
    Some(Defect::Encoded(
        encoding.chars().take(32).collect::<String>().into(),
    ))
}

/// Reads the beginning of the body of a refusal; empty when it does not come soon.
///
/// A body that is read to its end also leaves the connection usable.
pub(super) async fn read_refusal(response: Response) -> Bytes {
    let body = read_bounded(response, MAX_REFUSAL_BYTES);
    match tokio::time::timeout(REFUSAL_PATIENCE, body).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) | Err(_) => Bytes::new(),
    }
}

/// Why a body could not be read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    TooLarge,
    Interrupted,
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_bounded(mut response: Response, limit: usize) -> Result<Bytes, BodyError> {
    let stated = response.content_length().unwrap_or(0);
    if usize::try_from(stated).map_or(true, |stated| stated > limit) {
        return Err(BodyError::TooLarge);
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| BodyError::Interrupted)? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}
