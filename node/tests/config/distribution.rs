//! Files of the Docker registry, which are accepted as they stand.

use std::path::PathBuf;
use std::time::Duration;

use millrace::upstream::Secret;

use super::{config, load};

/// As operators of the Docker registry have it, version 2.8 and 3 mixed.
const REGISTRY_FILE: &str = r#"version: 0.1
log:
  accesslog:
    disabled: true
  level: warn
  formatter: text
  fields:
    service: registry
    environment: production
storage:
  cache:
    blobdescriptor: redis
  filesystem:
    rootdirectory: /var/lib/registry
    maxthreads: 100
  delete:
    enabled: true
  redirect:
    disable: false
  maintenance:
    uploadpurging:
      enabled: true
      age: 168h
      interval: 24h
      dryrun: false
    readonly:
      enabled: false
  tag:
    concurrencylimit: 8
http:
  addr: :5000
  net: tcp
  prefix: /
  host: https://mirror.example.com
  secret: asecretforlocaldevelopment
  relativeurls: on
  draintimeout: 60s
  debug:
    addr: :5001
    prometheus:
      enabled: true
      path: /metrics
  headers:
    X-Content-Type-Options: [nosniff]
  http2:
    disabled: false
  h2c:
    enabled: false
  tls:
notifications:
  events:
    includereferences: true
  endpoints:
    - name: alistener
      disabled: true
      url: https://my.listener.com/event
      headers: <http.Header>
      timeout: 1s
redis:
  addrs: [localhost:6379]
  password: asecret
  db: 0
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
  file:
    - file: /path/to/checked/file
      interval: 10s
  http:
    - uri: http://server.to.check/must/return/200
      headers:
        Authorization: [Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==]
      statuscode: 200
catalog:
  maxentries: 100
proxy:
  remoteurl: https://registry-1.docker.io
  username: robot
  password: 0123
  ttl: 168h
validation:
  disabled: true
"#;

#[test]
fn the_registrys_own_file_is_accepted_as_it_stands() {
    let loaded = load(REGISTRY_FILE, &[]).unwrap_or_else(|error| panic!("{error}"));
    let config = loaded.config;
    assert_eq!(config.http.addr.to_string(), ":5000");
    assert_eq!(config.http.debug.addr.to_string(), ":5001");
    assert_eq!(config.http.draintimeout, Duration::from_secs(60));
    let root = &config.storage.rootdirectory;
    assert_eq!(root, &PathBuf::from("/var/lib/registry"));
    assert_eq!(config.log.level.as_str(), "warn");
    assert!(config.log.accesslog.disabled);
    assert_eq!(config.upstreams.default, "docker.io");
    let hub = &config.upstreams.upstreams["docker.io"];
    assert_eq!(hub.username.as_deref(), Some("robot"));
    assert_eq!(hub.password, Some(Secret::new("0123")));
    let ignored: Vec<_> = loaded.ignored.iter().map(|key| key.key.as_str()).collect();
    let expected = "log.fields storage.cache storage.filesystem.maxthreads storage.delete \
        storage.redirect storage.maintenance storage.tag http.host http.secret \
        http.relativeurls http.headers http.http2 http.h2c notifications redis health catalog \
        proxy.ttl validation";
    assert_eq!(ignored.join(" "), expected);
    assert_eq!(
        loaded.ignored[0].to_string(),
        "m.yml:7: log.fields: ignored: every line carries its own fields"
    );
    assert!(!format!("{:?}", loaded.ignored).contains("asecret"));
}

#[test]
fn the_file_that_debian_installs_works_as_it_stands() {
    let yaml = "version: 0.1\nlog:\n  fields:\n    service: registry\nstorage:\n  cache:\n    \
        blobdescriptor: inmemory\n  filesystem:\n    rootdirectory: /var/lib/docker-registry\n  \
        delete:\n    enabled: true\nhttp:\n  addr: :5000\n  headers:\n    \
        X-Content-Type-Options: [nosniff]\nhealth:\n  storagedriver:\n    enabled: true\n    \
        interval: 10s\n    threshold: 3\n";
    config(yaml);
    let with_auth = format!("{yaml}auth:\n  htpasswd:\n    realm: basic-realm\n    path: /etc/x\n");
    let htpasswd = config(&with_auth)
        .auth
        .htpasswd
        .expect("users are asked for");
    assert_eq!(
        (htpasswd.realm.as_str(), htpasswd.path.to_str()),
        ("basic-realm", Some("/etc/x"))
    );
}

#[test]
fn proxy_names_the_default_upstream() {
    for (proxy, default, url) in [
        (
            "https://registry-1.docker.io",
            "docker.io",
            "https://registry-1.docker.io/",
        ),
        (
            "https://registry-1.docker.io/v2/",
            "docker.io",
            "https://registry-1.docker.io/",
        ),
        ("https://docker.io", "docker.io", "https://docker.io/"),
        ("https://quay.io/", "quay.io", "https://quay.io/"),
        ("http://quay.io", "quay.io", "http://quay.io/"),
        (
            "https://Registry.Corp",
            "registry.corp",
            "https://registry.corp/",
        ),
        (
            "http://registry.corp:5000",
            "registry.corp:5000",
            "http://registry.corp:5000/",
        ),
    ] {
        let upstreams = config(&format!("proxy: {{remoteurl: '{proxy}'}}")).upstreams;
        assert_eq!(upstreams.default, default, "{proxy}");
        assert_eq!(
            upstreams.upstreams[default].url.as_deref(),
            Some(url),
            "{proxy}"
        );
    }
    let names = config("proxy: {remoteurl: 'http://r.corp:5000'}")
        .upstreams
        .names();
    let names = names.expect("no duplicates");
    assert_eq!(
        names.get("r.corp_5000").map(String::as_str),
        Some("r.corp:5000")
    );
}

#[test]
fn proxy_joins_the_upstream_that_has_its_host() {
    let upstreams = config(
        "proxy: {remoteurl: 'http://r.corp:5000', username: u, password: p}\n\
         upstreams: {corp: {url: 'http://r.corp:5000', max_requests: 2}}",
    )
    .upstreams;
    assert_eq!(upstreams.default, "corp");
    let corp = &upstreams.upstreams["corp"];
    assert_eq!(
        (corp.username.as_deref(), corp.max_requests),
        (Some("u"), 2)
    );
    let empty = config("proxy: {remoteurl: ''}");
    assert_eq!(empty.upstreams.default, "docker.io");
}
