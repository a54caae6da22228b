//! What is wrong with a file on the disk, and what becomes of it.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use millrace::store::{Change, Sidecar};
use millrace_protocol::oci::{Algorithm, Digest, MediaType};

use super::{blob_path, close, content, holds, listed, open, provenance, put, read_all};

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
