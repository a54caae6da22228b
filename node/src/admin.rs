//! The operators' door: `/metrics`, `/healthz`, `/readyz` and `/status` on the debug address.
//!
//! Everything is read-only and answered from memory, also while the node starts or drains. What
//! there is to tell comes from a [`StatusSource`], which `node` implements; this room opens no
//! listener and needs no authentication, because its default address is a loopback one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use http::{HeaderValue, StatusCode, Uri, header};
use serde::Serialize;

use crate::telemetry::Metrics;
use crate::{cluster, peer, pull, registry, store, tls, upstream};

mod readiness;
mod text;

pub use readiness::{Phase, Readiness};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Tells how the node is; called for each request.
pub trait StatusSource: Send + Sync + 'static {
    /// Returns the state of this moment, without waiting for anything.
    fn status(&self) -> NodeStatus;
}

/// The node at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Version of the program.
    pub version: &'static str,
    /// When it was started, as RFC 3339.
    #[serde(serialize_with = "rfc3339")]
    pub started: SystemTime,
    /// How long it has run.
    #[serde(rename = "uptime_seconds", serialize_with = "seconds")]
    pub uptime: Duration,
    /// Where it listens.
    pub listeners: Vec<Listener>,
    /// The certificate of the clients' address; absent without TLS.
    pub tls: Option<tls::Status>,
    /// The users of the clients' address; absent when nobody is asked for a password.
    pub htpasswd: Option<registry::auth::Status>,
    /// What is on disk; absent until the store is open.
    pub store: Option<store::Status>,
    /// What is on its way.
    pub pull: Option<pull::Status>,
    /// The upstreams, in order of their names.
    pub upstreams: Vec<upstream::Status>,
    /// The other nodes; absent where there is no cluster.
    pub cluster: Option<cluster::Status>,
    /// The exchange with them.
    pub peers: Option<peer::Status>,
}

/// An address on which the node listens.
#[derive(Clone, Debug, Serialize)]
pub struct Listener {
    /// Who is answered there: `clients`, `local` or `debug`.
    pub name: &'static str,
    /// The address as it was bound.
    pub address: String,
    /// Who is let in, in words.
    pub admits: &'static str,
}

/// A status with what this room knows itself; the document at `/status`.
#[derive(Clone, Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    phase: Phase,
    #[serde(flatten)]
    node: NodeStatus,
}

fn rfc3339<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*at))
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

/// What the operators' door answers from.
#[derive(Clone)]
pub struct Admin {
    /// The node.
    pub source: Arc<dyn StatusSource>,
    /// Whether it can serve.
    pub readiness: Readiness,
    /// Its metrics, and their path, which begins with `/`; `None` for no metrics.
    pub metrics: Option<(String, Metrics)>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin")
            .field("readiness", &self.readiness)
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// Returns the routes.
    ///
    /// # Panics
    /// When the path of the metrics is one of the other paths, which the configuration refuses.
    pub fn router(self) -> Router {
        let mut router = Router::new()
            .route(
                "/healthz",
                get(async || answer(StatusCode::OK, TEXT, "ok\n")),
            )
            .route("/readyz", get(ready))
            .route("/status", get(status));
        if let Some((path, _)) = &self.metrics {
            router = router.route(path, get(metrics));
        }
        router.with_state(self)
    }

    fn report(&self) -> Report {
        Report {
            phase: self.readiness.phase(),
            node: self.source.status(),
        }
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    let phase = admin.readiness.phase();
    let status = match phase {
        Phase::Ready => StatusCode::OK,
        Phase::Starting { .. } | Phase::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer(status, TEXT, format!("{phase}\n"))
}

/// JSON, or text with `?output=text`.
async fn status(State(admin): State<Admin>, uri: Uri) -> Response {
    let query = uri.query().unwrap_or_default().as_bytes();
    let output = url::form_urlencoded::parse(query).find(|(name, _)| name == "output");
    match output.as_ref().map_or("json", |(_, value)| value) {
        "text" => answer(StatusCode::OK, TEXT, text::render(&admin.report())),
        "json" => match serde_json::to_vec_pretty(&admin.report()) {
            Ok(mut json) => {
                json.push(b'\n');
                answer(StatusCode::OK, JSON, json)
            }
            Err(error) => unwritable(&error),
        },
        _ => answer(StatusCode::BAD_REQUEST, TEXT, "output is text or json\n"),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let Some((_, metrics)) = &admin.metrics else {
        return answer(StatusCode::NOT_FOUND, TEXT, "no metrics\n");
    };
    match metrics.encode() {
        Ok(text) => answer(StatusCode::OK, Metrics::CONTENT_TYPE, text),
        Err(error) => unwritable(&error),
    }
}

fn unwritable(error: &dyn std::error::Error) -> Response {
    tracing::error!(%error, "status or metrics cannot be written");
    answer(
        StatusCode::INTERNAL_SERVER_ERROR,
        TEXT,
        "cannot be written\n",
    )
}

fn answer(status: StatusCode, media_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
