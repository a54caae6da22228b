//! The table of all keys.
//!
//! A path is written with dots; `*` stands for a name that the user chooses, `[]` for each item of
//! a list. Source: the configuration reference of the Docker registry, 2.8 and 3.

use Fate::{Driver, Ignored, Items, List, Only, Open, Refused, Section, Value};

/// Whose key it is, and so which prefix a variable of the environment may have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Owner {
    /// The Docker registry's: `REGISTRY_` and `MILLRACE_`.
    Registry,
    /// Only here: `MILLRACE_`.
    Millrace,
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) enum Fate {
    /// A mapping with known keys.
    Section,
    /// A list of mappings with known keys.
    Items,
    /// A scalar that is read.
    Value,
    /// A list of scalars that is read.
    List,
    /// Has no meaning here, for this reason; keys below it must be known all the same.
    Ignored(&'static str),
    /// As `Ignored`, and anything may stand below it.
    Open(&'static str),
    /// Nothing but these values is accepted, and they mean what is done anyway; else the advice.
    Only(&'static [&'static str], &'static str),
    /// Decides who may read, how traffic is protected or where data lives, and is not here.
    Refused(&'static str),
    /// As `Refused`, also without a value: naming a storage driver chooses it.
    Driver,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Key {
    pub(in crate::config) path: &'static str,
    pub(in crate::config) fate: Fate,
    pub(in crate::config) owner: Owner,
}

/// Finds the row for the path of a key in a file; items of lists are steps that begin with `[`.
pub(super) fn find(path: &[String]) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.matches(path))
}

impl Key {
    /// The steps of the path.
    pub(in crate::config) fn steps(&self) -> impl Iterator<Item = &'static str> + Clone {
        // `tags[].match` has the steps `tags`, `[]` and `match`.
        self.path.split('.').flat_map(|step| {
            let (name, items) = match step.strip_suffix("[]") {
                Some(name) => (name, Some("[]")),
                None => (step, None),
            };
            std::iter::once(name).chain(items)
        })
    }

    /// Whether the row is for exactly this path.
    pub(super) fn matches(&self, path: &[String]) -> bool {
        let mut steps = self.steps();
        let all = path.iter().all(|name| match steps.next() {
            Some("*") => !name.starts_with('['),
            Some("[]") => name.starts_with('['),
            Some(step) => step == name,
            None => false,
        });
        all && steps.next().is_none()
    }

    /// Whether a value of this key is used, so that it may be suggested.
    pub(in crate::config) fn is_read(&self) -> bool {
        matches!(self.fate, Section | Items | Value | List)
    }
}

const fn reg(path: &'static str, fate: Fate) -> Key {
    let owner = Owner::Registry;
    Key { path, fate, owner }
}

const fn own(path: &'static str, fate: Fate) -> Key {
    let owner = Owner::Millrace;
    Key { path, fate, owner }
}

const NO_PUSH: &str = "a pull-through cache takes no pushes";
const NO_REDIS: &str = "the index is kept in the data folder";
const OWN_HEALTH: &str = "/healthz and /readyz on http.debug.addr are always there";
const CLIENTS_DECIDE: &str = "content is passed on as the upstream sent it";
const HTTP1: &str = "clients of registries speak HTTP/1.1";
const NO_HOOKS: &str = "log lines go to standard error; collect them there";
const NO_REPORTING: &str = "errors are in the log and in the metrics";

const ACME: &str =
    "this version takes certificates from files: http.tls.certificate and http.tls.key";
const CIPHERS: &str = "the cipher suites are those that are safe; take http.tls.ciphersuites away";
const AUTH: &str =
    "users are asked for by auth.htpasswd; or put a proxy that authenticates in front";
const MIDDLEWARE: &str = "take middleware away; content is always served from this node's disk";
const NET: &str = "only tcp listeners are there; take http.net away and set http.addr";
const PREFIX: &str = "clients find the API under /v2/ only; take http.prefix away";
const VERSION: &str = "the only version of the format is 0.1";

/// All keys; sections stand before what is in them.
pub(in crate::config) const KEYS: &[Key] = &[
    reg("version", Only(&["0.1"], VERSION)),
    reg("log", Section),
    reg("log.level", Value),
    reg("log.formatter", Value),
    reg("log.accesslog", Section),
    reg("log.accesslog.disabled", Value),
    reg("log.fields", Open("every line carries its own fields")),
    reg("log.hooks", Open(NO_HOOKS)),
    reg("log.reportcaller", Ignored("every line names its module")),
    reg("loglevel", Value),
    reg("storage", Section),
    reg("storage.filesystem", Section),
    reg("storage.filesystem.rootdirectory", Value),
    reg(
        "storage.filesystem.maxthreads",
        Ignored("the runtime bounds its threads"),
    ),
    reg("storage.azure", Driver),
    reg("storage.gcs", Driver),
    reg("storage.inmemory", Driver),
    reg("storage.oss", Driver),
    reg("storage.s3", Driver),
    reg("storage.s3aws", Driver),
    reg("storage.swift", Driver),
    reg("storage.cache", Ignored(NO_REDIS)),
    reg("storage.cache.blobdescriptor", Value),
    reg("storage.cache.blobdescriptorsize", Value),
    reg("storage.delete", Ignored(NO_PUSH)),
    reg("storage.delete.enabled", Value),
    reg(
        "storage.redirect",
        Ignored("clients are never sent elsewhere"),
    ),
    reg("storage.redirect.disable", Value),
    reg("storage.maintenance", Ignored(NO_PUSH)),
    reg("storage.maintenance.uploadpurging", Section),
    reg("storage.maintenance.uploadpurging.enabled", Value),
    reg("storage.maintenance.uploadpurging.age", Value),
    reg("storage.maintenance.uploadpurging.interval", Value),
    reg("storage.maintenance.uploadpurging.dryrun", Value),
    reg("storage.maintenance.readonly", Section),
    reg("storage.maintenance.readonly.enabled", Value),
    reg("storage.tag", Ignored("tags are answered by the upstream")),
    reg("storage.tag.concurrencylimit", Value),
    reg("auth", Section),
    reg("auth.htpasswd", Section),
    reg("auth.htpasswd.realm", Value),
    reg("auth.htpasswd.path", Value),
    reg("auth.silly", Refused(AUTH)),
    reg("auth.token", Refused(AUTH)),
    reg("middleware", Refused(MIDDLEWARE)),
    reg("reporting", Ignored(NO_REPORTING)),
    reg("reporting.bugsnag", Section),
    reg("reporting.bugsnag.apikey", Value),
    reg("reporting.bugsnag.releasestage", Value),
    reg("reporting.bugsnag.endpoint", Value),
    reg("reporting.newrelic", Section),
    reg("reporting.newrelic.licensekey", Value),
    reg("reporting.newrelic.name", Value),
    reg("reporting.newrelic.verbose", Value),
    reg("http", Section),
    reg("http.addr", Value),
    reg("http.net", Only(&["", "tcp"], NET)),
    reg("http.prefix", Only(&["", "/"], PREFIX)),
    reg(
        "http.host",
        Ignored("links in answers are relative to the request"),
    ),
    reg("http.secret", Ignored(NO_PUSH)),
    reg(
        "http.relativeurls",
        Ignored("links in answers are relative to the request"),
    ),
    reg("http.draintimeout", Value),
    own("http.unavailable_blob", Value),
    own("http.local", Section),
    own("http.local.addr", Value),
    reg("http.tls", Section),
    reg("http.tls.certificate", Value),
    reg("http.tls.key", Value),
    reg("http.tls.clientcas", List),
    reg("http.tls.clientauth", Value),
    reg("http.tls.minimumtls", Value),
    reg("http.tls.ciphersuites", Refused(CIPHERS)),
    reg("http.tls.letsencrypt", Refused(ACME)),
    own("http.tls.allow_plain", Value),
    reg(
        "http.headers",
        Open("the headers of answers are fixed by the registry API"),
    ),
    reg("http.debug", Section),
    reg("http.debug.addr", Value),
    reg("http.debug.prometheus", Section),
    reg("http.debug.prometheus.enabled", Value),
    reg("http.debug.prometheus.path", Value),
    reg("http.http2", Ignored(HTTP1)),
    reg("http.http2.disabled", Value),
    reg("http.h2c", Ignored(HTTP1)),
    reg("http.h2c.enabled", Value),
    reg("notifications", Ignored(NO_PUSH)),
    reg("notifications.events", Section),
    reg("notifications.events.includereferences", Value),
    reg("notifications.endpoints", Open(NO_PUSH)),
    // Version 3 hands this section to its Redis library as it stands.
    reg("redis", Open(NO_REDIS)),
    reg("health", Ignored(OWN_HEALTH)),
    reg("health.storagedriver", Section),
    reg("health.storagedriver.enabled", Value),
    reg("health.storagedriver.interval", Value),
    reg("health.storagedriver.threshold", Value),
    reg("health.file", Items),
    reg("health.file[].file", Value),
    reg("health.file[].interval", Value),
    reg("health.file[].threshold", Value),
    reg("health.http", Items),
    reg("health.http[].uri", Value),
    reg("health.http[].headers", Open(OWN_HEALTH)),
    reg("health.http[].statuscode", Value),
    reg("health.http[].timeout", Value),
    reg("health.http[].interval", Value),
    reg("health.http[].threshold", Value),
    reg("health.tcp", Items),
    reg("health.tcp[].addr", Value),
    reg("health.tcp[].timeout", Value),
    reg("health.tcp[].interval", Value),
    reg("health.tcp[].threshold", Value),
    reg(
        "catalog",
        Ignored("_catalog lists what this node has, in pages"),
    ),
    reg("catalog.maxentries", Value),
    reg("proxy", Section),
    reg("proxy.remoteurl", Value),
    reg("proxy.username", Value),
    reg("proxy.password", Value),
    reg(
        "proxy.ttl",
        Ignored("content stays until its space is needed, see cache.max_size"),
    ),
    reg("proxy.exec", Section),
    reg("proxy.exec.command", Value),
    reg("proxy.exec.lifetime", Value),
    reg("compatibility", Ignored(CLIENTS_DECIDE)),
    reg("compatibility.schema1", Section),
    reg("compatibility.schema1.enabled", Value),
    reg("compatibility.schema1.signingkeyfile", Value),
    reg("compatibility.schema1.trustkey", Value),
    reg("policy", Ignored(NO_PUSH)),
    reg("policy.repository", Section),
    reg("policy.repository.classes", List),
    reg("validation", Ignored(NO_PUSH)),
    reg("validation.enabled", Value),
    reg("validation.disabled", Value),
    reg("validation.manifests", Section),
    reg("validation.manifests.urls", Section),
    reg("validation.manifests.urls.allow", List),
    reg("validation.manifests.urls.deny", List),
    reg("validation.manifests.indexes", Open(NO_PUSH)),
    own("upstreams", Section),
    own("upstreams.*", Section),
    own("upstreams.*.url", Value),
    own("upstreams.*.aliases", List),
    own("upstreams.*.username", Value),
    own("upstreams.*.password", Value),
    own("upstreams.*.password_file", Value),
    own("upstreams.*.exec", Section),
    own("upstreams.*.exec.command", Value),
    own("upstreams.*.exec.lifetime", Value),
    own("upstreams.*.ca", Value),
    own("upstreams.*.plain_http", Value),
    own("upstreams.*.fallback", List),
    own("upstreams.*.timeouts", Section),
    own("upstreams.*.timeouts.connect", Value),
    own("upstreams.*.timeouts.response", Value),
    own("upstreams.*.timeouts.idle", Value),
    own("upstreams.*.max_requests", Value),
    own("upstreams.*.max_downloads", Value),
    own("upstreams.*.redirect_hosts", List),
    own("upstreams.*.token_hosts", List),
    own("upstreams.*.enabled", Value),
    own("upstreams.*.tags", Items),
    own("upstreams.*.tags[].match", Value),
    own("upstreams.*.tags[].policy", Value),
    own("upstreams.*.tags[].ttl", Value),
    own("upstreams.*.access", Items),
    own("upstreams.*.access[].match", Value),
    own("upstreams.*.access[].read", List),
    own("cache", Section),
    own("cache.max_size", Value),
    own("cache.min_free", Value),
    own("cache.revalidate", Value),
    own("cache.stale_slow", Value),
    own("cache.stale_away", Value),
    own("cache.stale_denied", Value),
    own("cache.negative_ttl", Value),
    own("cache.access_ttl", Value),
    own("cache.access_grace", Value),
    own("cache.tags", Items),
    own("cache.tags[].match", Value),
    own("cache.tags[].policy", Value),
    own("cache.tags[].ttl", Value),
    own("cluster", Section),
    own("cluster.listen", Value),
    own("cluster.advertise", Value),
    own("cluster.secret_file", Value),
    own("cluster.secret", Value),
    own("cluster.join", List),
    own("cluster.zone", Value),
    own("cluster.weight", Value),
    own("cluster.replicas", Value),
    own("cluster.deny", List),
    own("cluster.deny_file", Value),
];
