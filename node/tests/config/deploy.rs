//! What is delivered beside the program says the same as the program.

use bytesize::ByteSize;
use millrace::config::Config;
use millrace::upstream::UpstreamConfig;

use super::{config, load};

const EXAMPLE: &str = include_str!("../../../deploy/millrace.example.yml");

#[test]
fn the_example_says_the_defaults() {
    let loaded = load(EXAMPLE, &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.ignored.is_empty());
}

/// Takes the `#` from lines that hold a key, and leaves prose alone.
fn uncommented(example: &str) -> String {
    let key = |text: &str| {
        let name = text
            .trim_start_matches("- ")
            .split(':')
            .next()
            .unwrap_or_default();
        let has_value = text.contains(": ") || text.ends_with(':');
        let is_word = |c: char| c.is_ascii_lowercase() || c == '_' || c == '.' || c == '{';
        has_value && !name.is_empty() && name.chars().all(is_word)
    };
    let line = |line: &str| match line.trim_start().strip_prefix("# ") {
        Some(text) if line.starts_with("  ") && key(text.trim_start()) => {
            let indent = &line[..line.len() - line.trim_start().len()];
            format!("{indent}{text}")
        }
        _ => line.to_owned(),
    };
    example.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_shows_every_key_of_its_sections() {
    let all = uncommented(EXAMPLE);
    let config = config(&all);
    let corp = &config.upstreams.upstreams["corp"];
    assert_eq!(corp.url.as_deref(), Some("http://registry.corp:5000/"));
    assert_eq!(corp.timeouts, UpstreamConfig::default().timeouts);
    assert_eq!(corp.max_requests, UpstreamConfig::default().max_requests);
    assert_eq!(corp.tags.len(), 2);
    assert!(
        config.upstreams.upstreams["docker.io"]
            .password_file
            .is_some()
    );
    assert_eq!(config.cache.max_size, Some(ByteSize::gb(200)));
    for key in [
        "unavailable_blob",
        "draintimeout",
        "prometheus",
        "rootdirectory",
        "username",
        "password",
        "password_file",
        "exec",
        "fallback",
        "url",
        "plain_http",
        "aliases",
        "ca",
        "timeouts",
        "max_requests",
        "max_downloads",
        "redirect_hosts",
        "token_hosts",
        "enabled",
        "tags",
        "max_size",
        "min_free",
        "revalidate",
        "stale_slow",
        "stale_away",
        "stale_denied",
        "negative_ttl",
        "listen",
        "advertise",
        "secret_file",
        "secret",
        "join",
        "zone",
        "weight",
        "replicas",
        "deny",
        "deny_file",
        "access",
        "access_ttl",
        "access_grace",
        "local",
        "certificate",
        "key",
        "clientcas",
        "clientauth",
        "minimumtls",
        "allow_plain",
        "htpasswd",
        "formatter",
        "accesslog",
    ] {
        assert!(EXAMPLE.contains(key), "{key}");
    }
}

#[test]
fn the_unit_waits_longer_than_the_drain() {
    let unit = include_str!("../../../deploy/millrace.service");
    let stop = unit
        .lines()
        .find_map(|line| line.strip_prefix("TimeoutStopSec="));
    let stop = stop.and_then(|text| humantime::parse_duration(text).ok());
    assert!(stop > Some(Config::default().http.draintimeout), "{stop:?}");
    for line in ["DynamicUser=yes", "StateDirectory=millrace", "Type=simple"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}

#[test]
fn the_unit_is_not_started_again_and_again_for_a_mistake_in_the_configuration() {
    let unit = include_str!("../../../deploy/millrace.service");
    assert!(
        unit.lines()
            .any(|line| line == "RestartPreventExitStatus=2")
    );
    // The status of a command before the main process does not count there.
    assert!(!unit.lines().any(|line| line.starts_with("ExecStartPre=")));
}
