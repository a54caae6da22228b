//! A node whose access rules are tested, before a private registry and a public one, and what it is
//! asked for.
//!
//! What it must answer is said by the tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::fake::{Fake, Reply as Answer, Seen};
use crate::wire::get;
use millrace::pull::{self, Puller};
use millrace::registry::{self, Admission, Door, Htpasswd, Registry, Running, Terms};
use millrace::store::{self, Store};
use millrace::task::Tasks;
use millrace::upstream::{self, AccessRule, TagPolicy, TagRule, Upstreams};
use millrace_protocol::oci::{Algorithm, Digest, MediaType};
use tempfile::TempDir;

pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[]}"#;

/// A blob that is beyond what is held back until the whole is verified.
pub(crate) fn blob() -> Vec<u8> {
    (0..300_000_u32)
        .map(|number| number.to_le_bytes()[0] ^ 7)
        .collect()
}

/// A blob of which a `GET` gets no answer.
pub(crate) const MUTE: &str = "mute";

pub(crate) fn digest_of(content: impl AsRef<[u8]>) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_ref())
}

/// What the private upstream says now: 200, or a status that it gives to everything, or nothing.
pub(crate) type Mood = Arc<AtomicU16>;

/// The mood in which it says nothing.
pub(crate) const SILENT: u16 = 0;

/// A registry whose `team-a`, `team-b` and `shared` have the content; all of it needs a password.
pub(crate) fn private(mood: Mood) -> impl Fn(&Seen) -> Answer {
    move |request| {
        if request.header("authorization").is_empty() {
            return Answer::new(401, "").header("www-authenticate", "Basic realm=\"x\"");
        }
        let is_mute = request.target.contains(&digest_of(MUTE).to_string());
        if is_mute && request.header("range") != "bytes=0-0" {
            return Answer::silence();
        }
        match mood.load(Ordering::Relaxed) {
            200 if ["team-a", "team-b", "shared"]
                .iter()
                .any(|team| request.target.contains(team)) =>
            {
                content(request)
            }
            200 => Answer::new(404, ""),
            SILENT => Answer::silence(),
            status => Answer::new(status, ""),
        }
    }
}

fn content(request: &Seen) -> Answer {
    let path = request.target.split('?').next().unwrap_or_default();
    let (name, what) = path.rsplit_once('/').unwrap_or_default();
    if name.ends_with("/tags") {
        return Answer::new(200, r#"{"name":"x","tags":["v1"]}"#);
    }
    if what == "v1" || what == digest_of(MANIFEST).to_string() {
        return Answer::new(200, MANIFEST)
            .header("content-type", MediaType::OCI_MANIFEST)
            .header("docker-content-digest", digest_of(MANIFEST).to_string());
    }
    if what != digest_of(blob()).to_string() {
        return Answer::new(404, "");
    }
    if request.header("range") == "bytes=0-0" {
        return Answer::new(206, &blob()[..1])
            .header("content-range", format!("bytes 0-0/{}", blob().len()));
    }
    if name.contains("stalled") {
        return Answer::new(200, &blob()[..200_000]).stalling(blob().len());
    }
    Answer::new(200, blob())
}

/// A node before a private registry, `corp`, and a public one, `hub`, that has `open/app` and
/// nothing else.
pub(crate) struct Node {
    pub(crate) public: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) corp: Fake,
    pub(crate) hub: Fake,
    pub(crate) mood: Mood,
    pub(crate) folder: TempDir,
    pub(crate) tasks: Tasks,
    _running: Running,
}

#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) ttl: Duration,
    pub(crate) grace: Duration,
    /// Lifetime of tags.
    pub(crate) tags: Duration,
    /// How long a request waits for the upstream.
    pub(crate) budget: Duration,
}

pub(crate) const DEFAULT: Times = Times {
    ttl: Duration::from_secs(600),
    grace: Duration::from_secs(3600),
    tags: Duration::from_secs(60),
    budget: Duration::from_secs(20),
};

/// Every answer is asked for anew.
pub(crate) const AT_ONCE: Times = Times {
    ttl: Duration::ZERO,
    ..DEFAULT
};

fn rules() -> Vec<AccessRule> {
    let rule = |pattern: &str, read: &[&str]| AccessRule {
        pattern: pattern.to_owned(),
        read: read
            .iter()
            .map(|reader| reader.parse().expect("a reader"))
            .collect(),
    };
    vec![
        rule("team-a/*", &["ann", "local"]),
        rule("team-b/*", &["bob"]),
    ]
}

pub(crate) async fn start(times: Times) -> Node {
    let mood = Mood::new(AtomicU16::new(200));
    let corp = Fake::start(private(Arc::clone(&mood))).await;
    let hub = Fake::start(|request| match request.target.contains("open/app") {
        true => content(request),
        false => Answer::new(404, ""),
    })
    .await;
    let folder = TempDir::new().expect("a folder");
    start_in(folder, times, (corp, hub, mood)).await
}

pub(crate) async fn start_in(
    folder: TempDir,
    times: Times,
    (corp, hub, mood): (Fake, Fake, Mood),
) -> Node {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let entries = format!(
        "{{corp: {{url: 'http://127.0.0.1:{}', username: ci, password: node}}, docker.io: {{url: 'http://127.0.0.1:{}'}}}}",
        corp.port(),
        hub.port(),
    );
    let entries = serde_saphyr::from_str(&entries).expect("valid YAML");
    let config = upstream::Config::with_builtins(entries, None).expect("valid");
    let tasks = Tasks::default();
    let upstreams = Upstreams::new(&config, &tasks).expect("sets up");
    let store = store::Config {
        root: folder.path().join("data"),
        max_size: Some(64 * 1024 * 1024),
        min_free: Some(0),
    };
    let store = Store::open(&store, &tasks).await.expect("opens");
    let config = pull::Config {
        access: [("corp".to_owned(), rules())].into(),
        has_credentials: true,
        access_ttl: times.ttl,
        access_grace: times.grace,
        default_ttl: times.tags,
        tags: vec![TagRule {
            pattern: "*".to_owned(),
            policy: TagPolicy::Ttl,
            ttl: None,
        }],
        // Here a check is waited for as long as may be.
        revalidate: times.budget,
        header_budget: times.budget,
        negative_ttl: Duration::ZERO,
        ..pull::Config::default()
    };
    let puller = Puller::new(config, store, None, &tasks);
    let registry = Registry::new(registry::Config::default(), puller, upstreams);
    let bind = || registry::listen(([127, 0, 0, 1], 0).into()).expect("a free port");
    let (public, local) = (bind(), bind());
    let address = |listener: &tokio::net::TcpListener| listener.local_addr().expect("bound");
    let (public_address, local_address) = (address(&public), address(&local));
    let terms = Terms {
        admission: Admission {
            htpasswd: Some(users(&folder)),
            ..Admission::default()
        },
        ..Terms::default()
    };
    let local_terms = Terms {
        is_local: true,
        ..Terms::default()
    };
    let running = registry.serve(vec![
        Door::new(public, terms),
        Door::new(local, local_terms),
    ]);
    Node {
        public: public_address,
        local: local_address,
        corp,
        hub,
        mood,
        folder,
        tasks,
        _running: running,
    }
}

/// Starts a node that has stopped again, with what it had on disk.
pub(crate) async fn start_again(node: Node, times: Times) -> Node {
    let Node {
        folder,
        corp,
        hub,
        mood,
        ..
    } = node;
    // The lock of the data folder ends with the last handle.
    let copy = TempDir::new().expect("a folder");
    for file in files(folder.path()) {
        let relative = file.strip_prefix(folder.path()).expect("below");
        let target = copy.path().join(relative);
        std::fs::create_dir_all(target.parent().expect("a folder")).expect("made");
        std::fs::copy(&file, target).expect("copied");
    }
    start_in(copy, times, (corp, hub, mood)).await
}

fn users(folder: &TempDir) -> Htpasswd {
    let path = folder.path().join("htpasswd");
    let lines =
        ["ann", "bob"].map(|name| format!("{name}:{}\n", bcrypt::hash(name, 4).expect("hashed")));
    std::fs::write(&path, lines.concat()).expect("written");
    Htpasswd::load("x".to_owned(), path).expect("loads")
}

pub(crate) const ANN: &str = "Authorization: Basic YW5uOmFubg==";
pub(crate) const BOB: &str = "Authorization: Basic Ym9iOmJvYg==";

pub(crate) fn blob_url(repository: &str) -> String {
    format!("/v2/{repository}/blobs/{}", digest_of(blob()))
}

pub(crate) fn manifest_url(repository: &str) -> String {
    format!("/v2/{repository}/manifests/{}", digest_of(MANIFEST))
}

impl Node {
    pub(crate) async fn status(&self, url: &str, who: &str) -> u16 {
        get(self.public, url, &[who]).await.status
    }

    /// Pulls manifest and blob of a repository into the store.
    pub(crate) async fn pull(&self, repository: &str, who: &str) {
        let urls = [manifest_url(repository), blob_url(repository)];
        for url in urls {
            let pulling = async {
                while get(self.public, &url, &[who])
                    .await
                    .header("x-millrace-source")
                    != "local"
                {}
            };
            tokio::time::timeout(SOON, pulling).await.expect("stored");
        }
    }

    pub(crate) fn probes(&self) -> usize {
        let is_probe = |seen: &&Seen| {
            seen.header("range") == "bytes=0-0" && !seen.header("authorization").is_empty()
        };
        self.corp.seen("/blobs/").iter().filter(is_probe).count()
    }
}

pub(crate) fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}
