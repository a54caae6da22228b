//! Which configurations of upstreams are refused, and with what words.
//!
//! Rules over one entry; those that span several stand in `names`. The messages of both are
//! tested here.

use url::Url;

use super::config::{Timeouts, UpstreamConfig};

/// A mistake in the configuration of upstreams.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    /// Path of the key, such as `upstreams.corp.url`.
    pub key: String,
    /// What is wrong with its value.
    pub problem: Problem,
}

/// What is wrong with a key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The name cannot stand in a request.
    #[error("`{name}` is not a host name; lower-case letters, digits and .-_: are allowed")]
    InvalidName {
        /// The name as written.
        name: String,
    },
    /// The alias cannot stand in a path, or some clients would drop it.
    #[error("alias `{alias}` must be lower-case letters, digits, - or _, without dots and slashes")]
    InvalidAlias {
        /// The alias as written.
        alias: String,
    },
    /// Two upstreams claim one name.
    #[error("`{name}` already means {owner}")]
    DuplicateName {
        /// The name that is claimed twice.
        name: String,
        /// The upstream that has it.
        owner: String,
    },
    /// The default upstream does not exist or is disabled.
    #[error("the default upstream `{name}` is not configured")]
    UnknownDefault {
        /// The name that was looked for.
        name: String,
    },
    /// The text is no URL; it is not repeated because it may hold a password.
    #[error("not a URL: {error}")]
    NotAUrl {
        /// Why it is none.
        error: url::ParseError,
    },
    /// The URL has no host.
    #[error("the URL has no host")]
    NoHost,
    /// The URL is neither http nor https.
    #[error("scheme `{scheme}` is not http or https")]
    Scheme {
        /// The scheme as written.
        scheme: String,
    },
    /// The URL has a user or a password.
    #[error("credentials do not belong in the URL; use username and password_file")]
    CredentialsInUrl,
    /// The URL has a query or a fragment.
    #[error("the URL must not have a query or a fragment")]
    QueryInUrl,
    /// `plain_http` stands beside an https URL.
    #[error("plain_http contradicts the https URL")]
    PlainHttpWithHttps,
    /// Two keys of which only one may stand.
    #[error("not together with {with}")]
    Exclusive {
        /// The other key.
        with: &'static str,
    },
    /// A key that needs another.
    #[error("needs {missing} beside it")]
    Without {
        /// The other key.
        missing: &'static str,
    },
    /// A number or duration that must not be zero.
    #[error("must not be zero")]
    Zero,
    /// A bound that another one makes meaningless.
    #[error("must not be less than {than}")]
    Less {
        /// The other key.
        than: &'static str,
    },
}

impl UpstreamConfig {
    /// Returns the base URLs, the primary one first, and checks everything else.
    ///
    /// # Errors
    /// [`ConfigError`] with the key of the first mistake.
    pub(super) fn check(&self, name: &str) -> Result<Vec<Url>, ConfigError> {
        let at = |key: &str, problem| ConfigError {
            key: format!("upstreams.{name}.{key}"),
            problem,
        };
        let scheme = if self.plain_http { "http" } else { "https" };
        let url = self
            .url
            .clone()
            .unwrap_or_else(|| format!("{scheme}://{name}"));
        let url = Url::parse(&url).map_err(|error| at("url", Problem::NotAUrl { error }))?;
        let mut endpoints = vec![check_url(url).map_err(|problem| at("url", problem))?];
        if self.plain_http && endpoints[0].scheme() == "https" {
            return Err(at("plain_http", Problem::PlainHttpWithHttps));
        }
        for (index, url) in self.fallback.iter().enumerate() {
            let url = check_url(url.clone())
                .map_err(|problem| at(&format!("fallback[{index}]"), problem))?;
            endpoints.push(url);
        }
        for (index, alias) in self.aliases.iter().enumerate() {
            check_alias(alias, name)
                .map_err(|problem| at(&format!("aliases[{index}]"), problem))?;
        }
        self.check_credentials()
            .map_err(|(key, problem)| at(key, problem))?;
        self.check_bounds()
            .map_err(|(key, problem)| at(key, problem))?;
        Ok(endpoints)
    }

    fn check_bounds(&self) -> Result<(), (&'static str, Problem)> {
        if self.max_requests == 0 {
            return Err(("max_requests", Problem::Zero));
        }
        let least = self.max_requests;
        if self.max_downloads.is_some_and(|most| most < least) {
            let than = "max_requests";
            return Err(("max_downloads", Problem::Less { than }));
        }
        let Timeouts {
            connect,
            response,
            idle,
        } = &self.timeouts;
        let timeouts = [
            ("timeouts.connect", connect),
            ("timeouts.response", response),
            ("timeouts.idle", idle),
        ];
        let zero = timeouts.into_iter().find(|(_, timeout)| timeout.is_zero());
        zero.map_or(Ok(()), |(key, _)| Err((key, Problem::Zero)))
    }

    fn check_credentials(&self) -> Result<(), (&'static str, Problem)> {
        let sources = [
            ("password", self.password.is_some()),
            ("password_file", self.password_file.is_some()),
            ("exec", self.exec.is_some()),
        ];
        let mut given = sources
            .iter()
            .filter(|(_, given)| *given)
            .map(|(key, _)| *key);
        match (given.next(), given.next(), &self.username) {
            (Some(first), Some(second), _) => Err((second, Problem::Exclusive { with: first })),
            (Some("exec"), None, Some(_)) => Err(("username", Problem::Exclusive { with: "exec" })),
            (Some("exec"), None, None) | (None, _, None) | (Some(_), None, Some(_)) => Ok(()),
            (Some(first), None, None) => Err((
                first,
                Problem::Without {
                    missing: "username",
                },
            )),
            (None, _, Some(_)) => Err((
                "username",
                Problem::Without {
                    missing: "password",
                },
            )),
        }
    }
}

pub(super) fn check_name(name: &str) -> Result<(), ConfigError> {
    let valid =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_:[]".contains(&byte);
    if !name.is_empty() && name.bytes().all(valid) {
        return Ok(());
    }
    let problem = Problem::InvalidName {
        name: name.to_owned(),
    };
    Err(ConfigError {
        key: format!("upstreams.{name}"),
        problem,
    })
}

/// Whether `alias` can stand in a path: letters, digits, `-`, `_`. Dots only as `host_port`, which
/// is how clients write a host with a port.
fn check_alias(alias: &str, name: &str) -> Result<(), Problem> {
    let port = alias
        .rsplit_once('_')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let valid =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    let dotted = alias.contains('.') && !port && alias != name;
    if alias.is_empty() || dotted || !alias.bytes().all(valid) {
        return Err(Problem::InvalidAlias {
            alias: alias.to_owned(),
        });
    }
    Ok(())
}

fn check_url(mut url: Url) -> Result<Url, Problem> {
    let problem = match url.scheme() {
        "http" | "https" if url.host_str().is_none_or(str::is_empty) => Problem::NoHost,
        "http" | "https" if !url.username().is_empty() || url.password().is_some() => {
            Problem::CredentialsInUrl
        }
        "http" | "https" if url.query().is_some() || url.fragment().is_some() => {
            Problem::QueryInUrl
        }
        "http" | "https" => {
            let path = url
                .path()
                .trim_end_matches('/')
                .trim_end_matches("/v2")
                .to_owned();
            url.set_path(&path);
            return Ok(url);
        }
        scheme => Problem::Scheme {
            scheme: scheme.to_owned(),
        },
    };
    Err(problem)
}

#[cfg(test)]
mod tests {
    use super::super::config::merged;

    /// What is wrong, and how the message about it begins.
    const MISTAKES: &[(&str, &str)] = &[
        (
            "a: {url: 'not a url'}",
            "upstreams.a.url: not a URL: relative URL without a base",
        ),
        (
            "a: {url: 'ftp://x'}",
            "upstreams.a.url: scheme `ftp` is not http or https",
        ),
        (
            "a: {url: 'https://u:p@x'}",
            "upstreams.a.url: credentials do not belong",
        ),
        (
            "a: {url: 'https://x?y'}",
            "upstreams.a.url: the URL must not have a query",
        ),
        (
            "a: {url: 'https://x', plain_http: true}",
            "upstreams.a.plain_http: plain_http contradicts",
        ),
        (
            "a: {aliases: [b.c]}",
            "upstreams.a.aliases[0]: alias `b.c` must be",
        ),
        (
            "a: {aliases: [b, 'c/d']}",
            "upstreams.a.aliases[1]: alias `c/d` must be",
        ),
        (
            "{a: {aliases: [x]}, b: {aliases: [x]}}",
            "upstreams.b.aliases[0]: `x` already means a",
        ),
        (
            "{a: {aliases: [b]}, b: {}}",
            "upstreams.a.aliases[0]: `b` already means b",
        ),
        ("a: {password: x}", "upstreams.a.password: needs username"),
        ("a: {username: x}", "upstreams.a.username: needs password"),
        (
            "a: {username: x, password: y, password_file: z}",
            "upstreams.a.password_file: not together with password",
        ),
        (
            "a: {username: x, exec: {command: y}}",
            "upstreams.a.username: not together with exec",
        ),
        (
            "a: {fallback: ['ftp://x']}",
            "upstreams.a.fallback[0]: scheme `ftp`",
        ),
        (
            "a: {max_requests: 0}",
            "upstreams.a.max_requests: must not be zero",
        ),
        (
            "a: {max_downloads: 63}",
            "upstreams.a.max_downloads: must not be less than max_requests",
        ),
        (
            "a: {timeouts: {idle: 0}}",
            "upstreams.a.timeouts.idle: must not be zero",
        ),
        ("A/b: {}", "upstreams.A/b: `A/b` is not a host name"),
        (
            "docker.io: {enabled: false}",
            "upstreams: the default upstream `docker.io` is not",
        ),
        (
            "{docker.io: {}, index.docker.io: {}}",
            "upstreams.index.docker.io: `index.docker.io` already",
        ),
    ];

    #[test]
    fn every_mistake_names_its_key() {
        for (yaml, message) in MISTAKES {
            let found = merged(yaml).expect_err("a mistake").to_string();
            assert!(found.starts_with(message), "{yaml}\n{found}");
        }
    }
}
