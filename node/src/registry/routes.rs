//! From a request to an answer: which handler, and what all answers have in common.
//!
//! Nothing of a request's body is ever read. The handlers say what is in an answer; status codes
//! of failures are `respond`'s.

use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use millrace_protocol::oci::route::{Endpoint, Resource, Route, Upstream as Named, decode_path};
use millrace_protocol::oci::{ErrorCode, InvalidReference};
use tokio::time::Instant;

use crate::pull::{Origin, Source};
use crate::upstream::Upstream;

use super::activity::Activity;
use super::answer::{Answer, OCI_NAMESPACE};
use super::auth::{Caller, Htpasswd, Refused};
use super::body::{Access, Body};
use super::greet::Guest;
use super::metrics::Answered;
use super::respond::{self, Failure};
use super::{Registry, blobs, manifests, referrers, tags};

/// What a handler reads of a request.
struct Asked<'a> {
    is_head: bool,
    headers: &'a HeaderMap,
    query: Option<&'a str>,
    caller: &'a Caller,
}

impl Registry {
    /// Answers one request; never reads its body.
    ///
    /// # Cancel safety
    /// Dropping the future, or the answer's body, removes a waiter and nothing else.
    /// Source: OCI Distribution Spec v1.1.1, "Endpoints".
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body> {
        self.answer_on(request, &Guest::default(), None).await
    }

    /// Answers a request of a connection, whose `activity` is told when the answer has ended.
    pub(super) async fn answer_on<B>(
        &self,
        request: Request<B>,
        guest: &Guest,
        activity: Option<Arc<Activity>>,
    ) -> Response<Body> {
        let began = Instant::now();
        let (request, _unread) = request.into_parts();
        let admitted = Caller::admit(guest, &request.headers, &self.inner.metrics).await;
        let caller = admitted.as_ref().unwrap_or(&Caller::NOBODY);
        let (endpoint, mut answer) = match (&admitted, decode_path(request.uri.path())) {
            (Ok(caller), Some(path)) => self.route(&request, &path, caller).await,
            (Ok(_), None) => {
                let failure = Failure::code(ErrorCode::NameInvalid);
                ("unknown", self.fail(&failure, &request.headers))
            }
            (Err(refused), _) => {
                let failure = refusal(*refused, guest);
                ("refused", self.fail(&failure, &request.headers))
            }
        };
        answer.complete(request.method == Method::HEAD);
        let first_byte = began.elapsed();
        let answered = Answered {
            endpoint,
            method: &request.method,
            status: answer.status,
            source: answer.source,
        };
        self.inner.metrics.count(&answered, first_byte);
        let counter = self.inner.metrics.sent_bytes(answer.source);
        let is_logged = answer.trouble.is_some()
            || tracing::enabled!(target: "millrace::access", tracing::Level::DEBUG);
        let access = is_logged.then(|| {
            Box::new(Access {
                path: request.uri.path().to_owned(),
                user_agent: user_agent(&request.headers),
                user: caller.user.clone(),
                method: request.method,
                status: answer.status,
                source: answer.source.map_or("none", Source::as_str),
                began,
                first_byte,
                trouble: answer.trouble,
            })
        });
        let body = Body::new(answer.content, counter, activity, access);
        let mut response = Response::new(body);
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        response
    }

    /// Takes the URL apart and chooses the handler; also returns the endpoint's name in metrics.
    async fn route(
        &self,
        request: &http::request::Parts,
        path: &str,
        caller: &Caller,
    ) -> (&'static str, Answer) {
        let upstreams = &self.inner.upstreams;
        let query = request.uri.query();
        let route = Route::parse(path, query, |name| upstreams.find(name));
        let asked = Asked {
            is_head: request.method == Method::HEAD,
            headers: &request.headers,
            query,
            caller,
        };
        let endpoint = label(&route.endpoint);
        let result = if is_allowed(&request.method) {
            self.dispatch(&route, &asked).await
        } else {
            Err(Failure::Method)
        };
        let mut answer = result.unwrap_or_else(|failure| self.fail(&failure, asked.headers));
        if let Some(upstream) = self.upstream(&route)
            && let Ok(name) = HeaderValue::from_str(upstream.name())
        {
            answer.headers.insert(&OCI_NAMESPACE, name);
        }
        (endpoint, answer)
    }

    fn fail(&self, failure: &Failure, headers: &HeaderMap) -> Answer {
        respond::respond(failure, self.inner.config.unavailable_blob, headers)
    }

    /// Returns the upstream whose content is asked for, if it is configured.
    fn upstream<'a>(&'a self, route: &'a Route<'_, Upstream>) -> Option<&'a Upstream> {
        match (&route.upstream, &route.endpoint) {
            (Named::Known(upstream), _) => Some(upstream),
            (Named::Default, Endpoint::Repository { .. }) => Some(&self.inner.default_upstream),
            (Named::Default | Named::Unknown(_), _) => None,
        }
    }

    async fn dispatch(
        &self,
        route: &Route<'_, Upstream>,
        asked: &Asked<'_>,
    ) -> Result<Answer, Failure> {
        match (&route.endpoint, &route.upstream) {
            // Whatever upstream is meant: a client that gets anything but 200 here thinks that
            // this is no registry (CLIENT-CONTRACT E1).
            (Endpoint::Ping, _) => Ok(Answer::json(StatusCode::OK, b"{}".to_vec())),
            (Endpoint::Unknown, _) => Err(Failure::because(
                ErrorCode::NameUnknown,
                "there is no such endpoint",
            )),
            (_, Named::Unknown(name)) => Err(Failure::because(
                ErrorCode::NameUnknown,
                format!("upstream {name} is not configured"),
            )),
            (Endpoint::Catalog, _) => Ok(self.catalog(route, asked).await),
            (
                Endpoint::Repository {
                    name,
                    repository,
                    resource,
                },
                Named::Known(_) | Named::Default,
            ) => {
                let invalid = |_| Failure::code(ErrorCode::NameInvalid);
                let repository = repository.clone().map_err(invalid)?;
                let upstream = self.upstream(route).unwrap_or(&self.inner.default_upstream);
                let origin = Origin {
                    repository: upstream.canonical(repository),
                    upstream: upstream.clone(),
                };
                let caller = asked.caller.for_rules();
                if !self.inner.puller.permits(&origin, &caller) {
                    return Err(kept_back(resource));
                }
                self.content(route, (name, resource), &origin, asked).await
            }
        }
    }

    async fn catalog(&self, route: &Route<'_, Upstream>, asked: &Asked<'_>) -> Answer {
        let upstream = self.upstream(route).map(Upstream::name);
        let mut names = self.inner.puller.repositories().await;
        names.retain(|name| self.may_list(name, asked.caller));
        tags::catalog(&names, upstream, route, asked.query)
    }

    fn may_list(&self, name: &str, caller: &Caller) -> bool {
        let (upstream, _) = name.split_once('/').unwrap_or((name, ""));
        let upstream = self.inner.upstreams.find(upstream);
        // Of an upstream that is not there any more nothing is known, so nothing is told.
        let is_anonymous = upstream.is_some_and(|upstream| upstream.credential().is_anonymous());
        let puller = &self.inner.puller;
        puller.may_list(name, is_anonymous, &caller.for_rules())
    }

    async fn content(
        &self,
        route: &Route<'_, Upstream>,
        (name, resource): (&str, &Resource),
        origin: &Origin,
        asked: &Asked<'_>,
    ) -> Result<Answer, Failure> {
        let (puller, headers) = (&self.inner.puller, asked.headers);
        let malformed = |error: &dyn std::fmt::Display| {
            Failure::because(ErrorCode::DigestInvalid, error.to_string())
        };
        match resource {
            Resource::Manifest(Ok(reference)) if asked.is_head => {
                manifests::head(puller, origin, reference, headers).await
            }
            Resource::Manifest(Ok(reference)) => {
                manifests::get(puller, origin, reference, headers).await
            }
            Resource::Manifest(Err(InvalidReference::Digest(error))) => Err(malformed(error)),
            // No manifest can have this tag, so it does not exist (E3).
            Resource::Manifest(Err(_)) => Err(Failure::code(ErrorCode::ManifestUnknown)),
            Resource::Blob(Ok(digest)) if asked.is_head => {
                blobs::head(puller, origin, digest, headers).await
            }
            Resource::Blob(Ok(digest)) => blobs::get(puller, origin, digest, headers).await,
            Resource::Blob(Err(error)) | Resource::Referrers(Err(error)) => Err(malformed(error)),
            Resource::Tags => tags::list(puller, origin, (route, name), asked.query).await,
            Resource::Referrers(Ok(digest)) => {
                referrers::list(puller, origin, (route, digest), asked.query).await
            }
            Resource::Upload => Err(Failure::code(ErrorCode::BlobUploadUnknown)),
        }
    }
}

/// What a client is told that is not let in: the same at every endpoint.
fn refusal(refused: Refused, guest: &Guest) -> Failure {
    match refused {
        Refused::Credentials => {
            let htpasswd = guest.terms.admission.htpasswd.as_ref();
            Failure::Login(htpasswd.map_or("", Htpasswd::realm).to_owned())
        }
        Refused::Certificate => Failure::because(
            ErrorCode::Denied,
            "a client certificate is needed, and https",
        ),
        Refused::Busy => Failure::because(
            ErrorCode::Unavailable,
            "too many passwords are waiting to be verified",
        ),
    }
}

/// What a client is told of a repository that it may not read: the same whether it exists or not,
/// and what sends the client on.
fn kept_back(resource: &Resource) -> Failure {
    Failure::code(match resource {
        Resource::Blob(_) => ErrorCode::BlobUnknown,
        Resource::Upload => ErrorCode::BlobUploadUnknown,
        Resource::Manifest(_) | Resource::Tags | Resource::Referrers(_) => ErrorCode::NameUnknown,
    })
}

fn label(endpoint: &Endpoint<'_>) -> &'static str {
    match endpoint {
        Endpoint::Ping => "ping",
        Endpoint::Catalog => "catalog",
        Endpoint::Unknown => "unknown",
        Endpoint::Repository { resource, .. } => match resource {
            Resource::Manifest(_) => "manifests",
            Resource::Blob(_) => "blobs",
            Resource::Tags => "tags",
            Resource::Referrers(_) => "referrers",
            Resource::Upload => "uploads",
        },
    }
}

/// The client's name for the log; only what is printable.
fn user_agent(headers: &HeaderMap) -> String {
    headers
        .get(USER_AGENT)
        .and_then(|agent| agent.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

/// Whether a client may use this method.
fn is_allowed(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}
