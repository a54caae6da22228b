//! Which configurations of upstreams are refused, and with what words.
//!
//! Rules over one entry; those that span several entries stand beside the merge in `config`, and
//! so do the tests of both.

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
        if self.max_requests == 0 {
            return Err(at("max_requests", Problem::Zero));
        }
        if self
            .max_downloads
            .is_some_and(|most| most < self.max_requests)
        {
            let than = "max_requests";
            return Err(at("max_downloads", Problem::Less { than }));
        }
        let Timeouts {
            connect,
            response,
            idle,
        } = &self.timeouts;
        for (key, timeout) in [("connect", connect), ("response", response), ("idle", idle)] {
            if timeout.is_zero() {
                return Err(at(&format!("timeouts.{key}"), Problem::Zero));
            }
        }
        Ok(endpoints)
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
