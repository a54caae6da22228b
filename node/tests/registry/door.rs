//! A node's door over a real store, before a fake upstream with a little content.

use std::net::SocketAddr;
use std::sync::Once;

use millrace::pull::{self, Puller};
use millrace::registry::{self, Registry, Running, Terms};
use millrace::store::{self, Store};
use millrace::task::Tasks;
use millrace::upstream::{self, Upstreams};
use millrace_protocol::oci::{Algorithm, Digest, MediaType};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::fake::{Fake, Reply, Seen};

/// Manifest that the tag `v1` names.
pub(crate) const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[]}"#;

/// Media type of that manifest, which nothing but this test knows.
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.example.thing.v1+json";

/// An index of two referrers.
pub(crate) const REFERRERS: &str = concat!(
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":["#,
    r#"{"mediaType":"m","digest":"sha256:a","size":1,"artifactType":"application/x+json"},"#,
    r#"{"mediaType":"m","digest":"sha256:b","size":1,"artifactType":"other"}]}"#
);

/// A node of which only the clients' door is looked at.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) upstream: Fake,
    pub(crate) registry: Registry,
    pub(crate) running: Running,
    _folder: TempDir,
}

/// Opens a door with default settings.
pub(crate) async fn open() -> Door {
    open_with(registry::Config::default()).await
}

/// Opens a door.
pub(crate) async fn open_with(config: registry::Config) -> Door {
    open_on(config, Terms::default()).await
}

/// Opens a door on these terms.
pub(crate) async fn open_on(config: registry::Config, terms: Terms) -> Door {
    open_in(TempDir::new().expect("a folder"), config, terms).await
}

/// Opens a door before a store in `folder`.
pub(crate) async fn open_in(folder: TempDir, config: registry::Config, terms: Terms) -> Door {
    let listener = registry::listen(([127, 0, 0, 1], 0).into()).expect("a free port");
    open_at(listener, folder, config, terms).await
}

/// Opens a door at `listener`, before a store in `folder`.
pub(crate) async fn open_at(
    listener: TcpListener,
    folder: TempDir,
    config: registry::Config,
    terms: Terms,
) -> Door {
    provider();
    let (upstream, tasks) = (Fake::start(answer).await, Tasks::default());
    let upstreams = Upstreams::new(&upstream_config(&upstream), &tasks).expect("sets up");
    let store = store::Config {
        root: folder.path().to_owned(),
        max_size: Some(64 * 1024 * 1024),
        min_free: Some(0),
    };
    let store = Store::open(&store, &tasks).await.expect("opens");
    let puller = Puller::new(pull::Config::default(), store, None, &tasks);
    let registry = Registry::new(config, puller, upstreams);
    let address = listener.local_addr().expect("bound");
    let running = registry.serve(vec![registry::Door::new(listener, terms)]);
    Door {
        address,
        upstream,
        registry,
        running,
        _folder: folder,
    }
}

/// Installs the crypto of this process, once.
pub(crate) fn provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        rustls::crypto::ring::default_provider()
            .install_default()
            .expect("the first provider");
    });
}

fn upstream_config(fake: &Fake) -> upstream::Config {
    let port = fake.port();
    let entries = format!(
        "{{docker.io: {{url: 'http://127.0.0.1:{port}', aliases: [dockerhub]}},
           'registry.corp:5000': {{url: 'http://127.0.0.1:{port}', aliases: [corp]}},
           gcr.io: {{url: 'http://127.0.0.1:{port}'}}}}"
    );
    let entries = serde_saphyr::from_str(&entries).expect("valid YAML");
    upstream::Config::with_builtins(entries, None).expect("valid configuration")
}

/// 300 KiB that no compression or rounding leaves as they are.
pub(crate) fn blob() -> Vec<u8> {
    (0..300 * 1024_u32)
        .map(|i| (i.wrapping_mul(i) % 251) as u8)
        .collect()
}

/// A blob of which most goes out without being read into memory.
pub(crate) fn large_blob() -> Vec<u8> {
    (0..5 * 1024 * 1024 + 77_u32)
        .map(|i| (i.wrapping_mul(i) % 251) as u8)
        .collect()
}

pub(crate) fn digest_of(content: impl AsRef<[u8]>) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_ref())
}

/// What the upstream has. The last part of a repository's name says how it behaves.
fn answer(request: &Seen) -> Reply {
    let path = request.target.split('?').next().unwrap_or_default();
    let (name, what) = path.rsplit_once('/').unwrap_or_default();
    if name.contains("/private/") {
        return Reply::new(403, "");
    }
    if name.contains("/limited/") {
        return Reply::new(429, "").header("retry-after", "3600");
    }
    if name.contains("/broken/") {
        return Reply::new(500, "");
    }
    if name.ends_with("/tags") {
        return Reply::new(200, r#"{"name":"x","tags":["c","a","b"]}"#);
    }
    if name.ends_with("/referrers") {
        return Reply::new(200, REFERRERS).header("content-type", MediaType::OCI_INDEX);
    }
    if name.ends_with("/manifests") && (what == "v1" || what == digest_of(MANIFEST).to_string()) {
        return Reply::new(200, MANIFEST)
            .header("content-type", MANIFEST_TYPE)
            .header("docker-content-digest", digest_of(MANIFEST).to_string());
    }
    if name.ends_with("/blobs") {
        return answer_blob(request, name, what);
    }
    Reply::new(404, "")
}

fn answer_blob(request: &Seen, name: &str, digest: &str) -> Reply {
    let content = [blob(), large_blob(), Vec::new()]
        .into_iter()
        .find(|content| digest_of(content).to_string() == digest);
    let Some(content) = content else {
        return Reply::new(404, "");
    };
    let length = content.len();
    if name.contains("/cut/") {
        // Every attempt to resume ends in the same way.
        return Reply::new(200, &content[..length / 2]).stating(Some(length));
    }
    if name.contains("/stalled/") {
        return Reply::new(200, &content[..length / 2]).stalling(length);
    }
    if name.contains("/sizeless/") {
        let mut reply = Reply::new(200, content).stalling(0);
        reply.length = None;
        return reply;
    }
    if request.header("range") == "bytes=0-0" && length > 0 {
        let range = format!("bytes 0-0/{length}");
        return Reply::new(206, &content[..1]).header("content-range", range);
    }
    Reply::new(200, content)
}
