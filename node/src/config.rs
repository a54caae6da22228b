//! The configuration: one YAML file, overridden by the environment, read into types.
//!
//! [`Config::load`] is the one door. The Docker registry's own `config.yml` is accepted as it
//! stands: keys without a meaning here are reported, keys that decide who may read, how traffic is
//! protected or where data lives are refused while they are not implemented. A mistake has one
//! line with file, line and key, and nothing is started.
//!
//! The steps are files: `yaml` parses into a `tree`, `env` overrides, `proxy` moves the registry's
//! spellings, `schema` knows the keys, `reader` reads the structs of `http`, `auth`, `storage`,
//! `cache`, `log` and of the rooms `upstream` and `cluster`. Apart from the environment handed in,
//! nothing is read here: no password file, no certificate, no address.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::cluster;
use crate::tls;
use crate::upstream::{self, TagPolicy, TagRule, UpstreamConfig};

mod auth;
mod cache;
mod env;
mod error;
mod http;
mod log;
mod proxy;
mod reader;
mod schema;
mod storage;
mod tree;
mod yaml;

pub use auth::{AuthConfig, HtpasswdConfig};
pub use cache::CacheConfig;
pub use error::{ConfigError, Mistake, Place, Problem};
pub use http::{
    DebugConfig, HttpConfig, ListenAddr, ListenAddrError, LocalAddr, LocalConfig, PrometheusConfig,
};
pub use log::{AccessLogConfig, LogConfig};
pub use storage::StorageConfig;

use error::Places;
use proxy::Proxy;
use tree::{Node, Origin};

/// Everything that can be configured; valid as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The listeners.
    pub http: HttpConfig,
    /// Who may use the clients' address.
    pub auth: AuthConfig,
    /// The data folder.
    pub storage: StorageConfig,
    /// The upstreams, the built-in ones among them.
    pub upstreams: upstream::Config,
    /// What is kept and for how long.
    pub cache: CacheConfig,
    /// The other nodes, if any.
    pub cluster: cluster::Config,
    /// The log.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http: HttpConfig::default(),
            auth: AuthConfig::default(),
            storage: StorageConfig::default(),
            upstreams: upstream::Config::with_builtins(BTreeMap::new(), None)
                .expect("the built-in upstreams do not contradict each other"),
            cache: CacheConfig::default(),
            cluster: cluster::Config::default(),
            log: LogConfig::default(),
        }
    }
}

/// A configuration, and what is to be said about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Keys of the Docker registry's that mean nothing here, in order of lines.
    pub ignored: Vec<IgnoredKey>,
    /// Variables of the environment that begin with `REGISTRY_` and name no key, or that are for a
    /// proxy and name none.
    pub warnings: Vec<Mistake>,
}

/// A key that has no meaning here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoredKey {
    /// Its path with dots.
    pub key: String,
    /// Where it stands.
    pub place: Place,
    /// Why nothing is lost.
    pub reason: &'static str,
}

impl std::fmt::Display for IgnoredKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: ignored: {}", self.place, self.key, self.reason)
    }
}

impl Config {
    /// Reads the file at `path`, if any, and the variables `env` over it.
    ///
    /// `env` is the whole environment: `MILLRACE_*` and `REGISTRY_*` are overrides,
    /// `STATE_DIRECTORY` is the data folder that systemd prepared.
    ///
    /// # Errors
    /// All mistakes that were found, in order of lines. Types are only checked where all keys are
    /// known.
    pub fn load(
        path: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let Some(path) = path else {
            return Self::parse(None, "", env);
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            let file = Some(Arc::new(path.to_owned()));
            let problem = Problem::Unreadable {
                error: Arc::new(error),
            };
            Places { file }.mistake(&Origin::Line(0), String::new(), problem)
        })?;
        Self::parse(Some(path), &text, env)
    }

    /// Returns the variables of this process that are text.
    pub fn environment() -> impl Iterator<Item = (String, String)> {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
    }

    /// Reads `text` as the file that is named `path`; otherwise as [`Config::load`].
    ///
    /// # Errors
    /// As [`Config::load`], except that no file is read.
    pub fn parse(
        path: Option<&Path>,
        text: &str,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let file = path.map(|path| Arc::new(PathBuf::from(path)));
        let places = Places { file };
        let env: Vec<_> = env.collect();
        let state_directory = env.iter().find(|(name, _)| name == "STATE_DIRECTORY");
        let state_directory = state_directory.map(|(_, value)| value.as_str());
        let mut tree = yaml::parse(text).map_err(|error| {
            let message = error.message;
            let problem = Problem::Syntax { message };
            places.mistake(&Origin::Line(error.line), String::new(), problem)
        })?;
        let builtin = Self::default().upstreams;
        let names: Vec<_> = builtin.upstreams.keys().cloned().collect();
        proxy::normalize(&mut tree);
        let outcome = env::apply(&mut tree, env.iter().cloned(), &names);
        proxy::normalize(&mut tree);
        let mut check = schema::Check::new(&places);
        check.mistakes = outcome.mistakes;
        check.run(&mut tree);
        let (ignored, mut mistakes) = (check.ignored, check.mistakes);
        let config = Reading {
            places: &places,
            tree,
            mistakes: &mut mistakes,
        }
        .config(state_directory);
        ConfigError::check(mistakes)?;
        Ok(Loaded {
            config,
            ignored,
            warnings: outcome.warnings,
        })
    }
}

/// Reads the structs from a tree whose keys are all known.
struct Reading<'a> {
    places: &'a Places,
    tree: Node,
    mistakes: &'a mut Vec<Mistake>,
}

impl Reading<'_> {
    /// Returns the configuration; only worth something when there are no mistakes.
    fn config(mut self, state_directory: Option<&str>) -> Config {
        let upstreams = self.upstreams();
        let tree = std::mem::replace(&mut self.tree, Node::map(Origin::Line(0)));
        let storage: storage::StorageSection = self.section(&tree, "storage");
        let cache = self.section(&tree, "cache");
        let config = Config {
            http: self.section(&tree, "http"),
            auth: self.section(&tree, "auth"),
            storage: match storage.rootdirectory() {
                Some(rootdirectory) => StorageConfig { rootdirectory },
                None => StorageConfig::new(state_directory),
            },
            upstreams: upstreams.unwrap_or_else(|| Config::default().upstreams),
            cache,
            cluster: self.section(&tree, "cluster"),
            log: self.section(&tree, "log"),
        };
        self.check_cache(&tree, &config.cache);
        if let Err((key, error)) = config.cluster.check() {
            self.mistake(&tree, &format!("cluster.{key}"), Problem::Cluster(error));
        }
        self.check_tls(&tree, &config.http.tls);
        for (name, upstream) in &config.upstreams.upstreams {
            let path = format!("upstreams.{name}.tags");
            self.check_rules(&tree, &path, &upstream.tags);
        }
        config
    }

    fn section<'t, T: Deserialize<'t> + Default>(&mut self, tree: &'t Node, name: &str) -> T {
        let Some(node) = tree.find(&[name]) else {
            return T::default();
        };
        reader::read(node).unwrap_or_else(|error| {
            let key = error.path(name);
            self.value(&error, key);
            T::default()
        })
    }

    fn value(&mut self, error: &reader::ReadError, key: String) {
        let origin = error.origin.clone().unwrap_or(Origin::Line(0));
        let message = error.message.clone();
        let problem = Problem::Value { message };
        self.mistakes
            .push(self.places.mistake(&origin, key, problem));
    }

    /// Reads the entries one by one, so that each shows its mistake, then puts `proxy` among them.
    fn upstreams(&mut self) -> Option<upstream::Config> {
        let before = self.mistakes.len();
        let mut entries = self.entries(None);
        // Only to learn which hosts are known: what is wrong shows below.
        let known = upstream::Config::with_builtins(entries.clone(), None).ok();
        let names = known.as_ref().and_then(|known| known.names().ok());
        let find = |host: &str| {
            let name = names.as_ref()?.get(host)?;
            let url = known.as_ref()?.upstreams.get(name)?.url.clone();
            Some((name.clone(), url.unwrap_or_default()))
        };
        let proxy = match proxy::take(&mut self.tree, self.places, find) {
            Ok(proxy) => proxy,
            Err(mistakes) => {
                self.mistakes.extend(mistakes);
                return None;
            }
        };
        if let Some(proxy) = &proxy {
            entries.extend(self.entries(Some(proxy)));
        }
        if self.mistakes.len() > before {
            return None;
        }
        let default = proxy.as_ref().map(|proxy| proxy.name.as_str());
        match upstream::Config::with_builtins(entries, default) {
            Ok(config) => Some(config),
            Err(error) => {
                let origin = self.tree.locate(&error.key).clone();
                let key = match proxy {
                    Some(proxy) => proxy.written(error.key),
                    None => error.key,
                };
                let problem = Problem::Upstream(error.problem);
                self.mistakes
                    .push(self.places.mistake(&origin, key, problem));
                None
            }
        }
    }

    /// Reads the entries of `upstreams`; of those only the one that `proxy` names, if given.
    fn entries(&mut self, proxy: Option<&Proxy>) -> BTreeMap<String, UpstreamConfig> {
        let tree = self.tree.clone();
        let mut entries = BTreeMap::new();
        for entry in tree
            .find(&["upstreams"])
            .into_iter()
            .flat_map(Node::entries)
        {
            if proxy.is_some_and(|proxy| proxy.name != entry.key) {
                continue;
            }
            match reader::read(&entry.node) {
                Ok(config) => drop(entries.insert(entry.key.clone(), config)),
                Err(error) => {
                    let key = error.path(&format!("upstreams.{}", entry.key));
                    let key = proxy.map_or(key.clone(), |proxy| proxy.written(key));
                    self.value(&error, key);
                }
            }
        }
        entries
    }

    fn check_cache(&mut self, tree: &Node, cache: &CacheConfig) {
        if cache.negative_ttl > cache::MAX_NEGATIVE_TTL {
            let limit = "60s: a tag that was just pushed would stay hidden";
            self.mistake(tree, "cache.negative_ttl", Problem::TooLarge { limit });
        }
        if cache.max_size.is_some_and(|size| size.as_u64() == 0) {
            self.mistake(tree, "cache.max_size", Problem::Zero);
        }
        self.check_rules(tree, "cache.tags", &cache.tags);
    }

    fn check_tls(&mut self, tree: &Node, tls: &tls::Config) {
        let is_empty =
            |path: &Option<PathBuf>| path.as_ref().is_none_or(|path| path.as_os_str().is_empty());
        for (empty, other, key, needs) in [
            (
                is_empty(&tls.key),
                !is_empty(&tls.certificate),
                "certificate",
                "http.tls.key",
            ),
            (
                is_empty(&tls.certificate),
                !is_empty(&tls.key),
                "key",
                "http.tls.certificate",
            ),
            (
                !tls.is_on(),
                !tls.clientcas.is_empty(),
                "clientcas",
                "http.tls.certificate",
            ),
            (
                !tls.is_on(),
                tls.allow_plain,
                "allow_plain",
                "http.tls.certificate",
            ),
            (
                tls.clientcas.is_empty(),
                tls.clientauth.is_some(),
                "clientauth",
                "http.tls.clientcas",
            ),
        ] {
            if empty && other {
                self.mistake(
                    tree,
                    &format!("http.tls.{key}"),
                    Problem::Needs { other: needs },
                );
            }
        }
    }

    fn check_rules(&mut self, tree: &Node, path: &str, rules: &[TagRule]) {
        for (index, rule) in rules.iter().enumerate() {
            let policy = match rule.policy {
                TagPolicy::Immutable => "immutable",
                TagPolicy::Always => "always",
                TagPolicy::Ttl => continue,
            };
            if rule.ttl.is_some() {
                let key = format!("{path}[{index}].ttl");
                self.mistake(tree, &key, Problem::NoTtl { policy });
            }
        }
    }

    fn mistake(&mut self, tree: &Node, key: &str, problem: Problem) {
        let origin = tree.locate(key).clone();
        self.mistakes
            .push(self.places.mistake(&origin, key.to_owned(), problem));
    }
}
