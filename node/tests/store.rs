//! The store through its public door: commits, crashes, eviction, tags, a lost index.

#[path = "store/damage.rs"]
mod damage;
#[path = "store/index.rs"]
mod index;
#[path = "store/parts.rs"]
mod parts;
#[path = "store/room.rs"]
mod room;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use millrace::store::{Config, Provenance, Shelf, Sidecar, Store, StoreError, TagName, TagRecord};
use millrace::task::Tasks;
use millrace_protocol::oci::{Algorithm, Digest, MediaType};
use rangemap::RangeSet;

fn provenance() -> Provenance {
    Provenance {
        upstream: "docker.io".into(),
        repository: "library/alpine".parse().expect("valid name"),
        credential: "anonymous".into(),
    }
}

fn config(root: &Path) -> Config {
    Config {
        min_free: Some(0),
        max_size: Some(1 << 30),
        ..Config::new(root)
    }
}

async fn open(root: &Path) -> (Store, Tasks) {
    open_with(&config(root)).await
}

async fn open_with(config: &Config) -> (Store, Tasks) {
    let tasks = Tasks::default();
    let store = Store::open(config, &tasks).await.expect("store opens");
    eventually("the index to be ready", || store.status().index_ready).await;
    (store, tasks)
}

async fn close(store: Store, tasks: Tasks) {
    drop(store);
    assert_eq!(
        tasks.stop(Duration::from_secs(10)).await,
        0,
        "background work ends"
    );
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain for {what}");
}

fn content(seed: u8, length: usize) -> (Digest, Bytes) {
    let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8 ^ seed).collect();
    (Digest::of(Algorithm::Sha256, &bytes), bytes.into())
}

async fn put(store: &Store, seed: u8, length: usize) -> Digest {
    let (digest, bytes) = content(seed, length);
    let mut part = store.part(&digest).await.expect("part");
    part.reserve(length as u64).await.expect("room");
    part.writer().write(0, &[bytes]).expect("written");
    part.commit(length as u64, Sidecar::new(None, provenance()))
        .await
        .expect("committed");
    digest
}

fn ranges(range: std::ops::Range<u64>) -> RangeSet<u64> {
    std::iter::once(range).collect()
}

async fn read_all(store: &Store, digest: &Digest) -> Option<Vec<u8>> {
    let blob = store.blob(digest).await.expect("store works")?;
    let mut content = Vec::new();
    while (content.len() as u64) < blob.size() {
        let bytes = blob.reader().read(content.len() as u64, blob.size()).await;
        content.extend_from_slice(&bytes.expect("readable"));
    }
    Some(content)
}

async fn holds(store: &Store, digest: &Digest) -> bool {
    store
        .missing(vec![*digest])
        .await
        .expect("store works")
        .is_empty()
}

#[tokio::test]
async fn committed_content_is_read_back_after_a_restart() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, tasks) = open(folder.path()).await;
    let digest = put(&store, 1, 700_000).await;
    close(store, tasks).await;
    let (store, _tasks) = open(folder.path()).await;
    assert_eq!(
        read_all(&store, &digest).await,
        Some(content(1, 700_000).1.to_vec())
    );
    assert_eq!(
        (store.status().blobs, store.status().blob_bytes),
        (1, 700_000)
    );
}

fn blob_path(root: &Path, digest: &Digest) -> std::path::PathBuf {
    let hex = digest.hex();
    root.join(format!("blobs/sha256/{}/{hex}", &hex[..2]))
}

#[tokio::test]
async fn content_fetched_as_a_blob_is_no_manifest_until_it_is_fetched_as_one() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, _tasks) = open(folder.path()).await;
    let digest = put(&store, 1, 10).await;
    assert_eq!(store.manifest(&digest).await.expect("store works"), None);
    let sidecar = Sidecar::new(Some(MediaType::new("a/b")), provenance());
    store
        .put_manifest(&digest, content(1, 10).1, sidecar)
        .await
        .expect("stored");
    assert!(
        store
            .manifest(&digest)
            .await
            .expect("store works")
            .is_some()
    );
    assert_eq!(store.status().blobs, 1, "it is counted once");
}

fn tag_name() -> TagName {
    TagName {
        upstream: "docker.io".into(),
        repository: "library/alpine".parse().expect("valid name"),
        tag: "latest".parse().expect("valid tag"),
    }
}

async fn put_tagged(store: &Store, bytes: &'static [u8], at: u64) -> Digest {
    let digest = Digest::of(Algorithm::Sha256, bytes);
    let sidecar = Sidecar::new(Some(MediaType::new("a/b")), provenance());
    store
        .put_manifest(&digest, bytes.into(), sidecar)
        .await
        .expect("stored");
    let record = TagRecord {
        digest,
        resolved_at: at,
        checked_at: at,
    };
    store
        .put_tag(tag_name(), "anonymous".into(), record)
        .await
        .expect("recorded");
    digest
}

#[tokio::test]
async fn two_nodes_cannot_share_a_data_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let (_store, _tasks) = open(folder.path()).await;
    let second = Store::open(&config(folder.path()), &Tasks::default()).await;
    assert!(matches!(second, Err(StoreError::InUse { .. })));
}

#[tokio::test]
async fn a_shelf_that_cannot_be_listed_is_passed_over() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, _tasks) = open(folder.path()).await;
    let digest = put(&store, 1, 10).await;
    let shelf = blob_path(folder.path(), &content(2, 10).0);
    let shelf = shelf.parent().expect("a folder");
    // It leads to itself.
    std::os::unix::fs::symlink(shelf, shelf).expect("linked");
    assert_eq!(listed(&store).await, [digest]);
}

/// Everything that the shelves hold.
async fn listed(store: &Store) -> Vec<Digest> {
    let mut listed = Vec::new();
    for shelf in Shelf::all() {
        listed.extend(store.held(shelf).await.expect("listed"));
    }
    listed.sort();
    listed
}
