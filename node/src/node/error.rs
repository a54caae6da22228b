//! Why a node cannot start, and whether another attempt could help.
//!
//! Each room says what is wrong in its own words; which status the program ends with is `main`'s.

use std::error::Error;
use std::io;

use rustix::process::{getegid, geteuid};

use crate::cluster::{self, IdentityError};
use crate::peer::BindError;
use crate::registry::auth::users::UsersError;
use crate::store::StoreError;
use crate::tls::TlsError;
use crate::upstream::SetupError;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}, which is {key} in the configuration")]
    Listen {
        /// The address as configured.
        address: String,
        /// The key that sets it.
        key: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The local listener would be reached from outside.
    #[error("{address}, which is http.local.addr in the configuration, is no loopback address")]
    NotLoopback {
        /// The address as configured.
        address: String,
    },
    /// The certificate files cannot be used.
    #[error("cannot offer TLS on http.addr")]
    Tls(#[from] TlsError),
    /// The file of users cannot be used.
    #[error("cannot ask for passwords as auth.htpasswd says")]
    Users(#[from] UsersError),
    /// The data folder cannot be used.
    #[error("cannot open the store")]
    Store(#[from] StoreError),
    /// The node has no identity.
    #[error("no identity")]
    Identity(#[from] IdentityError),
    /// The node cannot take part in the cluster.
    #[error("cannot take part in a cluster")]
    Cluster(#[from] cluster::StartError),
    /// Content cannot be exchanged with other nodes.
    #[error("cannot exchange content with other nodes")]
    Peers(#[from] BindError),
    /// The upstreams cannot be set up.
    #[error("cannot set up the upstreams")]
    Upstreams(#[from] SetupError),
}

impl StartError {
    /// Whether the configuration, or a file that it names, is to be mended first: the same would
    /// happen at the next attempt. Nothing was started then, and nothing written.
    ///
    /// A taken port, a data folder that is in use and a clock that is not set yet are no mistakes.
    pub fn is_mistake(&self) -> bool {
        use cluster::StartError as Cluster;
        match self {
            Self::NotLoopback { .. } | Self::Users(_) => true,
            Self::Tls(error) => !matches!(error, TlsError::NotValidNow { .. }),
            Self::Cluster(error) => matches!(
                error,
                Cluster::Config { .. } | Cluster::Secret(_) | Cluster::DenyFile { .. }
            ),
            Self::Upstreams(error) => !matches!(error, SetupError::Client { .. }),
            Self::Listen { .. } | Self::Store(_) | Self::Identity(_) | Self::Peers(_) => false,
        }
    }

    /// Returns what to do about a file that the configuration names and this process may not read.
    pub fn advice(&self) -> Option<String> {
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        (self.is_mistake() && is_forbidden(self)).then(|| {
            format!(
                "millrace runs as user {user} of group {group}: give the file that group and mode 640, and let \
                 the group into its folder"
            )
        })
    }
}

/// Whether the system let this process not do something.
fn is_forbidden(error: &(dyn Error + 'static)) -> bool {
    let system = error.downcast_ref::<io::Error>();
    system.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        || error.source().is_some_and(is_forbidden)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::SecretError;

    fn unreadable(kind: io::ErrorKind) -> StartError {
        let path = "/etc/millrace/cluster.secret".into();
        let source = kind.into();
        cluster::StartError::from(SecretError::Unreadable { path, source }).into()
    }

    #[test]
    fn a_file_that_may_not_be_read_is_a_mistake_with_advice() {
        let forbidden = unreadable(io::ErrorKind::PermissionDenied);
        assert!(forbidden.is_mistake());
        let advice = forbidden.advice().expect("it can be mended");
        assert!(
            advice.contains(&format!("group {}", getegid().as_raw())),
            "{advice}"
        );
        let damaged = unreadable(io::ErrorKind::InvalidData);
        assert!(damaged.is_mistake());
        assert_eq!(damaged.advice(), None);
    }

    #[test]
    fn what_mends_itself_is_no_mistake() {
        let taken = StartError::Listen {
            address: "127.0.0.1:5000".to_owned(),
            key: "http.addr",
            source: io::ErrorKind::AddrInUse.into(),
        };
        assert!(!taken.is_mistake());
        let early = TlsError::NotValidNow {
            path: "/etc/millrace/mirror.pem".into(),
            position: 1,
            not_before: String::new(),
            not_after: String::new(),
        };
        assert!(!StartError::from(early).is_mistake());
        let folder = StoreError::File {
            action: "open",
            path: "/var/lib/millrace".into(),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        assert_eq!(StartError::from(folder).advice(), None);
    }
}
