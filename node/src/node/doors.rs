//! From the configuration of listeners to doors.

use std::path::Path;

use tokio::net::TcpListener;

use crate::admin;
use crate::config::{AuthConfig, Config, HtpasswdConfig, LocalAddr};
use crate::registry::auth::users::UsersError;
use crate::registry::{self, Admission, Door, Htpasswd, Listener, Terms};
use crate::task::Tasks;
use crate::tls::{ClientAuth, Files, Tls, TlsError};

use super::StartError;

/// Who comes in at the local listener.
const LOCAL: &str = "everyone on this host, as local";

/// The key of the local listener.
const LOCAL_KEY: &str = "http.local.addr";

/// The clients' listeners and their terms.
#[derive(Debug)]
pub(super) struct Doors {
    clients: TcpListener,
    pub(super) public: Terms,
    local: Option<Listener>,
}

impl Doors {
    /// Reads the files of certificates and users and opens the listeners; nothing is answered yet.
    ///
    /// # Errors
    /// A file cannot be used, or an address cannot be listened on.
    pub(super) async fn open(config: &Config) -> Result<Self, StartError> {
        let tls = tls(config).await?;
        let admission = admission(config, htpasswd(&config.auth).await?);
        let doors = Self {
            clients: super::bind(&config.http.addr, "http.addr").await?,
            public: Terms {
                is_local: false,
                tls,
                allow_plain: config.http.tls.allow_plain,
                admission,
            },
            local: local(config.http.local.addr.as_ref()).await?,
        };
        warn(config);
        Ok(doors)
    }

    /// Describes the listeners.
    pub(super) fn describe(&self) -> Vec<admin::Listener> {
        let admits = self.public.admission.describe();
        let mut listeners = vec![super::listener("clients", &self.clients, admits)];
        listeners.extend(self.local.as_ref().map(|local| match local {
            Listener::Tcp(listener) => super::listener("local", listener, LOCAL),
            Listener::Unix(door) => admin::Listener {
                name: "local",
                address: format!("unix:{}", door.path().display()),
                admits: LOCAL,
            },
        }));
        listeners
    }

    /// Follows the files until the node stops.
    pub(super) fn watch(&self, tasks: &Tasks) {
        if let Some(tls) = &self.public.tls {
            let watching = tls.clone().watch(tasks.stopping());
            tasks.spawn(tracing::info_span!("tls"), watching);
        }
        if let Some(htpasswd) = &self.public.admission.htpasswd {
            let watching = htpasswd.clone().watch(tasks.stopping());
            tasks.spawn(tracing::info_span!("auth"), watching);
        }
    }

    /// Returns what clients are answered at.
    pub(super) fn all(self) -> Vec<Door> {
        let mut doors = vec![Door::new(self.clients, self.public)];
        doors.extend(self.local.map(|listener| {
            let terms = Terms {
                is_local: true,
                ..Terms::default()
            };
            Door::new(listener, terms)
        }));
        doors
    }
}

/// Reads the certificate files, if any are configured.
async fn tls(config: &Config) -> Result<Option<Tls>, StartError> {
    let clientauth = client_auth(config);
    let config = &config.http.tls;
    if !config.is_on() {
        return Ok(None);
    }
    let files = Files {
        certificate: config.certificate.clone().unwrap_or_default(),
        key: config.key.clone().unwrap_or_default(),
        clientcas: config.clientcas.clone(),
        clientauth,
        minimum: config.minimumtls,
    };
    let loading = tokio::task::spawn_blocking(move || Tls::load(files)).await;
    let loaded = loading.map_err(|error| TlsError::Read {
        path: Path::new("").to_owned(),
        source: std::io::Error::other(error),
    })?;
    Ok(Some(loaded?))
}

/// Opens the listener for this host, if one is configured.
async fn local(address: Option<&LocalAddr>) -> Result<Option<Listener>, StartError> {
    let listener = match address {
        None => return Ok(None),
        Some(LocalAddr::Port(address)) => {
            let listener = super::bind(address, LOCAL_KEY).await?;
            // A name that the configuration took for loopback may have been looked up otherwise.
            let bound = listener.local_addr();
            if !bound.is_ok_and(|bound| bound.ip().is_loopback()) {
                let address = address.to_string();
                return Err(StartError::NotLoopback { address });
            }
            Listener::Tcp(listener)
        }
        Some(LocalAddr::Socket(path)) => {
            let error = |source| StartError::Listen {
                address: format!("unix:{}", path.display()),
                key: LOCAL_KEY,
                source,
            };
            Listener::Unix(registry::listen_unix(path).map_err(error)?)
        }
    };
    Ok(Some(listener))
}

/// Reads the file of users, if one is configured.
async fn htpasswd(config: &AuthConfig) -> Result<Option<Htpasswd>, StartError> {
    let Some(htpasswd) = config.htpasswd.clone() else {
        return Ok(None);
    };
    let HtpasswdConfig { realm, path } = htpasswd;
    let at = path.clone();
    let loading = tokio::task::spawn_blocking(move || Htpasswd::load(realm, path)).await;
    let loaded = loading.map_err(|error| UsersError::Read {
        path: at,
        source: std::io::Error::other(error),
    })?;
    Ok(Some(loaded?))
}

/// Says who comes in at the public listener.
///
/// Without a word on it a certificate is needed, as at the Docker registry; where passwords are
/// configured as well, either is enough, because dockerd has only the one and others only the other.
fn admission(config: &Config, htpasswd: Option<Htpasswd>) -> Admission {
    let certificates = !config.http.tls.clientcas.is_empty();
    Admission {
        certificates,
        either: config.http.tls.clientauth != Some(ClientAuth::Require),
        certificate_required: certificates && client_auth(config) == ClientAuth::Require,
        htpasswd,
    }
}

fn client_auth(config: &Config) -> ClientAuth {
    let alone = match config.auth.htpasswd {
        Some(_) => ClientAuth::IfGiven,
        None => ClientAuth::Require,
    };
    config.http.tls.clientauth.unwrap_or(alone)
}

/// Tells what an operator may not have meant.
fn warn(config: &Config) {
    let is_open = !config.http.addr.is_loopback();
    let has_passwords = config.auth.htpasswd.is_some();
    let tls = &config.http.tls;
    if has_passwords && is_open && (!tls.is_on() || tls.allow_plain) {
        tracing::warn!(
            "passwords may cross the network in the clear: http.addr answers without TLS"
        );
    }
    if has_passwords && !tls.clientcas.is_empty() && tls.clientauth.is_none() {
        tracing::warn!(
            "a password or a client certificate lets a client in, either is enough; for both, as at the Docker \
             registry, set http.tls.clientauth to require-and-verify-client-cert"
        );
    }
    let upstreams = config.upstreams.upstreams.values();
    let mut with_credentials = upstreams.filter(|up| up.username.is_some() || up.exec.is_some());
    if is_open && !has_passwords && tls.clientcas.is_empty() && with_credentials.next().is_some() {
        tracing::warn!(
            "nobody is asked who they are at http.addr: every client counts as authenticated and reads what the \
             credentials of the upstreams read, unless access rules say otherwise"
        );
    }
}
