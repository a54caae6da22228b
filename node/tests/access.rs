//! Who may read what: rules, links between content and repositories, revocation and grace.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "the upstreams' tests use more of it")]
mod fake;
#[path = "registry/wire.rs"]
#[expect(dead_code, reason = "the registry's tests use more of it")]
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use fake::{Fake, Reply as Answer, Seen};
use millrace::pull::{self, Puller};
use millrace::registry::{self, Admission, Door, Htpasswd, Registry, Running, Terms};
use millrace::store::{self, Store};
use millrace::task::Tasks;
use millrace::upstream::{self, AccessRule, TagPolicy, TagRule, Upstreams};
use millrace_protocol::oci::{Algorithm, Digest, MediaType};
use tempfile::TempDir;
use tokio::sync::watch;
use wire::{Reply, get, send};

const SOON: Duration = Duration::from_secs(20);

const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[]}"#;

/// A blob that is beyond what is held back until the whole is verified.
fn blob() -> Vec<u8> {
    (0..300_000_u32)
        .map(|number| number.to_le_bytes()[0] ^ 7)
        .collect()
}

/// A blob of which a `GET` gets no answer.
const MUTE: &str = "mute";

fn digest_of(content: impl AsRef<[u8]>) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_ref())
}

/// What the private upstream says now: 200, or a status that it gives to everything, or nothing.
type Mood = Arc<AtomicU16>;

/// The mood in which it says nothing.
const SILENT: u16 = 0;

/// A registry whose `team-a`, `team-b` and `shared` have the content; all of it needs a password.
fn private(mood: Mood) -> impl Fn(&Seen) -> Answer {
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
struct Node {
    public: SocketAddr,
    local: SocketAddr,
    corp: Fake,
    hub: Fake,
    mood: Mood,
    folder: TempDir,
    tasks: Tasks,
    _running: Running,
}

#[derive(Clone, Copy)]
struct Times {
    ttl: Duration,
    grace: Duration,
    /// Lifetime of tags.
    tags: Duration,
    /// How long a request waits for the upstream.
    budget: Duration,
}

const DEFAULT: Times = Times {
    ttl: Duration::from_secs(600),
    grace: Duration::from_secs(3600),
    tags: Duration::from_secs(60),
    budget: Duration::from_secs(20),
};

/// Every answer is asked for anew.
const AT_ONCE: Times = Times {
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

async fn start(times: Times) -> Node {
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

async fn start_in(folder: TempDir, times: Times, (corp, hub, mood): (Fake, Fake, Mood)) -> Node {
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
async fn start_again(node: Node, times: Times) -> Node {
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

const ANN: &str = "Authorization: Basic YW5uOmFubg==";
const BOB: &str = "Authorization: Basic Ym9iOmJvYg==";

fn blob_url(repository: &str) -> String {
    format!("/v2/{repository}/blobs/{}", digest_of(blob()))
}

fn manifest_url(repository: &str) -> String {
    format!("/v2/{repository}/manifests/{}", digest_of(MANIFEST))
}

impl Node {
    async fn status(&self, url: &str, who: &str) -> u16 {
        get(self.public, url, &[who]).await.status
    }

    /// Pulls manifest and blob of a repository into the store.
    async fn pull(&self, repository: &str, who: &str) {
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

    fn probes(&self) -> usize {
        let is_probe = |seen: &&Seen| {
            seen.header("range") == "bytes=0-0" && !seen.header("authorization").is_empty()
        };
        self.corp.seen("/blobs/").iter().filter(is_probe).count()
    }
}

fn told(reply: &Reply) -> (u16, String) {
    (reply.status, reply.text().to_owned())
}

#[tokio::test]
async fn a_rule_keeps_out_and_does_not_tell_what_exists() {
    let node = start(DEFAULT).await;
    node.pull("corp/team-a/app", ANN).await;
    assert_eq!(
        get(node.local, &blob_url("corp/team-a/app"), &[])
            .await
            .status,
        200
    );
    assert_eq!(
        get(node.local, &blob_url("corp/team-b/app"), &[])
            .await
            .status,
        404
    );
    let asked = node.corp.seen("").len();
    for (there, not_there) in [
        (
            manifest_url("corp/team-a/app"),
            manifest_url("corp/team-a/none"),
        ),
        (blob_url("corp/team-a/app"), blob_url("corp/team-a/none")),
        (
            "/v2/corp/team-a/app/manifests/v1".to_owned(),
            "/v2/corp/team-a/app/manifests/none".to_owned(),
        ),
        (
            "/v2/corp/team-a/app/tags/list".to_owned(),
            "/v2/corp/team-a/none/tags/list".to_owned(),
        ),
        (
            manifest_url("corp/team-a/app").replace("manifests", "referrers"),
            manifest_url("corp/team-a/none").replace("manifests", "referrers"),
        ),
    ] {
        for method in ["GET", "HEAD"] {
            let one = send(node.public, method, &there, &[BOB]).await;
            let other = send(node.public, method, &not_there, &[BOB]).await;
            assert_eq!(one.status, 404, "{there}");
            assert_eq!(
                (one.head(), told(&one)),
                (other.head(), told(&other)),
                "{there}"
            );
        }
    }
    assert_eq!(
        node.corp.seen("").len(),
        asked,
        "who may not read made the node ask"
    );
    let catalog = async |who| {
        get(node.public, "/v2/_catalog", &[who])
            .await
            .text()
            .to_owned()
    };
    assert!(catalog(ANN).await.contains("team-a/app"));
    assert_eq!(catalog(BOB).await, r#"{"repositories":[]}"#);
}

#[tokio::test]
async fn content_with_credentials_is_for_the_authenticated_and_this_host() {
    let node = start(DEFAULT).await;
    assert_eq!(node.status(&blob_url("corp/shared/app"), BOB).await, 200);
    assert_eq!(
        get(node.local, &blob_url("corp/shared/app"), &[])
            .await
            .status,
        200
    );
    assert_eq!(
        get(node.public, &blob_url("corp/shared/app"), &[])
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn a_digest_is_no_key_to_another_repository() {
    let node = start(DEFAULT).await;
    node.pull("corp/team-a/app", ANN).await;
    // The repository of another registry, and one of the same that does not have it.
    for repository in ["open/other", "corp/other/app"] {
        for url in [blob_url(repository), manifest_url(repository)] {
            assert_eq!(node.status(&url, BOB).await, 404, "{url}");
            assert_eq!(
                send(node.public, "HEAD", &url, &[BOB]).await.status,
                404,
                "{url}"
            );
        }
    }
    // One that has it: the upstream says so once, by one byte, and that is kept.
    let before = node.probes();
    for _ in 0..3 {
        assert_eq!(node.status(&blob_url("corp/team-b/app"), BOB).await, 200);
        assert_eq!(
            node.status(&manifest_url("corp/team-b/app"), BOB).await,
            200
        );
    }
    assert_eq!(node.probes(), before + 1);
}

#[tokio::test]
async fn content_that_is_public_somewhere_is_for_everybody() {
    let node = start(DEFAULT).await;
    node.pull("open/app", ANN).await;
    let asked = (node.hub.seen("").len(), node.corp.seen("").len());
    assert_eq!(node.status(&blob_url("corp/team-b/app"), BOB).await, 200);
    assert_eq!(node.status(&blob_url("open/other"), BOB).await, 200);
    assert_eq!((node.hub.seen("").len(), node.corp.seen("").len()), asked);
}

#[tokio::test]
async fn a_blob_on_its_way_is_not_for_everybody_either() {
    let node = start(DEFAULT).await;
    // It stalls, so that it stays on its way.
    let url = blob_url("corp/team-a/stalled");
    let mut pulling = tokio::net::TcpStream::connect(node.public)
        .await
        .expect("connects");
    let request = wire::head("GET", &url, &[ANN], "close");
    tokio::io::AsyncWriteExt::write_all(&mut pulling, request.as_bytes())
        .await
        .expect("sent");
    assert_eq!(wire::read_head(&mut pulling).await.status, 200);
    for method in ["GET", "HEAD"] {
        let reply = send(node.public, method, &blob_url("open/other"), &[BOB]).await;
        assert_eq!(reply.status, 404, "{method}");
        let reply = send(node.public, method, &blob_url("corp/other/app"), &[BOB]).await;
        assert_eq!(reply.status, 404, "{method}");
    }
}

#[tokio::test]
async fn a_question_that_has_no_answer_yet_confirms_nothing() {
    let node = start(DEFAULT).await;
    node.pull("corp/team-b/app", BOB).await;
    let manifest = manifest_url("corp/team-a/app");
    assert_eq!(node.status(&manifest, ANN).await, 200);
    node.mood.store(403, Ordering::Relaxed);
    assert_eq!(node.status(&blob_url("corp/team-a/app"), ANN).await, 404);
    let mute = format!("/v2/corp/team-a/app/blobs/{}", digest_of(MUTE));
    let asking = async {
        let begun = async {
            while node.corp.seen(&digest_of(MUTE).to_string()).is_empty() {
                tokio::task::yield_now().await;
            }
            send(node.public, "HEAD", &mute, &[ANN]).await.status
        };
        tokio::select! {
            reply = get(node.public, &mute, &[ANN]) => panic!("answered {}", reply.status),
            status = begun => status,
        }
    };
    let status = tokio::time::timeout(SOON, asking).await.expect("answered");
    assert_eq!(status, 404);
    assert_eq!(node.status(&manifest, ANN).await, 404, "it was denied");
}

/// An answer out of `team-a` is on its way when something else there is denied; then it comes.
async fn denied_behind(reference: &str, is_known: bool) {
    let held = format!("team-a/app/manifests/{reference}");
    let (open, gate) = watch::channel(is_known);
    let mood = Mood::new(AtomicU16::new(200));
    let (answers, what) = (private(Arc::clone(&mood)), held.clone());
    let corp = Fake::start(move |request| {
        let is_held =
            request.target.ends_with(&what) && !request.header("authorization").is_empty();
        match is_held {
            true => answers(request).after(gate.clone()),
            false => answers(request),
        }
    });
    let hub = Fake::start(|_| Answer::new(404, ""));
    let servers = (corp.await, hub.await, mood);
    let node = start_in(TempDir::new().expect("a folder"), DEFAULT, servers).await;
    assert_eq!(node.status(&blob_url("corp/team-b/app"), BOB).await, 200);
    if is_known {
        assert_eq!(
            node.status(&manifest_url("corp/team-a/app"), ANN).await,
            200
        );
    }
    open.send_replace(false);
    let url = format!("/v2/corp/{held}");
    let denied = async {
        let is_asked = |seen: &Seen| !seen.header("authorization").is_empty();
        while !node.corp.seen(&held).iter().any(is_asked) {
            tokio::task::yield_now().await;
        }
        node.mood.store(403, Ordering::Relaxed);
        let status = node.status(&blob_url("corp/team-a/app"), ANN).await;
        open.send_replace(true);
        status
    };
    let both = async { tokio::join!(get(node.public, &url, &[ANN]), denied) };
    let (_, status) = tokio::time::timeout(SOON, both).await.expect("answered");
    assert_eq!(status, 404);
    let manifest = manifest_url("corp/team-a/app");
    assert_eq!(node.status(&manifest, ANN).await, 404, "{reference}");
}

#[tokio::test]
async fn an_answer_to_an_earlier_question_does_not_undo_a_denial() {
    denied_behind(&digest_of(MANIFEST).to_string(), false).await;
    denied_behind("v1", true).await;
}

#[tokio::test]
async fn what_the_upstream_revokes_is_revoked_here_and_an_outage_does_not_bring_it_back() {
    for refusal in [401, 403, 404] {
        let node = start(AT_ONCE).await;
        node.pull("corp/team-a/app", ANN).await;
        let urls = [blob_url("corp/team-a/app"), manifest_url("corp/team-a/app")];
        node.mood.store(refusal, Ordering::Relaxed);
        for url in &urls {
            assert_eq!(node.status(url, ANN).await, 404, "{refusal} {url}");
        }
        node.mood.store(500, Ordering::Relaxed);
        for url in &urls {
            assert_ne!(node.status(url, ANN).await, 200, "{refusal} {url}");
        }
        node.mood.store(200, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn the_upstreams_word_is_believed_for_a_while() {
    let node = start(DEFAULT).await;
    node.pull("corp/team-a/app", ANN).await;
    let asked = node.corp.seen("").len();
    node.mood.store(403, Ordering::Relaxed);
    assert_eq!(node.status(&blob_url("corp/team-a/app"), ANN).await, 200);
    assert_eq!(node.corp.seen("").len(), asked);
}

#[tokio::test]
async fn a_tag_that_was_checked_confirms_its_repository_and_no_other() {
    let node = start(DEFAULT).await;
    node.pull("corp/team-a/app", ANN).await;
    node.pull("corp/team-b/app", BOB).await;
    // A restart forgets what was confirmed.
    node.tasks.stop(SOON).await;
    let times = Times {
        tags: Duration::ZERO,
        ..DEFAULT
    };
    let node = start_again(node, times).await;
    let tag = "/v2/corp/team-a/app/manifests/v1";
    let before = node.corp.seen("").len();
    assert_eq!(node.status(tag, ANN).await, 200);
    let asked = node.corp.seen("").split_off(before);
    // The first is asked for its password.
    let asked: Vec<&str> = asked.iter().map(|seen| seen.target.as_str()).collect();
    assert!(
        asked.iter().all(|target| target.ends_with("/v1")),
        "{asked:?}"
    );
    let before = node.corp.seen("").len();
    assert_eq!(node.status(&blob_url("corp/team-a/app"), ANN).await, 200);
    assert_eq!(node.corp.seen("").len(), before, "it was confirmed");
    let probes = node.probes();
    assert_eq!(node.status(&blob_url("corp/team-b/app"), BOB).await, 200);
    assert_eq!(node.probes(), probes + 1);
}

#[tokio::test]
async fn while_the_upstream_is_away_the_grace_applies_and_then_ends() {
    let grace = |grace| Times { grace, ..AT_ONCE };
    for (times, status) in [(AT_ONCE, 200), (grace(Duration::ZERO), 503)] {
        let node = start(times).await;
        node.pull("corp/team-a/app", ANN).await;
        node.mood.store(500, Ordering::Relaxed);
        assert_eq!(node.status(&blob_url("corp/team-a/app"), ANN).await, status);
        assert_eq!(node.status(&blob_url("corp/team-a/app"), ANN).await, status);
    }
}

#[tokio::test]
async fn all_steps_of_a_request_together_take_no_longer_than_a_client_waits() {
    const BUDGET: Duration = Duration::from_secs(4);
    let times = Times {
        tags: Duration::ZERO,
        budget: BUDGET,
        ..AT_ONCE
    };
    let grace = Duration::ZERO;
    for (times, status) in [(times, 200), (Times { grace, ..times }, 503)] {
        let node = start(times).await;
        node.pull("corp/team-a/app", ANN).await;
        let tag = "/v2/corp/team-a/app/manifests/v1";
        assert_eq!(node.status(tag, ANN).await, 200);
        node.mood.store(SILENT, Ordering::Relaxed);
        // What the tag points to, then whether the repository may still be read.
        let (blob, asked) = (blob_url("corp/team-a/app"), Instant::now());
        let answers = tokio::join!(node.status(tag, ANN), node.status(&blob, ANN));
        assert_eq!(answers, (status, status));
        let waited = asked.elapsed();
        assert!(waited < BUDGET * 3 / 2, "{waited:?}");
    }
}

#[tokio::test]
async fn content_without_provenance_is_asked_for_where_access_is_restricted() {
    let node = start(DEFAULT).await;
    node.pull("open/app", ANN).await;
    node.tasks.stop(SOON).await;
    let mut lost = 0;
    for file in files(node.folder.path()) {
        if file
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            std::fs::remove_file(&file).expect("removed");
            lost += 1;
        }
    }
    assert!(lost > 0, "no sidecar was found");
    let node = start_again(node, DEFAULT).await;
    assert_eq!(node.status(&blob_url("open/other"), BOB).await, 404);
    let asked = node.hub.seen("/open/app/blobs/").len();
    assert_eq!(node.status(&blob_url("open/app"), BOB).await, 200);
    assert_eq!(
        node.hub.seen("/open/app/blobs/").len(),
        asked + 1,
        "asked once"
    );
    assert_eq!(
        node.status(&blob_url("open/other"), BOB).await,
        200,
        "now it is known to be public"
    );
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
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
