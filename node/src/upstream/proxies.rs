//! The proxies that the environment puts between this node and its upstreams.
//!
//! The HTTP clients read `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` themselves. Here is
//! what else has to be known of them: which URL is asked through which proxy, how that is called
//! without its password, and whether a variable means anything. Nothing is sent from here.

use std::sync::Arc;

use http::Uri;
use http::uri::Authority;
use hyper_util::client::proxy::matcher::Matcher;
use url::Url;

/// The variables that name a proxy; each may be written in lower case as well.
const VARIABLES: [&str; 3] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"];

/// What the variables say, as the clients read them too.
#[derive(Debug)]
pub(super) struct Proxies(Matcher);

impl Proxies {
    /// Reads the environment.
    pub(super) fn of_environment() -> Self {
        Self(Matcher::from_system())
    }

    /// Returns the proxy through which `url` is asked, as `http://host:port`: without user and
    /// password, also where one that is written wrongly is taken for part of the address.
    pub(super) fn before(&self, url: &Url) -> Option<Arc<str>> {
        let uri: Uri = url.as_str().parse().ok()?;
        let proxy = self.0.intercept(&uri)?;
        let scheme = proxy.uri().scheme_str().unwrap_or("http");
        Some(format!("{scheme}://{}", address(proxy.uri())).into())
    }
}

/// Returns host and port of a proxy, without a port that is no number.
fn address(proxy: &Uri) -> String {
    let host = proxy.host().unwrap_or_default();
    match proxy.port_u16() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Returns what an error of the client on its way through a proxy means.
///
/// The type of a tunnel's errors is not public, so they are known by their text.
pub(super) fn in_words(cause: &str) -> &str {
    match cause {
        "tunnel error: unsuccessful" => "it refuses the connection",
        "tunnel error: proxy authorization required" => WANTS_LOGIN,
        "tunnel error: unexpected end of file" => "it closed the connection",
        cause => cause,
    }
}

/// What 407 means.
pub(super) const WANTS_LOGIN: &str = "it wants a user and a password";

/// Tells whether `name` is a variable for a proxy although `value` is none that can be used.
///
/// An empty value means that there is no proxy, which is no mistake.
pub fn is_unusable_proxy(name: &str, value: &str) -> bool {
    let is_variable = |variable: &&str| name == *variable || name == variable.to_lowercase();
    if value.is_empty() || !VARIABLES.iter().any(is_variable) {
        return false;
    }
    let matcher = Matcher::builder().all(value).build();
    let proxy = matcher.intercept(&Uri::from_static("http://upstream.invalid/"));
    let is_usable = proxy.is_some_and(|proxy| {
        let uri = proxy.uri();
        let is_spoken = matches!(uri.scheme_str(), Some("http" | "https"));
        // What is left of a password that was written as it is ends up here.
        let authority = uri.authority().map(Authority::as_str);
        is_spoken && authority == Some(&address(uri))
    });
    !is_usable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_called_by_host_and_port_only() {
        let proxy = "http://user:p%40ss@proxy.corp:3128/path";
        let matcher = Matcher::builder().https(proxy).no(".corp").build();
        let proxies = Proxies(matcher);
        let before = |url: &str| proxies.before(&url.parse().expect("a URL"));
        assert_eq!(
            before("https://registry.example/v2/").as_deref(),
            Some("http://proxy.corp:3128")
        );
        assert_eq!(before("https://registry.corp/v2/"), None);
        assert_eq!(before("http://registry.example/v2/"), None);
        for wrong in [
            "http://user:p@ss@proxy:1",
            "http://user:p/ss@proxy",
            "http://p:ss/x",
        ] {
            let proxies = Proxies(Matcher::builder().all(wrong).build());
            let before = proxies.before(&"http://registry.example".parse().expect("a URL"));
            let shown = before.unwrap_or_default();
            assert!(
                !shown.contains("ss") && !shown.contains('@'),
                "{wrong}: {shown}"
            );
        }
        let shown = format!("{proxies:?}");
        assert!(
            !shown.contains("p%40ss") && !shown.contains("p@ss"),
            "{shown}"
        );
    }

    #[test]
    fn a_variable_that_means_nothing_is_told_from_one_that_does() {
        for (name, value, is_unusable) in [
            ("HTTPS_PROXY", "http://proxy:3128", false),
            ("https_proxy", "proxy:3128", false),
            ("all_proxy", "https://u:p@proxy", false),
            ("HTTP_PROXY", "", false),
            ("HTTPS_PROXY", "http://user:p@ss@proxy:3128", true),
            ("HTTPS_PROXY", "http://user:p/ss@proxy:3128", true),
            ("http_proxy", "http://proxy:port", true),
            ("ALL_PROXY", "socks5://proxy:1080", true),
            ("NO_PROXY", "http://user:p@ss@proxy:3128", false),
            ("FTP_PROXY", "ftp://x", false),
        ] {
            assert_eq!(
                is_unusable_proxy(name, value),
                is_unusable,
                "{name}={value}"
            );
        }
    }
}
