//! The index, which can be lost, and what is listed and told without it.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use millrace::store::{Change, Config, Missed, Store};
use millrace::task::Tasks;

use super::{blob_path, close, config, holds, listed, open, open_with, put, put_tagged, tag_name};

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

#[tokio::test]
async fn what_was_committed_right_before_a_crash_goes_after_what_was_known() {
    let folder = tempfile::tempdir().expect("folder");
    let index = folder.path().join("index");
    let before = folder.path().join("before");
    let (store, tasks) = open(folder.path()).await;
    let known = put(&store, 1, 1_000).await;
    close(store, tasks).await;
    copy(&index, &before);
    let (store, tasks) = open(folder.path()).await;
    let latest = put(&store, 2, 1_000).await;
    close(store, tasks).await;
    fs::remove_dir_all(&index).expect("removed");
    fs::rename(&before, &index).expect("put back");
    // As if uses came so quickly that their numbers are far ahead of the clock.
    let file = fs::File::open(blob_path(folder.path(), &latest)).expect("opened");
    file.set_modified(UNIX_EPOCH).expect("changed");

    let bounded = Config {
        max_size: Some(2_000),
        ..config(folder.path())
    };
    let (store, _tasks) = open_with(&bounded).await;
    put(&store, 3, 1_000).await;
    assert!(!holds(&store, &known).await && holds(&store, &latest).await);
}

#[tokio::test]
async fn what_is_no_folder_of_blobs_keeps_none_from_being_counted() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, tasks) = open(folder.path()).await;
    for seed in 0..4 {
        put(&store, seed, 1_000).await;
    }
    close(store, tasks).await;
    let blobs = folder.path().join("blobs");
    for stray in ["sha512", "sha256/stray"] {
        fs::write(blobs.join(stray), "").expect("written");
    }
    let bounded = Config {
        max_size: Some(2_500),
        ..config(folder.path())
    };
    for index in ["new", "existing"] {
        if index == "new" {
            fs::remove_dir_all(folder.path().join("index")).expect("removed");
        }
        let (store, tasks) = open_with(&bounded).await;
        assert_eq!(store.status().blob_bytes, 2_000, "{index}");
        close(store, tasks).await;
    }
    assert!(!folder.path().join("index.damaged").exists());
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
