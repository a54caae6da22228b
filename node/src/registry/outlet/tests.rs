//! Files in their places, and what goes wrong with them, over a real connection.

use std::fs::File;
use std::future::poll_fn;

use millrace_protocol::oci::{Algorithm, Digest};
use rustix::io::Errno;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::store::{Config, FileReader, Sidecar, Store};
use crate::task::Tasks;

/// Longer than a range, and than what a socket takes at once.
const LENGTH: usize = 9 * 1024 * 1024 + 123;

/// A stored file, and the two ends of a connection.
struct Scene {
    content: Bytes,
    digest: Digest,
    file: FileReader,
    outlet: Outlet,
    stream: TcpStream,
    client: TcpStream,
    store: Store,
    folder: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let config = Config {
            min_free: Some(0),
            max_size: Some(1 << 30),
            ..Config::new(folder.path())
        };
        let store = Store::open(&config, &Tasks::default())
            .await
            .expect("opens");
        let content: Vec<u8> = (0..LENGTH as u32)
            .map(|at| (at.wrapping_mul(at) % 251) as u8)
            .collect();
        let content = Bytes::from(content);
        let digest = Digest::of(Algorithm::Sha256, &content);
        let part = store.part(&digest).await.expect("a part");
        let whole = std::slice::from_ref(&content);
        part.writer().write(0, whole).expect("written");
        let sidecar = Sidecar::of(None, Vec::new());
        part.commit(LENGTH as u64, sidecar)
            .await
            .expect("committed");
        let blob = store.blob(&digest).await.expect("the store works");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).await.expect("connects");
        let (stream, _) = listener.accept().await.expect("accepts");
        Self {
            file: blob.expect("stored").reader().clone(),
            content,
            digest,
            outlet: Outlet::default(),
            stream,
            client,
            store,
            folder,
        }
    }

    /// Makes places for a stretch of the file.
    fn places(&self, mut start: u64, end: u64) -> Vec<Outgoing> {
        let mut places = Vec::new();
        while start < end {
            let range = self.file.range(start, end);
            start += range.len() as u64;
            places.push(self.outlet.place(range));
        }
        places
    }

    /// Writes all pieces as the HTTP library does, and returns what the client got.
    async fn send(&mut self, pieces: Vec<Outgoing>) -> (io::Result<()>, Vec<u8>) {
        let Self {
            outlet,
            stream,
            client,
            ..
        } = self;
        let mut received = Vec::new();
        let sending = async {
            let result = write_all(outlet, stream, pieces).await;
            stream.shutdown().await.expect("shuts down");
            result
        };
        let (result, read) = tokio::join!(sending, client.read_to_end(&mut received));
        read.expect("no reset");
        (result, received)
    }
}

async fn write_all(
    outlet: &Outlet,
    stream: &mut TcpStream,
    pieces: Vec<Outgoing>,
) -> io::Result<()> {
    let mut pieces = VecDeque::from(pieces);
    while let Some(first) = pieces.front() {
        let second = pieces.get(1).map_or(&[][..], Buf::chunk);
        let slices = [IoSlice::new(first.chunk()), IoSlice::new(second)];
        let mut written = poll_fn(|context| outlet.poll_write(stream, context, &slices)).await?;
        while let Some(piece) = pieces.front_mut() {
            let count = written.min(piece.remaining());
            piece.advance(count);
            written -= count;
            if piece.has_remaining() {
                break;
            }
            pieces.pop_front();
        }
    }
    Ok(())
}

fn memory(text: &'static str) -> Outgoing {
    Bytes::from_static(text.as_bytes()).into()
}

/// What all pieces of [`mixed`] are together.
fn mixture(content: &Bytes) -> Vec<u8> {
    [b"head", &content[7..], b"between", &content[..10], b"tail"].concat()
}

fn mixed(scene: &Scene) -> Vec<Outgoing> {
    let mut pieces = vec![memory("head")];
    pieces.extend(scene.places(7, LENGTH as u64));
    pieces.push(memory("between"));
    pieces.extend(scene.places(0, 10));
    pieces.push(memory("tail"));
    pieces
}

async fn assert_mixture_arrives(mut scene: Scene) {
    let expected = mixture(&scene.content);
    let pieces = mixed(&scene);
    let (result, received) = scene.send(pieces).await;
    result.expect("everything is sent");
    assert!(received == expected);
}

#[tokio::test]
async fn files_go_out_in_their_places() {
    assert_mixture_arrives(Scene::new().await).await;
}

#[tokio::test]
async fn what_the_system_cannot_send_is_read() {
    let scene = Scene::new().await;
    scene.outlet.ledger.lock().only_reads = true;
    assert_mixture_arrives(scene).await;
}

#[tokio::test]
async fn what_a_disk_fails_to_send_is_read() {
    let scene = Scene::new().await;
    scene.outlet.ledger.lock().send = Box::new(|_, _, _| Err(Errno::IO.into()));
    assert_mixture_arrives(scene).await;
}

#[tokio::test]
async fn a_file_whose_disk_fails_under_it_is_dropped() {
    let mut scene = Scene::new().await;
    let (store, digest) = (scene.store.clone(), scene.digest);
    let hex = digest.hex();
    let path = format!("blobs/sha256/{}/{hex}", &hex[..2]);
    let file = File::options()
        .write(true)
        .open(scene.folder.path().join(path));
    let file = file.expect("opened");
    scene.outlet.ledger.lock().send = Box::new(move |_, _, _| {
        // What the page cache had a moment ago cannot be read any more.
        file.set_len(0)?;
        Err(Errno::IO.into())
    });
    let pieces = scene.places(0, 1_000_000);
    let (result, received) = scene.send(pieces).await;
    result.expect_err("nothing is left");
    assert!(received.is_empty());
    let missing = store.missing(vec![digest]).await;
    assert_eq!(missing.expect("the store works"), [digest]);
}

#[tokio::test]
async fn less_than_a_whole_range_is_sent_when_less_is_asked_for() {
    let mut scene = Scene::new().await;
    let place = scene.outlet.place(scene.file.range(0, 100));
    let slices = [IoSlice::new(&place.chunk()[..40])];
    let Scene { outlet, stream, .. } = &mut scene;
    let written = poll_fn(|context| outlet.poll_write(stream, context, &slices)).await;
    assert_eq!(written.expect("sent"), 40);
}

#[tokio::test]
async fn a_copied_placeholder_never_leaves() {
    let mut scene = Scene::new().await;
    let mut places = scene.places(0, 1000);
    let copy = places[0].copy_to_bytes(1000);
    let (result, received) = scene.send(vec![copy.into()]).await;
    result.expect_err("the outlet is broken");
    assert!(received.is_empty());
}

#[tokio::test]
async fn a_lost_placeholder_ends_the_connection() {
    let mut scene = Scene::new().await;
    let mut pieces = scene.places(0, 1000);
    pieces.clear();
    pieces.extend(scene.places(1000, 2000));
    let (result, received) = scene.send(pieces).await;
    result.expect_err("the outlet is broken");
    assert!(received.is_empty());
}

#[tokio::test]
async fn a_placeholder_of_another_connection_is_not_sent() {
    let (mut scene, other) = (Scene::new().await, Scene::new().await);
    let pieces = other.places(0, 1000);
    let (result, received) = scene.send(pieces).await;
    result.expect_err("nothing has its place here");
    assert!(received.is_empty());
}

#[tokio::test]
async fn a_file_that_became_shorter_ends_the_connection() {
    let mut scene = Scene::new().await;
    let end = LENGTH as u64;
    let pieces = scene.places(end - 10, end + 10);
    let expected = scene.content.slice(LENGTH - 10..);
    let (result, received) = scene.send(pieces).await;
    result.expect_err("ten bytes are missing");
    assert_eq!(received, expected);
}
