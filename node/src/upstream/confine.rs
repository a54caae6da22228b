//! Where credentials may go, and which hosts may be contacted at all.
//!
//! Rules over URLs only; names are resolved and addresses checked in `address`. An upstream can
//! name any realm and redirect anywhere: neither gets it the credentials of this node or a look
//! into its network. Source: CLIENT-CONTRACT U3, U4; ARCHITECTURE, invariants 8 and 9.

use url::{Host, Url};

use super::names::host_and_port;

/// The hosts of one upstream.
#[derive(Clone, Debug)]
pub(super) struct Confines {
    /// The primary URL first.
    endpoints: Vec<Url>,
    redirect_hosts: Vec<String>,
    token_hosts: Vec<String>,
}

impl Confines {
    pub(super) fn new(
        endpoints: Vec<Url>,
        redirect_hosts: Vec<String>,
        token_hosts: Vec<String>,
    ) -> Self {
        Self {
            endpoints,
            redirect_hosts,
            token_hosts,
        }
    }

    /// Whether requests to `endpoint` may carry the credentials: the primary URL and whatever
    /// shares its scheme, host and port.
    pub(super) fn endpoint_gets_credentials(&self, endpoint: &Url) -> bool {
        endpoint.origin() == self.endpoints[0].origin()
    }

    /// Whether the credentials may be sent to the token service at `realm`.
    ///
    /// Its host must be the primary's, share its registrable domain, or be configured; an https
    /// upstream's credentials never travel over http.
    pub(super) fn realm_gets_credentials(&self, realm: &Url) -> bool {
        let primary = &self.endpoints[0];
        if primary.scheme() == "https" && realm.scheme() != "https" {
            return false;
        }
        realm.host() == primary.host()
            || is_listed(realm, &self.token_hosts)
            || registrable_domain(realm)
                .is_some_and(|domain| registrable_domain(primary).as_deref() == Some(&*domain))
    }

    /// Whether `url` may be contacted even at a private address, as the target of a redirect.
    pub(super) fn redirect_may_be_private(&self, url: &Url) -> bool {
        let configured = self
            .endpoints
            .iter()
            .any(|endpoint| endpoint.origin() == url.origin());
        configured || is_listed(url, &self.redirect_hosts)
    }

    /// Whether `realm` may be contacted even at a private address.
    pub(super) fn realm_may_be_private(&self, realm: &Url) -> bool {
        let configured = self
            .endpoints
            .iter()
            .any(|endpoint| endpoint.host() == realm.host());
        configured || is_listed(realm, &self.token_hosts)
    }
}

/// Whether `hosts` has the host of `url`, alone or with its port.
fn is_listed(url: &Url, hosts: &[String]) -> bool {
    let host = url.host_str().unwrap_or_default();
    let exact = host_and_port(url);
    let explicit = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
    hosts
        .iter()
        .any(|listed| *listed == host || *listed == exact || *listed == explicit)
}

/// Returns the domain that one owner has registered, by the public suffix list.
///
/// `None` for addresses and for suffixes that are not public: below `.corp` or `cluster.local`
/// neighbours need not belong together.
fn registrable_domain(url: &Url) -> Option<String> {
    let Some(Host::Domain(name)) = url.host() else {
        return None;
    };
    let domain = psl::domain(name.as_bytes())?;
    let text = std::str::from_utf8(domain.as_bytes()).ok()?;
    domain.suffix().is_known().then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("valid URL")
    }

    fn confines(primary: &str, token_hosts: &[&str]) -> Confines {
        let token_hosts = token_hosts.iter().map(|&host| host.to_owned()).collect();
        let endpoints = vec![url(primary), url("http://10.0.0.1:5000")];
        Confines::new(
            endpoints,
            vec!["minio.corp:9000".to_owned(), "s3.corp".to_owned()],
            token_hosts,
        )
    }

    #[test]
    fn credentials_go_to_the_own_domain_only() {
        for (primary, realm, allowed) in [
            (
                "https://registry-1.docker.io",
                "https://auth.docker.io/token",
                true,
            ),
            (
                "https://registry.gitlab.com",
                "https://gitlab.com/jwt/auth",
                true,
            ),
            ("https://ghcr.io", "https://ghcr.io/token", true),
            ("https://ghcr.io", "https://ghcr.io:444/token", true),
            ("https://ghcr.io", "https://evil.io/token", false),
            ("https://ghcr.io", "http://ghcr.io/token", false),
            ("http://r.corp:5000", "http://r.corp:5001/auth", true),
            ("http://r.corp", "http://auth.corp", false),
            (
                "https://r.svc.cluster.local",
                "https://evil.svc.cluster.local",
                false,
            ),
            ("https://a.github.io", "https://b.github.io", false),
            ("https://10.0.0.1", "https://10.0.0.2", false),
            ("https://co.uk", "https://a.co.uk", false),
        ] {
            let found = confines(primary, &[]).realm_gets_credentials(&url(realm));
            assert_eq!(found, allowed, "{primary} -> {realm}");
        }
    }

    #[test]
    fn configured_token_hosts_are_exceptions() {
        let lscr = confines("https://lscr.io", &["ghcr.io"]);
        assert!(lscr.realm_gets_credentials(&url("https://ghcr.io/token")));
        assert!(
            !lscr.realm_gets_credentials(&url("http://ghcr.io/token")),
            "never in the clear"
        );
        assert!(!lscr.realm_gets_credentials(&url("https://ghcr.io.evil.com/token")));
        let ported = confines("https://r.io", &["auth.corp:5001", "sso.corp:443"]);
        assert!(ported.realm_gets_credentials(&url("https://auth.corp:5001/")));
        assert!(!ported.realm_gets_credentials(&url("https://auth.corp/")));
        assert!(ported.realm_gets_credentials(&url("https://sso.corp/")));
    }

    #[test]
    fn fallbacks_get_no_credentials() {
        let confines = confines("https://r.io", &[]);
        assert!(confines.endpoint_gets_credentials(&url("https://r.io/prefix")));
        assert!(!confines.endpoint_gets_credentials(&url("http://10.0.0.1:5000")));
        assert!(!confines.endpoint_gets_credentials(&url("https://r.io:444")));
    }

    #[test]
    fn private_addresses_need_to_be_configured() {
        let confines = confines("https://r.io", &["auth.corp"]);
        for (target, allowed) in [
            ("https://r.io/x", true),
            ("http://10.0.0.1:5000/x", true),
            ("http://10.0.0.1:5001/x", false),
            ("http://minio.corp:9000/x", true),
            ("http://minio.corp/x", false),
            ("https://s3.corp:8443/x", true),
            ("https://cdn.io/x", false),
        ] {
            assert_eq!(
                confines.redirect_may_be_private(&url(target)),
                allowed,
                "{target}"
            );
        }
        assert!(confines.realm_may_be_private(&url("http://10.0.0.1:9/t")));
        assert!(confines.realm_may_be_private(&url("https://auth.corp/t")));
        assert!(!confines.realm_may_be_private(&url("https://sso.corp/t")));
    }
}
