//! The configuration as its users meet it: defaults and whole files here; the Docker registry's files,
//! the environment and every kind of mistake below.

#[path = "config/anything.rs"]
mod anything;
#[path = "config/deploy.rs"]
mod deploy;
#[path = "config/distribution.rs"]
mod distribution;
#[path = "config/environment.rs"]
mod environment;
#[path = "config/mistakes.rs"]
mod mistakes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use millrace::config::{Config, ConfigError, Loaded};
use millrace::registry::UnavailableBlob;
use millrace::telemetry::Formatter;
use millrace::upstream::{Secret, TagPolicy};

fn load(yaml: &str, env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let env = env
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()));
    Config::parse(Some(Path::new("m.yml")), yaml, env)
}

fn config(yaml: &str) -> Config {
    let loaded = load(yaml, &[]).unwrap_or_else(|error| panic!("{yaml}\n{error}"));
    loaded.config
}

fn mistakes(yaml: &str, env: &[(&str, &str)]) -> String {
    match load(yaml, env) {
        Ok(_) => panic!("no mistake found in\n{yaml}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn without_a_file_the_defaults_are_used() {
    let loaded = Config::load(None, std::iter::empty()).expect("defaults are valid");
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.config.http.addr.to_string(), "127.0.0.1:5000");
    assert_eq!(loaded.config.http.debug.addr.to_string(), "127.0.0.1:5001");
    assert_eq!(loaded.config.upstreams.default, "docker.io");
    assert!(loaded.ignored.is_empty() && loaded.warnings.is_empty());
}

#[test]
fn systemd_says_where_data_lives_unless_the_file_does() {
    let env = [("STATE_DIRECTORY", "/var/lib/private/millrace:/other")];
    let root = |yaml| {
        load(yaml, &env)
            .expect("valid")
            .config
            .storage
            .rootdirectory
    };
    assert_eq!(root(""), PathBuf::from("/var/lib/private/millrace"));
    assert_eq!(
        root("storage: {filesystem: {rootdirectory: /data}}"),
        PathBuf::from("/data")
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("absent.yml");
    let error = Config::load(Some(&path), std::iter::empty()).expect_err("absent");
    let message = error.to_string();
    let start = format!("{}: cannot be read: ", path.display());
    assert!(message.starts_with(&start), "{message}");
    std::fs::write(&path, b"a: \xff\xfe").expect("writable");
    let error = Config::load(Some(&path), std::iter::empty()).expect_err("not text");
    assert!(error.to_string().contains("UTF-8"), "{error}");
}

#[test]
fn all_own_keys_are_read() {
    let config = config(
        r#"
http:
  addr: :5000
  draintimeout: 1m
  unavailable_blob: 404
  debug: {addr: "[::1]:0", prometheus: {enabled: no, path: /m}}
storage: {filesystem: {rootdirectory: /srv/millrace}}
upstreams:
  docker.io: {username: ci, password_file: /etc/hub.pass, fallback: [https://mirror.gcr.io]}
  corp:
    url: http://registry.corp:5000
    aliases: [corp, registry.corp_5000]
    password: 0042
    username: 7
    max_requests: 3
    timeouts: {connect: 1s, response: 2s, idle: 3s}
    tags: [{match: "release/*", policy: immutable}, {match: "*", policy: ttl, ttl: 60s}]
  old: {exec: {command: helper, lifetime: 24h}, plain_http: on}
cache:
  max_size: 200GB
  min_free: 10GiB
  revalidate: 2s
  stale_slow: 2h
  stale_away: 7d
  stale_denied: true
  negative_ttl: 0
  tags: [{match: "*", policy: always}]
log: {level: debug, formatter: json, accesslog: {disabled: true}}
"#,
    );
    assert_eq!(config.http.addr.to_string(), ":5000");
    assert_eq!(config.http.draintimeout, Duration::from_secs(60));
    assert_eq!(config.http.unavailable_blob, UnavailableBlob::NotFound);
    assert_eq!(config.http.debug.addr.to_string(), "[::1]:0");
    assert!(!config.http.debug.prometheus.enabled);
    assert_eq!(config.http.debug.prometheus.path, "/m");
    assert_eq!(config.storage.rootdirectory, PathBuf::from("/srv/millrace"));
    let corp = &config.upstreams.upstreams["corp"];
    assert_eq!(corp.password, Some(Secret::new("0042")));
    assert_eq!(corp.username.as_deref(), Some("7"));
    assert_eq!(corp.timeouts.idle, Duration::from_secs(3));
    assert_eq!(corp.tags[0].policy, TagPolicy::Immutable);
    let old = &config.upstreams.upstreams["old"];
    assert_eq!(old.url.as_deref(), Some("http://old/"));
    let exec = old.exec.as_ref().expect("is there");
    assert_eq!(exec.lifetime, Some(Duration::from_secs(86400)));
    assert_eq!(config.cache.max_size, Some(ByteSize::gb(200)));
    assert_eq!(config.cache.min_free, Some(ByteSize::gib(10)));
    assert_eq!(config.cache.stale_away, Duration::from_secs(7 * 86400));
    assert_eq!(config.cache.negative_ttl, Duration::ZERO);
    assert_eq!(config.cache.tags.len(), 1);
    assert_eq!(config.log.level.as_str(), "debug");
    assert_eq!(config.log.formatter, Formatter::Json);
    assert!(config.log.accesslog.disabled);
}
