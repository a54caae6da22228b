//! Parts: written at any offset, suspended, continued, committed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;
use millrace::store::Sidecar;
use millrace_protocol::oci::MediaType;
use rangemap::RangeSet;

use super::{close, content, holds, open, provenance, ranges, read_all};

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
