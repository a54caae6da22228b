//! The configuration as its users meet it: whole files, the environment, and every kind of mistake.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use millrace::config::{Config, ConfigError, Loaded};
use millrace::registry::UnavailableBlob;
use millrace::telemetry::Formatter;
use millrace::upstream::{Secret, TagPolicy, UpstreamConfig};

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

#[rustfmt::skip]
const MISTAKES: &[(&str, &str)] = &[
    // Keys.
    ("http:\n  adr: :5000", "m.yml:2: http.adr: unknown key; did you mean http.addr?"),
    ("htpp: {}", "m.yml:1: htpp: unknown key; did you mean http?"),
    ("\n\nmax_size: 1", "m.yml:3: max_size: unknown key; did you mean cache.max_size?"),
    ("upstreams:\n  docker.io:\n    pasword: hunter2",
     "m.yml:3: upstreams.docker.io.pasword: unknown key; did you mean upstreams.docker.io.password?"),
    ("cache:\n  tags:\n    - {match: x, polcy: ttl, policy: ttl}",
     "m.yml:3: cache.tags[0].polcy: unknown key; did you mean cache.tags[0].policy?"),
    ("health: {storagedrivr: {}}", "m.yml:1: health.storagedrivr: unknown key; did you mean health.storagedriver?"),
    // Shapes and types.
    ("http: 5", "m.yml:1: http: expected a mapping"),
    ("- a", "m.yml:1: expected a mapping"),
    ("hello", "m.yml:1: expected a mapping"),
    ("http:\n  addr: '5000'",
     "m.yml:2: http.addr: expected an address such as 127.0.0.1:5000, [::1]:5000 or :5000, found `5000`"),
    ("http:\n  addr: [a]", "m.yml:2: http.addr: expected text, found a list"),
    ("http: {draintimeout: 5}",
     "m.yml:1: http.draintimeout: expected a duration with a unit, such as 5s, 90m or 30d, found `5`"),
    ("http: {unavailable_blob: 500}", "m.yml:1: http.unavailable_blob: `500` is not one of auto, 404, 503"),
    ("http: {debug: {prometheus: {path: metrics}}}",
     "m.yml:1: http.debug.prometheus.path: expected a path such as /metrics, found `metrics`"),
    ("cache: {max_size: lots}", "m.yml:1: cache.max_size: expected a size such as 200GB or 10GiB, found `lots`"),
    ("cache: {max_size: 0}", "m.yml:1: cache.max_size: must not be zero"),
    ("cache: {stale_denied: maybe}", "m.yml:1: cache.stale_denied: expected true or false, found `maybe`"),
    ("cache:\n  negative_ttl: 5m",
     "m.yml:2: cache.negative_ttl: more than 60s: a tag that was just pushed would stay hidden"),
    ("cache:\n  tags:\n    - {match: x, policy: never}",
     "m.yml:3: cache.tags[0].policy: `never` is not one of immutable, ttl, always"),
    ("cache:\n  tags:\n    - {match: x}", "m.yml:3: cache.tags[0]: needs the key policy"),
    ("cache:\n  tags:\n    - match: x\n      policy: always\n      ttl: 5s",
     "m.yml:5: cache.tags[0].ttl: has no meaning beside policy always"),
    ("upstreams:\n  a.b:\n    tags:\n      - {match: x, policy: immutable, ttl: 5s}",
     "m.yml:4: upstreams.a.b.tags[0].ttl: has no meaning beside policy immutable"),
    ("log: {level: loud}",
     "m.yml:1: log.level: expected error, warn, info, debug or directives such as info,millrace::pull=debug, found `loud`"),
    ("loglevel: loud",
     "m.yml:1: log.level: expected error, warn, info, debug or directives such as info,millrace::pull=debug, found `loud`"),
    ("log: {formatter: xml}", "m.yml:1: log.formatter: `xml` is not one of text, json, logstash"),
    // Upstreams.
    ("upstreams: {a: {url: 'ftp://x'}}", "m.yml:1: upstreams.a.url: scheme `ftp` is not http or https"),
    ("upstreams:\n  a:\n    max_requests: many",
     "m.yml:3: upstreams.a.max_requests: expected a whole number, found `many`"),
    ("upstreams:\n  a:\n    fallback:\n      - https://x\n      - https://u:hunter2@[",
     "m.yml:5: upstreams.a.fallback[1]: invalid IPv6 address: \"***\""),
    ("upstreams:\n  a:\n    username: u\n    password: [hunter2]",
     "m.yml:4: upstreams.a.password: expected text, found a list"),
    ("upstreams:\n  docker.io:\n    username: u", "m.yml:3: upstreams.docker.io.username: needs password beside it"),
    // The registry's proxy.
    ("proxy:\n  remoteurl: registry-1.docker.io",
     "m.yml:2: proxy.remoteurl: not a URL: relative URL without a base"),
    ("proxy:\n  remoteurl: https://u:hunter2@quay.io",
     "m.yml:2: proxy.remoteurl: credentials do not belong in the URL; use username and password_file"),
    ("proxy:\n  remoteurl: https://quay.io\n  password: hunter2",
     "m.yml:3: proxy.password: needs username beside it"),
    ("proxy:\n  username: u", "m.yml:2: proxy.username: needs proxy.remoteurl beside it"),
    ("proxy:\n  remoteurl: https://quay.io\n  username: u\n  password: hunter2\nupstreams: {quay.io: {username: v, password: w}}",
     "m.yml:3: proxy.username: upstreams.quay.io.username sets this as well; keep one of them\n\
      m.yml:4: proxy.password: upstreams.quay.io.password sets this as well; keep one of them"),
    // What is not there.
    ("auth: {token: {}}",
     "m.yml:1: auth.token: not supported by this version: users are asked for by auth.htpasswd; or put a proxy that \
      authenticates in front"),
    ("auth: {silly: {realm: x}}",
     "m.yml:1: auth.silly: not supported by this version: users are asked for by auth.htpasswd; or put a proxy that \
      authenticates in front"),
    ("http:\n  tls:\n    letsencrypt: {email: x}",
     "m.yml:3: http.tls.letsencrypt: not supported by this version: this version takes certificates from files: \
      http.tls.certificate and http.tls.key"),
    ("http:\n  tls:\n    ciphersuites: [x]",
     "m.yml:3: http.tls.ciphersuites: not supported by this version: the cipher suites are those that are safe; take \
      http.tls.ciphersuites away"),
    ("http: {net: unix}",
     "m.yml:1: http.net: not supported by this version: only tcp listeners are there; take http.net away and set http.addr"),
    ("http: {prefix: /registry/}",
     "m.yml:1: http.prefix: not supported by this version: clients find the API under /v2/ only; take http.prefix away"),
    ("http: {local: {addr: ':1'}}",
     "m.yml:1: http.local.addr: expected a loopback address or unix:/path, found `:1`: whoever reaches this listener \
      reads without TLS and authentication"),
    ("http: {local: {addr: 'unix:x.sock'}}",
     "m.yml:1: http.local.addr: expected unix: and a path from the root, found `unix:x.sock`"),
    ("storage:\n  s3:\n    bucket: b",
     "m.yml:2: storage.s3: not supported by this version: data lives in storage.filesystem.rootdirectory only"),
    ("storage:\n  inmemory:",
     "m.yml:2: storage.inmemory: not supported by this version: data lives in storage.filesystem.rootdirectory only"),
    ("storage: inmemory",
     "m.yml:1: storage.inmemory: not supported by this version: data lives in storage.filesystem.rootdirectory only"),
    ("middleware: {storage: []}",
     "m.yml:1: middleware: not supported by this version: take middleware away; content is always served from this \
      node's disk"),
    ("cluster: {joni: []}", "m.yml:1: cluster.joni: unknown key; did you mean cluster.join?"),
    ("cluster:\n  join: [build1]",
     "m.yml:2: cluster.join[0]: expected host:port or dns:name:port, such as build1.corp:5050"),
    ("cluster: {zone: a b}", "m.yml:1: cluster.zone: expected a name of letters, digits, `.`, `_` and `-`, at most 64"),
    ("cluster: {weight: 17}", "m.yml:1: cluster.weight: more than 16"),
    ("cluster: {replicas: 0}", "m.yml:1: cluster.replicas: expected a number from 1 to 3"),
    ("cluster: {advertise: '0.0.0.0:1'}",
     "m.yml:1: cluster.advertise: expected an address and a port that others can reach"),
    ("cluster: {deny: [build7]}", "m.yml:1: cluster.deny[0]: not a node id, expected 64 hexadecimal digits"),
    ("upstreams: {a: {access: [{match: x}]}}", "m.yml:1: upstreams.a.access[0]: needs the key read"),
    ("upstreams: {a: {access: [{match: x, read: ['user:ann']}]}}",
     "m.yml:1: upstreams.a.access[0].read[0]: expected anyone, local, authenticated, a user or cert: and a name, found \
      `user:ann`"),
    ("http:\n  tls:\n    certificate: x", "m.yml:3: http.tls.certificate: needs http.tls.key beside it"),
    ("http:\n  tls:\n    key: x", "m.yml:3: http.tls.key: needs http.tls.certificate beside it"),
    ("http:\n  tls:\n    clientcas: [x]", "m.yml:3: http.tls.clientcas: needs http.tls.certificate beside it"),
    ("http:\n  tls:\n    allow_plain: yes", "m.yml:3: http.tls.allow_plain: needs http.tls.certificate beside it"),
    ("http: {tls: {certificate: x, key: y, clientauth: verify-client-cert-if-given}}",
     "m.yml:1: http.tls.clientauth: needs http.tls.clientcas beside it"),
    ("http: {tls: {certificate: x, key: y, clientcas: [z], clientauth: request-client-cert}}",
     "m.yml:1: http.tls.clientauth: `request-client-cert` is not one of require-and-verify-client-cert, \
      verify-client-cert-if-given"),
    ("http: {tls: {certificate: x, key: y, minimumtls: tls1.0}}",
     "m.yml:1: http.tls.minimumtls: `tls1.0` is not one of tls1.2, tls1.3"),
    ("auth: {htpasswd: {path: /x}}", "m.yml:1: auth.htpasswd: needs the key realm"),
    ("auth: {htpasswd: {realm: x}}", "m.yml:1: auth.htpasswd: needs the key path"),
    ("version: 0.2", "m.yml:1: version: not supported by this version: the only version of the format is 0.1"),
    // YAML.
    ("http: {}\nhttp: {}", "m.yml:2: not valid YAML: duplicate mapping key: http"),
    ("a: *x", "m.yml:1: not valid YAML: "),
    // Several at once, in order of lines.
    ("http: {adr: 1, addr: x}\ncache: {max-size: 1}",
     "m.yml:1: http.adr: unknown key; did you mean http.addr?\n\
      m.yml:1: http.addr: expected an address such as 127.0.0.1:5000, [::1]:5000 or :5000, found `x`\n\
      m.yml:2: cache.max-size: unknown key; did you mean cache.max_size?"),
];

#[test]
fn every_mistake_has_one_line() {
    let mut wrong = Vec::new();
    for &(yaml, expected) in MISTAKES {
        let found = mistakes(yaml, &[]);
        let agrees = found == expected || (expected.ends_with(": ") && found.starts_with(expected));
        let lines = found.lines().count() == expected.lines().count();
        if !agrees || !lines || found.contains("hunter2") {
            wrong.push(format!(
                "{yaml}\n  expected {expected}\n     found {found}\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

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

const EXAMPLE: &str = include_str!("../../deploy/millrace.example.yml");

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
    let unit = include_str!("../../deploy/millrace.service");
    let stop = unit
        .lines()
        .find_map(|line| line.strip_prefix("TimeoutStopSec="));
    let stop = stop.and_then(|text| humantime::parse_duration(text).ok());
    assert!(stop > Some(Config::default().http.draintimeout), "{stop:?}");
    for line in ["DynamicUser=yes", "StateDirectory=millrace", "Type=simple"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}

mod anything {
    use proptest::prelude::*;

    use super::load;

    /// Pieces of real files, so that what is made of them gets past the parser.
    const PIECES: &[&str] = &[
        "http:",
        "addr:",
        "upstreams:",
        "docker.io:",
        "cache:",
        "tags:",
        "- {match: x, policy: ttl}",
        "proxy:",
        "remoteurl:",
        "https://quay.io",
        "storage:",
        "filesystem:",
        "password:",
        "hunter2",
        ": ",
        "\n",
        "\n  ",
        "\n    ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "<<: *a",
        "!!str ",
        "!!binary ",
        "| ",
        "'",
        "\"",
        "#",
        "~",
        "0x7f",
        ".inf",
        "1e999",
        "\t",
        "\u{feff}",
        "---\n",
        "? ",
        "é",
        "5s",
        "health:",
        "log:",
        "level:",
        "debug",
        "auth:",
    ];

    fn assembled() -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(PIECES), 0..40)
            .prop_map(|pieces| pieces.concat())
    }

    fn name() -> impl Strategy<Value = String> {
        "(MILLRACE|REGISTRY)_[A-Zé]{0,9}(_[A-Z]{0,9}){0,4}".prop_map(|name| {
            let words = [
                ("HT", "HTTP"),
                ("UP", "UPSTREAMS"),
                ("CA", "CACHE"),
                ("PR", "PROXY"),
            ];
            let word = words.iter().find(|(short, _)| name.contains(short));
            word.map_or(name.clone(), |(short, long)| name.replace(short, long))
        })
    }

    proptest! {
        #[test]
        fn no_file_panics_or_tells_a_secret(yaml in assembled()) {
            if let Err(error) = load(&yaml, &[]) {
                let message = error.to_string();
                prop_assert!(!message.is_empty());
                prop_assert!(!error.mistakes().is_empty());
            }
        }

        #[test]
        fn no_text_panics(yaml in any::<String>()) {
            drop(load(&yaml, &[]));
        }

        #[test]
        fn no_variable_panics(name in name(), value in assembled()) {
            drop(load("", &[(&name, &value)]));
        }

        #[test]
        fn a_password_is_never_repeated(
            password in "[a-z]{3}@hunter2[:#@ \\[\\]{}\"'é]{0,6}",
            key in proptest::sample::select(&["username", "password", "password_file", "url", "pass", "ca"][..]),
        ) {
            let quoted = serde_json::to_string(&password).expect("text");
            let proxied = format!("proxy:\n  remoteurl: https://q.io\n  {key}: {quoted}");
            let listed = format!("upstreams:\n  q.io:\n    max_requests: x\n    {key}: {quoted}");
            for yaml in [proxied, listed] {
                if let Err(error) = load(&yaml, &[]) {
                    prop_assert!(!error.to_string().contains("hunter2"), "{}", error);
                }
            }
        }
    }
}
