//! Variables of the environment: which keys they override, and which mistakes they can hold.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use millrace::config::Config;
use millrace::upstream::{Secret, TagPolicy};

use super::{load, mistakes};

#[test]
fn variables_override_keys() {
    let yaml = "http: {addr: ':1'}\nupstreams: {my.corp: {url: 'http://x'}}\nstorage: filesystem";
    let env = [
        ("MILLRACE_HTTP_ADDR", "127.0.0.1:7000"),
        ("REGISTRY_HTTP_ADDR", ":6000"),
        ("REGISTRY_HTTP_DEBUG_ADDR", "\":6001\""),
        ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "/data"),
        ("REGISTRY_LOG_LEVEL", "error"),
        ("REGISTRY_LOG_FIELDS_SERVICE", "x"),
        ("MILLRACE_CACHE_MAX_SIZE", "5GB"),
        ("MILLRACE_CACHE_STALE_AWAY", "1d"),
        ("MILLRACE_CACHE_TAGS", "[{match: '*', policy: always}]"),
        ("MILLRACE_UPSTREAMS_DOCKER_IO_USERNAME", "ci"),
        ("MILLRACE_UPSTREAMS_DOCKER_IO_PASSWORD", "p: #1 [x"),
        ("MILLRACE_UPSTREAMS_MY_CORP_MAX_REQUESTS", "9"),
        ("MILLRACE_UPSTREAMS_NEW_URL", "http://new"),
        ("MILLRACE_UPSTREAMS_NEW_TIMEOUTS_CONNECT", "1s"),
        ("MILLRACE_UPSTREAMS_NEW_USERNAME", "u"),
        ("MILLRACE_UPSTREAMS_NEW_PASSWORD_FILE", "/secret"),
        ("MILLRACE_HTTP_DRAINTIMEOUT", ""),
        ("PATH", "/bin"),
    ];
    let loaded = load(yaml, &env).unwrap_or_else(|error| panic!("{error}"));
    let config = loaded.config;
    assert_eq!(config.http.addr.to_string(), "127.0.0.1:7000");
    assert_eq!(config.http.debug.addr.to_string(), ":6001");
    assert_eq!(config.http.draintimeout, Duration::from_secs(30));
    assert_eq!(config.storage.rootdirectory, PathBuf::from("/data"));
    assert_eq!(config.log.level.as_str(), "error");
    assert_eq!(config.cache.max_size, Some(ByteSize::gb(5)));
    assert_eq!(config.cache.stale_away, Duration::from_secs(86400));
    assert_eq!(config.cache.tags[0].policy, TagPolicy::Always);
    let hub = &config.upstreams.upstreams["docker.io"];
    assert_eq!(hub.password, Some(Secret::new("p: #1 [x")));
    assert_eq!(config.upstreams.upstreams["my.corp"].max_requests, 9);
    let new = &config.upstreams.upstreams["new"];
    assert_eq!(new.timeouts.connect, Duration::from_secs(1));
    assert_eq!(new.password_file, Some(PathBuf::from("/secret")));
    assert_eq!(
        loaded.ignored[0].to_string(),
        "environment variable REGISTRY_LOG_FIELDS_SERVICE: log.fields: ignored: \
         every line carries its own fields"
    );
}

#[test]
fn the_registrys_proxy_variables_are_enough() {
    let env = [
        ("REGISTRY_PROXY_REMOTEURL", "https://registry-1.docker.io"),
        ("REGISTRY_PROXY_USERNAME", "u"),
        ("REGISTRY_PROXY_PASSWORD", "p"),
        ("REGISTRY_HTTP_ADDR", "0.0.0.0:5000"),
    ];
    let env = env
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::parse(None, "", env).expect("valid").config;
    assert_eq!(config.upstreams.default, "docker.io");
    let hub = &config.upstreams.upstreams["docker.io"];
    assert_eq!(hub.username.as_deref(), Some("u"));
}

#[test]
fn what_kubernetes_injects_is_ignored() {
    let env = [
        ("MILLRACE_PORT", "tcp://10.0.0.1:5000"),
        ("MILLRACE_PORT_5000_TCP_ADDR", "10.0.0.1"),
        ("MILLRACE_SERVICE_HOST", "10.0.0.1"),
        ("MILLRACE_SERVICE_PORT_HTTP", "5000"),
        ("MILLRACE_DEBUG_SERVICE_HOST", "10.0.0.2"),
        ("MILLRACE_DEBUG_PORT", "tcp://10.0.0.2:5001"),
        ("REGISTRY_PORT", "tcp://10.0.0.1:5000"),
        ("REGISTRY_SERVICE_HOST", "10.0.0.1"),
    ];
    let loaded = load("", &env).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.warnings.is_empty() && loaded.ignored.is_empty());
}

#[rustfmt::skip]
const VARIABLE_MISTAKES: &[(&str, &str, &str)] = &[
    ("MILLRACE_HTTP_ADR", "x", "no key has this name; did you mean MILLRACE_HTTP_ADDR?"),
    ("MILLRACE_CACHE_MAXSIZE", "x", "no key has this name; did you mean MILLRACE_CACHE_MAX_SIZE?"),
    ("MILLRACE_HTTP_ADDR", "x",
     "http.addr: expected an address such as 127.0.0.1:5000, [::1]:5000 or :5000, found `x`"),
    ("MILLRACE_CACHE_TAGS", "[{match: x, policy: y}]",
     "cache.tags[0].policy: `y` is not one of immutable, ttl, always"),
    ("REGISTRY_AUTH_HTPASSWD_PATH", "/x",
     "auth.htpasswd: needs the key realm"),
    ("REGISTRY_STORAGE_S3_BUCKET", "x",
     "storage.s3: not supported by this version: data lives in storage.filesystem.rootdirectory only"),
    ("REGISTRY_STORAGE", "inmemory",
     "storage.inmemory: not supported by this version: data lives in storage.filesystem.rootdirectory only"),
    ("REGISTRY_HTTP_TLS_KEY", "/x",
     "http.tls.key: needs http.tls.certificate beside it"),
    ("REGISTRY_PROXY_PASSWORD", "hunter2", "proxy.password: needs proxy.remoteurl beside it"),
];

#[test]
fn mistakes_in_variables_name_the_variable() {
    for &(name, value, expected) in VARIABLE_MISTAKES {
        let found = mistakes("", &[(name, value)]);
        assert_eq!(found, format!("environment variable {name}: {expected}"));
    }
    let found = mistakes("", &[("MILLRACE_CACHE_TAGS", "[")]);
    let start = "environment variable MILLRACE_CACHE_TAGS: cache.tags: not valid YAML: ";
    assert!(
        found.starts_with(start) && found.lines().count() == 1,
        "{found}"
    );
}

#[test]
fn unknown_variables_of_the_registry_are_only_warned_of() {
    let env = [
        ("REGISTRY_CACHE_MAX_SIZE", "1GB"),
        ("REGISTRY_HTTP_ADR", "x"),
    ];
    let loaded = load("", &env).expect("only warnings");
    assert_eq!(loaded.config, Config::default());
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2);
    let expected = "environment variable REGISTRY_HTTP_ADR: no key has this name; \
                    did you mean REGISTRY_HTTP_ADDR?";
    assert!(
        warnings.iter().any(|warning| warning == expected),
        "{warnings:?}"
    );
}

#[test]
fn a_proxy_that_cannot_be_used_is_told_without_its_password() {
    let env = [
        ("HTTPS_PROXY", "http://user:hunter@2@proxy:3128"),
        ("http_proxy", "http://user:hunter2@proxy:3128"),
        ("NO_PROXY", "10.0.0.0/8"),
    ];
    let loaded = load("", &env).unwrap_or_else(|error| panic!("{error}"));
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let begins = "environment variable HTTPS_PROXY: names no proxy that can be used";
    assert!(warnings[0].starts_with(begins), "{warnings:?}");
    assert!(!warnings[0].contains("hunter"), "{warnings:?}");
}
