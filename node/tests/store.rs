//! The store through its public door: commits, crashes, eviction, tags, a lost index.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use millrace::store::{
    Change, Config, Missed, Provenance, Shelf, Sidecar, Store, StoreError, TagName, TagRecord,
};
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

#[tokio::test]
async fn more_pieces_than_one_call_takes_are_written_whole() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, _tasks) = open(folder.path()).await;
    let (digest, bytes) = content(3, 20_000);
    let (first, rest) = (bytes.slice(..7), bytes.slice(7..));
    let mut pieces = vec![Bytes::new()];
    for start in (0..rest.len()).step_by(6) {
        pieces.push(rest.slice(start..rest.len().min(start + 6)));
        pieces.push(Bytes::new());
    }
    let part = store.part(&digest).await.expect("part");
    part.writer().write(0, &[first]).expect("written");
    part.writer().write(7, &pieces).expect("written");
    part.commit(20_000, Sidecar::new(None, provenance()))
        .await
        .expect("committed");
    assert_eq!(read_all(&store, &digest).await, Some(bytes.to_vec()));
}

#[tokio::test]
async fn a_part_that_is_dropped_leaves_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, _tasks) = open(folder.path()).await;
    let (digest, bytes) = content(2, 1_000);
    let mut part = store.part(&digest).await.expect("part");
    part.reserve(1_000).await.expect("room");
    part.writer().write(0, &[bytes]).expect("written");
    assert_eq!(store.status().growing_bytes, 1_000);
    drop(part);
    assert!(!holds(&store, &digest).await);
    assert_eq!(store.status().growing_bytes, 0);
    assert_eq!(
        fs::read_dir(folder.path().join("parts"))
            .expect("folder")
            .count(),
        0
    );
}

#[tokio::test]
async fn what_a_crash_left_half_written_is_gone_after_the_start() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, tasks) = open(folder.path()).await;
    close(store, tasks).await;
    let (digest, bytes) = content(3, 1_000);
    let part = folder.path().join(format!("parts/sha256-{}", digest.hex()));
    fs::write(&part, &bytes[..500]).expect("written");
    let (store, _tasks) = open(folder.path()).await;
    assert!(!part.exists());
    assert!(!holds(&store, &digest).await);
}

#[tokio::test]
async fn what_was_committed_right_before_a_crash_is_counted_and_goes_in_its_turn() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, tasks) = open(folder.path()).await;
    let known = put(&store, 1, 1_000).await;
    close(store, tasks).await;
    // The index is written to disk once a second, so a crash leaves one that lacks the latest.
    let index = folder.path().join("index");
    let before = folder.path().join("before");
    copy(&index, &before);
    let (store, tasks) = open(folder.path()).await;
    let latest = put_tagged(&store, b"{\"latest\":1}", 100).await;
    close(store, tasks).await;
    fs::remove_dir_all(&index).expect("removed");
    fs::rename(&before, &index).expect("put back");

    let bounded = Config {
        max_size: Some(2_000),
        ..config(folder.path())
    };
    let (store, _tasks) = open_with(&bounded).await;
    assert_eq!(store.status().blobs, 2);
    let tag = store.tag(&tag_name()).await.expect("store works");
    assert_eq!(tag.map(|record| record.digest), Some(latest));
    put(&store, 2, 2_000).await;
    assert!(!holds(&store, &known).await && !holds(&store, &latest).await);
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("created");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}

#[tokio::test]
async fn a_suspended_part_is_continued_and_only_once_believed() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, tasks) = open(folder.path()).await;
    let (digest, bytes) = content(4, 1_000);
    let part = store.part(&digest).await.expect("part");
    part.writer()
        .write(0, &[bytes.slice(..400)])
        .expect("written");
    part.suspend(ranges(0..400)).await.expect("suspended");
    assert!(store.status().suspended_bytes >= 400);
    close(store, tasks).await;

    let (store, _tasks) = open(folder.path()).await;
    assert!(store.status().suspended_bytes >= 400);
    let part = store.part(&digest).await.expect("part");
    assert_eq!(part.saved(), &ranges(0..400));
    let mut saved = vec![0; 400];
    part.writer().read(0, &mut saved).expect("readable");
    assert_eq!(saved, &bytes[..400]);
    assert_eq!(store.status().suspended_bytes, 0);
    drop(part);
    let part = store.part(&digest).await.expect("part");
    assert!(
        part.saved().is_empty(),
        "it was removed with the part that continued it"
    );
}

/// Bytes that the only part in `root` takes of the disk.
fn allocated(root: &Path) -> u64 {
    let entries = fs::read_dir(root.join("parts")).expect("folder");
    let mut paths = entries.map(|entry| entry.expect("entry").path());
    let part = paths.find(|path| path.extension().is_none());
    let metadata = part.expect("a part").metadata().expect("examined");
    metadata.blocks() * 512
}

#[tokio::test]
async fn a_suspended_part_takes_no_more_than_what_was_written() {
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().expect("folder");
    let (store, tasks) = open(folder.path()).await;
    let (digest, bytes) = content(4, 1_000);
    let mut part = store.part(&digest).await.expect("part");
    for _ in 0..2 {
        part.reserve(64 * MIB).await.expect("room");
    }
    assert!(allocated(folder.path()) >= 64 * MIB, "all was allocated");
    let mut written = RangeSet::new();
    for start in [0, 16 * MIB, 32 * MIB] {
        let writer = part.writer();
        let bytes = std::slice::from_ref(&bytes);
        writer.write(start, bytes).expect("written");
        written.insert(start..start + 1_000);
    }
    // Nobody was told of this one, so it is not kept.
    part.writer().write(48 * MIB, &[bytes]).expect("written");
    part.suspend(written.clone()).await.expect("suspended");
    let kept = allocated(folder.path());
    assert!(kept < MIB, "{kept} bytes are kept for 3000");
    assert_eq!(store.status().suspended_bytes, kept);
    assert_eq!(store.status().growing_bytes, 0);
    close(store, tasks).await;

    let (store, _tasks) = open(folder.path()).await;
    assert_eq!(store.status().suspended_bytes, kept);
    let part = store.part(&digest).await.expect("part");
    assert_eq!(part.saved(), &written);
}

#[tokio::test]
async fn what_a_part_took_before_a_start_is_counted() {
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().expect("folder");
    let (store, tasks) = open(folder.path()).await;
    let (digest, bytes) = content(4, 1_000);
    let part = store.part(&digest).await.expect("part");
    part.writer().write(0, &[bytes]).expect("written");
    part.suspend(ranges(0..1_000)).await.expect("suspended");
    close(store, tasks).await;
    // As a power failure leaves it that comes before the file system has given anything back.
    let path = folder.path().join(format!("parts/sha256-{}", digest.hex()));
    let file = fs::File::options().write(true).open(path).expect("opened");
    let ahead = vec![1; MIB as usize];
    std::os::unix::fs::FileExt::write_all_at(&file, &ahead, MIB).expect("written");
    file.sync_all().expect("flushed");

    let (store, _tasks) = open(folder.path()).await;
    let counted = store.status().suspended_bytes;
    assert!(counted >= MIB, "{counted} bytes are counted");
}

#[tokio::test]
async fn eviction_takes_the_least_recently_used_and_never_what_is_read() {
    let folder = tempfile::tempdir().expect("folder");
    let bounded = Config {
        max_size: Some(3_000),
        ..config(folder.path())
    };
    let (store, _tasks) = open_with(&bounded).await;
    let oldest = put(&store, 1, 1_000).await;
    let second = put(&store, 2, 1_000).await;
    let third = put(&store, 3, 1_000).await;
    let reading = store
        .blob(&oldest)
        .await
        .expect("store works")
        .expect("is there");
    let fourth = put(&store, 4, 2_000).await;
    assert!(holds(&store, &oldest).await, "it is being read");
    assert!(!holds(&store, &second).await && !holds(&store, &third).await);
    assert!(holds(&store, &fourth).await);
    assert!(store.status().blob_bytes <= 3_000);

    let (huge, _) = content(9, 10);
    let mut part = store.part(&huge).await.expect("part");
    let refused = part.reserve(3_001).await;
    assert!(
        matches!(refused, Err(StoreError::TooLarge { .. })),
        "{refused:?}"
    );
    drop(reading);
}

#[tokio::test]
async fn what_is_only_expected_evicts_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let bounded = Config {
        max_size: Some(3_000),
        ..config(folder.path())
    };
    let (store, _tasks) = open_with(&bounded).await;
    put(&store, 1, 1_000).await;
    put(&store, 2, 1_000).await;
    let mut part = store.part(&content(9, 10).0).await.expect("part");
    part.expect(3_000, 0);
    part.reserve(1_000).await.expect("room");
    assert_eq!(
        (store.status().blobs, store.status().growing_bytes),
        (2, 1_000)
    );

    let mut other = store.part(&content(8, 10).0).await.expect("part");
    other.expect(2_000, 0);
    let refused = other.reserve(10).await;
    assert!(
        matches!(refused, Err(StoreError::NoSpace { .. })),
        "it is promised to another: {refused:?}"
    );
    other.expect(3_001, 0);
    let refused = other.reserve(10).await;
    assert!(
        matches!(refused, Err(StoreError::TooLarge { .. })),
        "{refused:?}"
    );
    assert_eq!(store.status().blobs, 2);

    part.reserve(1_001).await.expect("room");
    assert_eq!(store.status().blobs, 1, "one makes way for what comes");
    drop(part);
    other.expect(2_000, 0);
    other
        .reserve(10)
        .await
        .expect("the promise went with its part");
    assert_eq!(store.status().blobs, 1);
}

#[tokio::test]
async fn a_part_that_is_continued_takes_room_before_it_asks_for_more() {
    const KIB: u64 = 1 << 10;
    let folder = tempfile::tempdir().expect("folder");
    let bounded = Config {
        max_size: Some(64 * KIB),
        ..config(folder.path())
    };
    let (store, _tasks) = open_with(&bounded).await;
    let (digest, bytes) = content(1, 16 << 10);
    let part = store.part(&digest).await.expect("part");
    part.writer().write(0, &[bytes]).expect("written");
    part.suspend(ranges(0..16 * KIB)).await.expect("suspended");
    let mut part = store.part(&digest).await.expect("part");
    let status = store.status();
    assert_eq!(
        (status.growing_bytes, status.suspended_bytes),
        (16 * KIB, 0)
    );

    let mut other = store.part(&content(2, 10).0).await.expect("part");
    let refused = other.reserve(49 * KIB).await;
    assert!(
        matches!(refused, Err(StoreError::NoSpace { .. })),
        "the disk has the other part: {refused:?}"
    );
    other.reserve(32 * KIB).await.expect("room");
    part.expect(32 * KIB, 16 * KIB);
    part.reserve(20 * KIB).await.expect("only the rest is new");
    assert_eq!(store.status().growing_bytes, 52 * KIB);
    drop((part, other));
    assert_eq!(store.status().growing_bytes, 0);
}

#[tokio::test]
async fn what_was_committed_stays_while_it_is_held() {
    let folder = tempfile::tempdir().expect("folder");
    let bounded = Config {
        max_size: Some(3_000),
        ..config(folder.path())
    };
    let (store, _tasks) = open_with(&bounded).await;
    let (digest, bytes) = content(1, 1_000);
    let part = store.part(&digest).await.expect("part");
    part.writer().write(0, &[bytes]).expect("written");
    let sidecar = Sidecar::new(None, provenance());
    let held = part.commit(1_000, sidecar).await.expect("committed");
    put(&store, 2, 2_000).await;
    put(&store, 3, 2_000).await;
    assert!(holds(&store, &digest).await);
    let mut large = store.part(&content(4, 10).0).await.expect("part");
    large.expect(2_001, 0);
    let refused = large.reserve(10).await;
    assert!(
        matches!(refused, Err(StoreError::NoSpace { .. })),
        "{refused:?}"
    );
    drop(held);
    put(&store, 5, 3_000).await;
    assert!(!holds(&store, &digest).await);
}

#[tokio::test]
async fn suspended_parts_make_room_before_blobs() {
    let folder = tempfile::tempdir().expect("folder");
    let bounded = Config {
        max_size: Some(2_000),
        ..config(folder.path())
    };
    let (store, _tasks) = open_with(&bounded).await;
    let blob = put(&store, 1, 1_000).await;
    let (digest, bytes) = content(2, 900);
    let part = store.part(&digest).await.expect("part");
    part.writer().write(0, &[bytes]).expect("written");
    part.suspend(ranges(0..900)).await.expect("suspended");
    put(&store, 3, 1_000).await;
    assert!(holds(&store, &blob).await);
    assert_eq!(store.status().suspended_bytes, 0);
    assert!(store.part(&digest).await.expect("part").saved().is_empty());
}

#[tokio::test]
async fn a_smaller_bound_is_kept_after_the_next_start() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, tasks) = open(folder.path()).await;
    for seed in 0..4 {
        put(&store, seed, 1_000).await;
    }
    close(store, tasks).await;
    let bounded = Config {
        max_size: Some(2_500),
        ..config(folder.path())
    };
    let (store, _tasks) = open_with(&bounded).await;
    assert_eq!(
        (store.status().blobs, store.status().blob_bytes),
        (2, 2_000)
    );
}

#[tokio::test]
async fn a_manifest_keeps_its_bytes_and_type_and_a_damaged_one_is_dropped() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, _tasks) = open(folder.path()).await;
    let bytes = Bytes::from_static(b"{ \"schemaVersion\": 2 }\n");
    let digest = Digest::of(Algorithm::Sha512, &bytes);
    let media_type = MediaType::new("application/x; charset=y");
    let sidecar = Sidecar::new(Some(media_type.clone()), provenance());
    store
        .put_manifest(&digest, bytes.clone(), sidecar)
        .await
        .expect("stored");
    let stored = store
        .manifest(&digest)
        .await
        .expect("store works")
        .expect("is there");
    assert_eq!((stored.bytes, stored.media_type), (bytes, media_type));

    let hex = digest.hex();
    let file = folder
        .path()
        .join(format!("blobs/sha512/{}/{hex}", &hex[..2]));
    fs::write(file, b"{}").expect("damaged");
    assert_eq!(store.manifest(&digest).await.expect("store works"), None);
    assert!(!holds(&store, &digest).await);
}

fn blob_path(root: &Path, digest: &Digest) -> std::path::PathBuf {
    let hex = digest.hex();
    root.join(format!("blobs/sha256/{}/{hex}", &hex[..2]))
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_absent_and_can_be_stored_again() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, _tasks) = open(folder.path()).await;
    let digest = put(&store, 1, 1_000).await;
    let path = blob_path(folder.path(), &digest);
    fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink(&path, &path).expect("a loop");
    assert!(!holds(&store, &digest).await);
    assert_eq!(store.links(&digest).await.expect("store works"), None);
    assert_eq!(read_all(&store, &digest).await, None);
    assert_eq!(store.status().blobs, 0);
    put(&store, 1, 1_000).await;
    let bytes = content(1, 1_000).1.to_vec();
    assert_eq!(read_all(&store, &digest).await, Some(bytes));
}

#[tokio::test]
async fn a_file_that_ends_too_early_is_dropped_but_not_what_took_its_place() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, _tasks) = open(folder.path()).await;
    let digest = put(&store, 1, 1_000).await;
    let blob = store.blob(&digest).await.expect("store works");
    let blob = blob.expect("is there");
    let file = fs::File::options()
        .write(true)
        .open(blob_path(folder.path(), &digest));
    file.expect("opened").set_len(0).expect("truncated");
    let failed = blob.reader().read(0, 1_000).await;
    assert!(failed.is_err(), "{failed:?}");
    assert!(!holds(&store, &digest).await);
    assert_eq!(store.status().blobs, 0);

    put(&store, 1, 1_000).await;
    let failed = blob.reader().read(0, 1_000).await;
    assert!(failed.is_err(), "the reader still has the old file");
    assert!(holds(&store, &digest).await);
}

#[tokio::test]
async fn a_file_of_another_length_is_dropped_and_not_given_away() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, _tasks) = open(folder.path()).await;
    let digest = put(&store, 1, 1_000).await;
    let file = fs::File::options()
        .write(true)
        .open(blob_path(folder.path(), &digest));
    file.expect("opened").set_len(999).expect("truncated");
    assert_eq!(read_all(&store, &digest).await, None);
    assert!(!holds(&store, &digest).await);
    assert_eq!(store.status().blobs, 0);
}

/// Puts a folder in the place of whatever is at `path`.
fn put_folder(path: &Path) {
    // Nothing needs to be there.
    let _ = fs::remove_file(path);
    fs::create_dir_all(path).expect("created");
}

#[tokio::test]
async fn a_folder_in_the_place_of_a_file_is_absent_and_makes_way() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, tasks) = open(folder.path()).await;
    let digest = put(&store, 1, 1_000).await;
    let path = blob_path(folder.path(), &digest);
    let part = folder.path().join(format!("parts/sha256-{}", digest.hex()));
    for path in [&path, &path.with_extension("json"), &part] {
        put_folder(path);
        assert_eq!(
            holds(&store, &digest).await,
            path != &blob_path(folder.path(), &digest)
        );
        put(&store, 1, 1_000).await;
        let bytes = content(1, 1_000).1.to_vec();
        assert_eq!(read_all(&store, &digest).await, Some(bytes));
        assert_eq!(store.provenance(&digest).await, [provenance()]);
    }
    close(store, tasks).await;

    put_folder(&part);
    put_folder(&path);
    fs::remove_dir_all(folder.path().join("index")).expect("removed");
    let (store, _tasks) = open(folder.path()).await;
    assert!(!part.exists(), "it is no part");
    assert_eq!(store.status().blobs, 0);
    assert!(listed(&store).await.is_empty());
    assert_eq!(read_all(&store, &digest).await, None);
    put(&store, 1, 1_000).await;
    assert!(holds(&store, &digest).await);
}

#[tokio::test]
async fn a_folder_that_is_not_empty_stays_and_is_told() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, tasks) = open(folder.path()).await;
    let (digest, bytes) = content(1, 1_000);
    let path = blob_path(folder.path(), &digest);
    let part = folder.path().join("parts/somebody's");
    for path in [&path, &part] {
        put_folder(&path.join("work"));
    }
    let mut changes = store.changes();
    assert_eq!(read_all(&store, &digest).await, None);
    assert_eq!(changes.next().await, Ok(Change::Went(digest)));
    let other = put(&store, 2, 10).await;
    assert_eq!(changes.next().await, Ok(Change::Came(other)), "no other");
    let stored = store.put_manifest(&digest, bytes, Sidecar::new(None, provenance()));
    let refused = stored.await.expect_err("its place is taken");
    assert!(refused.to_string().contains(&digest.hex()), "{refused}");
    assert!(path.join("work").is_dir());
    close(store, tasks).await;
    let (_store, _tasks) = open(folder.path()).await;
    assert!(part.is_dir());
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
async fn tags_and_catalog_survive_the_loss_of_the_index() {
    let folder = tempfile::tempdir().expect("folder");
    for damage in ["nothing", "removed", "garbage"] {
        let (store, tasks) = open(folder.path()).await;
        put_tagged(&store, b"{\"old\":1}", 100).await;
        let newest = put_tagged(&store, b"{\"new\":1}", 200).await;
        close(store, tasks).await;
        let index = folder.path().join("index");
        match damage {
            "removed" => fs::remove_dir_all(&index).expect("removed"),
            "garbage" => fs::write(index.join("db"), [0x5a; 4096]).expect("damaged"),
            _ => {}
        }
        let (store, tasks) = open(folder.path()).await;
        let record = store
            .tag(&tag_name())
            .await
            .expect("store works")
            .expect(damage);
        assert_eq!(
            (record.digest, record.resolved_at),
            (newest, 200),
            "{damage}"
        );
        assert_eq!(
            store.repositories().await,
            ["docker.io/library/alpine"],
            "{damage}"
        );
        assert_eq!(store.status().blobs, 2, "{damage}");
        close(store, tasks).await;
    }
}

#[tokio::test]
async fn a_removed_tag_does_not_come_back_with_a_rebuilt_index() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, tasks) = open(folder.path()).await;
    put_tagged(&store, b"{}", 100).await;
    store.remove_tag(tag_name()).await.expect("removed");
    close(store, tasks).await;
    fs::remove_dir_all(folder.path().join("index")).expect("removed");
    let (store, _tasks) = open(folder.path()).await;
    assert_eq!(store.tag(&tag_name()).await.expect("store works"), None);
}

#[tokio::test]
async fn two_nodes_cannot_share_a_data_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let (_store, _tasks) = open(folder.path()).await;
    let second = Store::open(&config(folder.path()), &Tasks::default()).await;
    assert!(matches!(second, Err(StoreError::InUse { .. })));
}

#[tokio::test]
async fn a_manifest_does_not_touch_the_part_of_a_blob_with_its_digest() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, _tasks) = open(folder.path()).await;
    let (digest, bytes) = content(5, 1_000);
    let mut part = store.part(&digest).await.expect("part");
    part.reserve(1_000).await.expect("room");
    part.writer()
        .write(0, &[bytes.slice(..600)])
        .expect("written");

    let sidecar = Sidecar::new(Some(MediaType::new("a/b")), provenance());
    let stored = store.put_manifest(&digest, bytes.clone(), sidecar).await;
    stored.expect("stored");

    let mut begun = vec![0; 600];
    part.writer().read(0, &mut begun).expect("still there");
    assert_eq!(begun, &bytes[..600]);
    part.writer()
        .write(600, &[bytes.slice(600..)])
        .expect("written");
    let committed = part.commit(1_000, Sidecar::new(None, provenance())).await;
    committed.expect("its file is still under its name");
    assert_eq!(read_all(&store, &digest).await, Some(bytes.to_vec()));
    let manifest = store.manifest(&digest).await.expect("store works");
    assert!(manifest.is_some(), "the media type is kept");
    assert_eq!(store.status().blobs, 1);
}

#[tokio::test]
async fn a_part_that_is_longer_than_what_was_verified_is_cut() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, _tasks) = open(folder.path()).await;
    let (digest, bytes) = content(6, 1_000);
    let part = store.part(&digest).await.expect("part");
    let excess = Bytes::from_static(b"what a lying upstream sent");
    part.writer()
        .write(0, &[bytes.clone(), excess])
        .expect("written");
    let committed = part.commit(1_000, Sidecar::new(None, provenance())).await;
    committed.expect("committed");
    assert_eq!(read_all(&store, &digest).await, Some(bytes.to_vec()));
    assert_eq!(store.status().blob_bytes, 1_000);
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

#[tokio::test]
async fn shelves_hold_every_blob_once_whatever_the_index_knows() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (store, tasks) = open(folder.path()).await;
    let mut expected = Vec::new();
    for seed in 0..40 {
        expected.push(put(&store, seed, 100).await);
    }
    expected.sort();
    assert_eq!(listed(&store).await, expected);
    close(store, tasks).await;
    // Not waiting for the index, which is made anew.
    fs::remove_dir_all(folder.path().join("index")).expect("removed");
    let tasks = Tasks::default();
    let reopened = Store::open(&config(folder.path()), &tasks).await;
    let store = reopened.expect("store opens");
    assert_eq!(listed(&store).await, expected);
    close(store, tasks).await;
}

#[tokio::test]
async fn listeners_hear_what_comes_and_goes_and_that_they_missed_something() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (store, tasks) = open(folder.path()).await;
    let mut changes = store.changes();
    let blob = put(&store, 1, 100).await;
    let other = put(&store, 2, 100).await;
    store.remove(&blob).await.expect("removed");
    for expected in [Change::Came(blob), Change::Came(other), Change::Went(blob)] {
        assert_eq!(changes.next().await, Ok(expected));
    }
    // What is not there can be removed as often as one likes.
    for _ in 0..5000 {
        store.remove(&blob).await.expect("removed");
    }
    assert_eq!(changes.next().await, Err(Missed));
    assert_eq!(changes.next().await, Ok(Change::Went(blob)));
    close(store, tasks).await;
}
