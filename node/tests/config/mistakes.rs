//! Every kind of mistake in a file, each of which has one line.

use super::mistakes;

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
