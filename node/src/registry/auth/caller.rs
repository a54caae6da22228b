//! From a connection and its headers to a caller.

use std::sync::Arc;

use http::HeaderMap;
use millrace_protocol::access;

use crate::registry::greet::Guest;
use crate::registry::metrics::Metrics;

use super::{Htpasswd, Outcome, Refused};

/// What a listener asks of its clients before it answers anything.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    /// Passwords, if they are asked for.
    pub htpasswd: Option<Htpasswd>,
    /// Whether certificates of clients are verified.
    pub certificates: bool,
    /// Whether one of the two is enough where both are configured.
    pub either: bool,
    /// Whether nobody comes in without a certificate.
    pub certificate_required: bool,
}

impl Admission {
    /// Returns who is let in, in words for status and log.
    pub fn describe(&self) -> &'static str {
        match (&self.htpasswd, self.certificates) {
            (None, false) => "everyone who reaches it; each counts as authenticated",
            (None, true) if self.certificate_required => "holders of a client certificate",
            (None, true) => {
                "everyone who reaches it; holders of a client certificate count as authenticated"
            }
            (Some(_), false) => "users of the htpasswd file",
            (Some(_), true) if self.either => {
                "users of the htpasswd file, and holders of a client certificate without password"
            }
            (Some(_), true) => "users of the htpasswd file who also hold a client certificate",
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub(in crate::registry) struct Caller {
    is_local: bool,
    is_authenticated: bool,
    /// The user whose password was right.
    pub(in crate::registry) user: Option<Arc<str>>,
    certificate: Option<Arc<[String]>>,
}

impl Caller {
    /// Who was not let in.
    pub(in crate::registry) const NOBODY: Self = Self {
        is_local: false,
        is_authenticated: false,
        user: None,
        certificate: None,
    };

    /// Lets a request in, or says why not.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on others.
    pub(in crate::registry) async fn admit(
        guest: &Guest,
        headers: &HeaderMap,
        metrics: &Metrics,
    ) -> Result<Self, Refused> {
        let (terms, peer) = (&guest.terms, &guest.peer);
        let mut caller = Self {
            is_local: terms.is_local,
            certificate: peer.certificate.clone(),
            ..Self::default()
        };
        if terms.is_local {
            return Ok(caller);
        }
        let Admission {
            htpasswd,
            certificates,
            either,
            certificate_required,
        } = &terms.admission;
        let has_certificate = peer.certificate.is_some();
        if *certificate_required && !has_certificate {
            return Err(Refused::Certificate);
        }
        match htpasswd {
            Some(htpasswd) if !(*either && has_certificate) => {
                let (outcome, user) = htpasswd.login(headers, peer.address).await;
                metrics.count_login(outcome.as_str());
                caller.user = match outcome {
                    Outcome::Right => user,
                    Outcome::Missing | Outcome::Wrong => return Err(Refused::Credentials),
                    Outcome::Busy => return Err(Refused::Busy),
                };
                caller.is_authenticated = true;
            }
            Some(_) => caller.is_authenticated = true,
            // Where nobody is asked, everybody counts; where a certificate may be left out, it counts.
            None => caller.is_authenticated = has_certificate || !certificates,
        }
        Ok(caller)
    }

    /// Returns what access rules look at.
    pub(in crate::registry) fn for_rules(&self) -> access::Caller<'_> {
        access::Caller {
            is_local: self.is_local,
            is_authenticated: self.is_authenticated,
            user: self.user.as_deref(),
            certificate: self.certificate.as_deref().unwrap_or_default(),
        }
    }
}
