//! Room: who makes way for whom, what is promised, and what stays.

use std::fs;
use std::time::Duration;

use millrace::store::{Config, Sidecar, StoreError};

use super::{blob_path, close, config, content, holds, open, open_with, provenance, put, ranges};

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
async fn what_cannot_be_removed_is_passed_over() {
    let folder = tempfile::tempdir().expect("folder");
    let bounded = Config {
        max_size: Some(3_000),
        ..config(folder.path())
    };
    let (store, _tasks) = open_with(&bounded).await;
    let mut stuck = Vec::new();
    for seed in [1, 2] {
        let digest = put(&store, seed, 1_000).await;
        let path = blob_path(folder.path(), &digest);
        fs::remove_file(&path).expect("removed");
        fs::create_dir_all(path.join("of somebody")).expect("a folder in its place");
        stuck.push(path);
    }
    for seed in [3, 4, 5] {
        put(&store, seed, 1_000).await;
    }
    assert_eq!(store.status().blobs, 3, "the other one made way each time");
    assert!(stuck.iter().all(|path| path.join("of somebody").exists()));
    let mut large = store.part(&content(6, 10).0).await.expect("part");
    let refused = large.reserve(1_001).await;
    assert!(
        matches!(refused, Err(StoreError::NoSpace { .. })),
        "{refused:?}"
    );
    fs::remove_dir(stuck[0].join("of somebody")).expect("removed");
    let refused = large.reserve(1_001).await;
    assert!(refused.is_err(), "it is left alone: {refused:?}");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    large.reserve(2_000).await.expect("it is tried again");
}
