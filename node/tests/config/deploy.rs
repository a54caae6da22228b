//! What is delivered beside the program says the same as the program.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use millrace::config::Config;
use millrace::pull::PullError;
use millrace::upstream::{FetchError, Limit, Outage, Shortage, UpstreamConfig};
use millrace_protocol::oci::{Algorithm, Digest};

use super::{config, load};

const EXAMPLE: &str = include_str!("../../../deploy/millrace.example.yml");
const README: &str = include_str!("../../../README.md");
const UNIT: &str = include_str!("../../../deploy/millrace.service");

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
    let mut lines = UNIT.lines();
    let stop = lines.find_map(|line| line.strip_prefix("TimeoutStopSec="));
    let stop = stop.and_then(|text| humantime::parse_duration(text).ok());
    assert!(stop > Some(Config::default().http.draintimeout), "{stop:?}");
    for line in ["User=millrace", "StateDirectory=millrace", "Type=simple"] {
        assert!(UNIT.lines().any(|found| found == line), "{line}");
    }
}

#[test]
fn the_unit_lets_no_other_user_read_the_data_folder() {
    let unit = include_str!("../../../deploy/millrace.service");
    for line in ["StateDirectoryMode=0700", "UMask=0077"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}

#[test]
fn the_unit_is_not_started_again_and_again_for_a_mistake_in_the_configuration() {
    assert!(
        UNIT.lines()
            .any(|line| line == "RestartPreventExitStatus=2 217")
    );
    // The status of a command before the main process does not count there.
    assert!(!UNIT.lines().any(|line| line.starts_with("ExecStartPre=")));
}

/// What clients are told with a 503, one of each kind that the README explains.
fn troubles() -> [PullError; 8] {
    let upstream: Arc<str> = "docker.io".into();
    let unavailable = |reason| FetchError::Unavailable {
        upstream: Arc::clone(&upstream),
        reason,
    };
    let proxied = Outage::Proxy {
        proxy: "http://proxy.corp:3128".into(),
        cause: "it refuses the connection".into(),
    };
    let limited = FetchError::RateLimited {
        upstream: Arc::clone(&upstream),
        limit: Limit::Pulls,
        retry_at: None,
    };
    let busy = FetchError::Busy {
        upstream: Arc::clone(&upstream),
        limit: 64,
    };
    let shortage = |shortage| FetchError::Shortage {
        upstream: Arc::clone(&upstream),
        shortage,
    };
    let crowded = PullError::Crowded {
        upstream: "docker.io".to_owned(),
        limit: Some(512),
        waited: Duration::from_secs(20),
    };
    let incomplete = PullError::Incomplete {
        digest: Digest::of(Algorithm::Sha256, b""),
        missing: 3,
    };
    [
        unavailable(Outage::BreakerOpen).into(),
        limited.into(),
        crowded,
        busy.into(),
        unavailable(proxied).into(),
        shortage(Shortage::OpenFiles).into(),
        shortage(Shortage::Processes).into(),
        incomplete,
    ]
}

#[test]
fn the_readme_quotes_what_clients_are_told() {
    let heading = "| it says | what helps |\n|---|---|\n";
    let (_, rows) = README.split_once(heading).expect("the table");
    let rows: Vec<&str> = rows
        .lines()
        .take_while(|line| line.starts_with('|'))
        .collect();
    let troubles = troubles();
    assert_eq!(rows.len(), troubles.len());
    for (row, trouble) in rows.iter().zip(&troubles) {
        let quoted = row.split('`').nth(1).expect("a quotation");
        let said = trouble.to_string();
        let mut rest = said.as_str();
        for part in quoted.split('…').map(str::trim) {
            let (_, behind) = rest
                .split_once(part)
                .unwrap_or_else(|| panic!("{quoted}: {said}"));
            rest = behind;
        }
    }
}
