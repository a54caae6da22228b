//! What the configuration says about upstreams.
//!
//! [`Config::with_builtins`] is the one door: it puts the user's entries over the built-in table
//! and returns only what can work. What can is said by `check` for one entry, and by `names` for
//! what they are called. Reading the file is `crate::config`'s work; passwords and certificates are
//! read when they are needed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use millrace_protocol::access::Reader;
use serde::Deserialize;
use url::Url;

use super::builtin;
pub use super::check::{ConfigError, Problem};
use super::names::{canonical_names, is_claimed};
use super::secret::Secret;

/// Requests that may run at one upstream at a time, unless configured.
///
/// Enough for a busy host's layers and well below what registries count as abuse.
const DEFAULT_MAX_REQUESTS: usize = 64;

/// All upstreams, merged and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Enabled upstreams by canonical name; each has a `url`.
    pub upstreams: BTreeMap<String, UpstreamConfig>,
    /// Name of the upstream that a request without any name means.
    pub default: String,
}

/// One entry of `upstreams`; its key is the name that clients use.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Where it is; by default `https://<name>`. A path becomes a prefix of every request.
    pub url: Option<String>,
    /// Further names without dots, for clients that drop a prefix with a dot.
    pub aliases: Vec<String>,
    /// User for the upstream; needs `password` or `password_file`.
    pub username: Option<String>,
    /// Password in clear text.
    pub password: Option<Secret>,
    /// File that holds the password; read anew for every use, so it may be rotated.
    pub password_file: Option<PathBuf>,
    /// Program that prints the credentials.
    pub exec: Option<ExecConfig>,
    /// PEM file with certificates that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// Contact `http://<name>` when there is no `url`; then nothing protects the traffic.
    pub plain_http: bool,
    /// Mirrors of the same content, asked in order, without credentials, when `url` does not answer.
    pub fallback: Vec<Url>,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// Requests at a time, default 64. Too small queues layers, too large looks like abuse. A
    /// download that lasts longer than two seconds makes room for others: see `max_downloads`.
    pub max_requests: usize,
    /// Downloads at a time, those that have made room for others included; absent means eight
    /// times `max_requests`. As many as `max_requests`: none makes room, so that the upstream sees
    /// no more than those at a time, and who waits longer than clients do gets an error.
    pub max_downloads: Option<usize>,
    /// `host` or `host:port` that redirects may reach although its address is private.
    pub redirect_hosts: Vec<String>,
    /// `host` or `host:port` of token services that get the credentials although they are on
    /// another registrable domain.
    pub token_hosts: Vec<String>,
    /// Whether it exists; `false` takes a built-in upstream away.
    pub enabled: bool,
    /// How long its tags stay fresh, first match wins; before the default rules of the cache.
    pub tags: Vec<TagRule>,
    /// Who may read which of its repositories, first match wins. Without a match, what is fetched
    /// anonymously is for everybody, what is fetched with credentials for `local` and `authenticated`.
    pub access: Vec<AccessRule>,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            url: None,
            aliases: Vec::new(),
            username: None,
            password: None,
            password_file: None,
            exec: None,
            ca: None,
            plain_http: false,
            fallback: Vec::new(),
            timeouts: Timeouts::default(),
            max_requests: DEFAULT_MAX_REQUESTS,
            max_downloads: None,
            redirect_hosts: Vec::new(),
            token_hosts: Vec::new(),
            enabled: true,
            tags: Vec::new(),
            access: Vec::new(),
        }
    }
}

/// A docker credential helper, as in the Docker registry's `proxy.exec`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecConfig {
    /// Program; run as `<command> get` with the registry's host on its standard input.
    pub command: String,
    /// How long its answer is used; absent means until it is refused, zero means once.
    #[serde(default, with = "crate::units::duration")]
    pub lifetime: Option<Duration>,
}

/// How long to wait for an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// For a connection, TLS included; default 5 s. Too large delays the fallback.
    #[serde(with = "crate::units::duration")]
    pub connect: Duration,
    /// From the request to the headers of its answer; default 15 s, below the 25 s in which
    /// clients expect theirs.
    #[serde(with = "crate::units::duration")]
    pub response: Duration,
    /// Between two pieces of a body; default 30 s.
    #[serde(with = "crate::units::duration")]
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            response: Duration::from_secs(15),
            idle: Duration::from_secs(30),
        }
    }
}

/// How long the tags of what matches a pattern stay fresh; applied by `pull`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagRule {
    /// Pattern over the repository, or over `repository:tag` when it contains a colon, in which `*`
    /// matches anything, slashes included.
    #[serde(rename = "match")]
    pub pattern: String,
    /// What may be done with a cached answer.
    pub policy: TagPolicy,
    /// Age up to which a `ttl` tag is fresh; absent means the cache's default.
    #[serde(default, with = "crate::units::duration")]
    pub ttl: Option<Duration>,
}

/// Who may read the repositories that match a pattern; applied by `pull`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// Pattern over the repository, in which `*` matches anything, slashes included.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Who may read; nobody when it is empty.
    pub read: Vec<Reader>,
}

/// What may be done with the cached answer for a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TagPolicy {
    /// The tag never moves.
    Immutable,
    /// Fresh for a while, then revalidated.
    Ttl,
    /// Revalidated on every request.
    Always,
}

impl Config {
    /// Puts the user's entries over the built-in upstreams and checks the whole.
    ///
    /// A field that the user sets replaces the built-in one; `aliases` and `token_hosts` add to
    /// it. `default` is a canonical name or an alias; absent means docker.io.
    ///
    /// # Errors
    /// [`ConfigError`] with the key of the first mistake, in order of the names.
    pub fn with_builtins(
        entries: BTreeMap<String, UpstreamConfig>,
        default: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let entries = canonical_names(entries)?;
        let mut upstreams = builtin::upstreams();
        for (name, builtin) in &mut upstreams {
            builtin
                .aliases
                .retain(|alias| !is_claimed(alias, name, &entries));
        }
        for (name, entry) in entries {
            let builtin = upstreams.remove(&name);
            upstreams.insert(name, merge(entry, builtin));
        }
        upstreams.retain(|_, entry| entry.enabled);
        for (name, entry) in &mut upstreams {
            let endpoints = entry.check(name)?;
            entry.url = Some(String::from(endpoints[0].clone()));
        }
        let mut merged = Self {
            upstreams,
            default: String::new(),
        };
        let names = merged.names()?;
        let default = default.unwrap_or(builtin::DOCKER_HUB);
        merged.default = names.get(default).cloned().ok_or_else(|| ConfigError {
            key: "upstreams".to_owned(),
            problem: Problem::UnknownDefault {
                name: default.to_owned(),
            },
        })?;
        Ok(merged)
    }
}

fn merge(entry: UpstreamConfig, builtin: Option<UpstreamConfig>) -> UpstreamConfig {
    let Some(builtin) = builtin else { return entry };
    let joined = |mut first: Vec<String>, second: Vec<String>| {
        first.extend(second);
        first
    };
    let own_url = entry.url.is_some() || entry.plain_http;
    UpstreamConfig {
        url: if own_url { entry.url } else { builtin.url },
        aliases: joined(builtin.aliases, entry.aliases),
        token_hosts: joined(builtin.token_hosts, entry.token_hosts),
        ..entry
    }
}

/// Reads entries as a file has them.
#[cfg(test)]
pub(super) fn merged(yaml: &str) -> Result<Config, ConfigError> {
    let entries = serde_saphyr::from_str(yaml).expect("valid YAML");
    Config::with_builtins(entries, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_the_public_registries_are_there() {
        let config = merged("{}").expect("valid");
        assert_eq!(
            (config.upstreams.len(), config.default.as_str()),
            (11, "docker.io")
        );
        let names = config.names().expect("no duplicates");
        for (name, canonical) in [
            ("docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("dockerhub", "docker.io"),
            ("k8s", "registry.k8s.io"),
            ("elastic", "docker.elastic.co"),
        ] {
            assert_eq!(
                names.get(name).map(String::as_str),
                Some(canonical),
                "{name}"
            );
        }
        let hub = &config.upstreams["docker.io"];
        assert_eq!(hub.url.as_deref(), Some("https://registry-1.docker.io/"));
        assert_eq!(config.upstreams["lscr.io"].token_hosts, ["ghcr.io"]);
    }

    #[test]
    fn an_entry_merges_over_the_built_in_one() {
        let config = merged(
            "docker.io: {username: ci, password: x, aliases: [hub], fallback: ['https://mirror.gcr.io']}",
        )
        .expect("valid");
        let hub = &config.upstreams["docker.io"];
        assert_eq!(hub.url.as_deref(), Some("https://registry-1.docker.io/"));
        assert_eq!(hub.aliases, ["dockerhub", "hub"]);
        assert_eq!(hub.fallback[0].as_str(), "https://mirror.gcr.io/");
        let config = merged("index.docker.io: {username: ci, password: x}").expect("valid");
        assert_eq!(
            config.upstreams["docker.io"].username.as_deref(),
            Some("ci")
        );
    }

    #[test]
    fn the_designs_example_is_valid() {
        let config = merged(
            "corp: {url: 'http://registry.corp:5000', aliases: [corp, registry.corp_5000],
                    tags: [{match: 'release/*', policy: immutable}, {match: '*', policy: ttl, ttl: 60s}]}",
        )
        .expect("valid");
        let names = config.names().expect("no duplicates");
        for name in ["corp", "registry.corp:5000", "registry.corp_5000"] {
            assert_eq!(names.get(name).map(String::as_str), Some("corp"), "{name}");
        }
        let rules = &config.upstreams["corp"].tags;
        assert_eq!(rules[0].policy, TagPolicy::Immutable);
        assert_eq!(rules[1].ttl, Some(Duration::from_secs(60)));
    }

    #[test]
    fn no_password_is_printed() {
        let config = merged("a: {username: u, password: hunter2}").expect("valid");
        assert!(!format!("{config:?}").contains("hunter2"));
        let mistake = merged("a: {url: 'https://u:hunter2@x:99999'}").expect_err("a mistake");
        assert!(!mistake.to_string().contains("hunter2"));
    }
}
