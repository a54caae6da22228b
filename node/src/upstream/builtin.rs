//! The public registries that work without any configuration.
//!
//! A table and nothing else: how an entry merges with the user's is `config`'s work.
//! Source: CLIENT-CONTRACT N4, N5 and its quirks table.

use std::collections::BTreeMap;

use super::config::UpstreamConfig;

/// Canonical name of Docker Hub, which has rules of its own.
pub(super) const DOCKER_HUB: &str = "docker.io";

/// Canonical name and alias without dots.
const REGISTRIES: [(&str, &str); 11] = [
    (DOCKER_HUB, "dockerhub"),
    ("quay.io", "quay"),
    ("ghcr.io", "ghcr"),
    ("registry.k8s.io", "k8s"),
    ("gcr.io", "gcr"),
    ("public.ecr.aws", "ecr"),
    ("mcr.microsoft.com", "mcr"),
    ("lscr.io", "lscr"),
    ("nvcr.io", "nvcr"),
    ("registry.gitlab.com", "gitlab"),
    ("docker.elastic.co", "elastic"),
];

/// Returns the built-in upstreams by name.
pub(super) fn upstreams() -> BTreeMap<String, UpstreamConfig> {
    let entry = |&(name, alias): &(&str, &str)| {
        let contact = if name == DOCKER_HUB {
            "registry-1.docker.io"
        } else {
            name
        };
        // lscr.io is a front that sends its clients to ghcr.io's token service.
        let token_hosts = if name == "lscr.io" {
            vec!["ghcr.io".to_owned()]
        } else {
            Vec::new()
        };
        let config = UpstreamConfig {
            url: Some(format!("https://{contact}")),
            aliases: vec![alias.to_owned()],
            token_hosts,
            ..UpstreamConfig::default()
        };
        (name.to_owned(), config)
    };
    REGISTRIES.iter().map(entry).collect()
}

/// Returns further host names under which clients know the upstream `name`.
pub(super) fn host_names(name: &str) -> &'static [&'static str] {
    match name {
        DOCKER_HUB => &["index.docker.io", "registry-1.docker.io"],
        _ => &[],
    }
}
