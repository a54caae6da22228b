//! Files that go from the page cache to a client's socket, past the HTTP library.
//!
//! The library knows bytes in memory only. So the body of an answer gives it a *placeholder* as
//! long as the range of a file, in its place among the other bytes; the library hands that to the
//! connection's stream, which knows it by its address and sends the file instead (`sendfile`).
//! Everything that the library does with lengths, order and partial writes holds for files too.
//!
//! What the placeholder contains never leaves the node. The library may pass a placeholder only as
//! far as its file was sent: if it copied one, or let go of one before its end, the outlet is
//! *broken*, and the connection ends before another byte is written. Only a body that
//! was given the outlet of its own connection makes placeholders, and only a plain TCP stream has
//! one.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;

use crate::store::FileRange;

/// Longest stretch of a placeholder that the HTTP library sees at a time, in bytes: the longest
/// that goes out in one call. Nothing reads these zeros, so they take no memory.
const PLACEHOLDER_BYTES: usize = 1024 * 1024;

/// Where placeholders lie.
static PLACEHOLDER: [u8; PLACEHOLDER_BYTES] = [0; PLACEHOLDER_BYTES];

/// Where the files of one connection's answers go out; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Outlet {
    ledger: Arc<Mutex<Ledger>>,
}

/// Sends some bytes from the start of a range, at most so many, and takes them off it.
type SendRange = Box<dyn FnMut(&mut FileRange, &TcpStream, usize) -> io::Result<usize> + Send>;

/// What is on its way through an outlet.
struct Ledger {
    /// What belongs in the place of placeholders, in their order. The HTTP library holds few at a
    /// time: it asks for no more while it has as many bytes as its buffer may have.
    ranges: VecDeque<FileRange>,
    /// Bytes of a file that were sent and that the HTTP library has not passed yet, which it does
    /// before it writes on.
    sent: usize,
    /// A read of what the page cache lacks, or what the file system cannot send.
    reading: Option<Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>>,
    /// What was read so and not sent yet.
    read: Bytes,
    /// How files are sent; otherwise only where a test has a disk fail.
    send: SendRange,
    /// Whether the file system refused to send.
    only_reads: bool,
    /// Whether a placeholder did not go the way of its file.
    is_broken: bool,
}

/// Bytes of an answer, as the HTTP library gets them.
#[derive(Debug)]
pub struct Outgoing(Content);

#[derive(Debug)]
enum Content {
    Memory(Bytes),
    File(Placeholder),
}

/// The place of a range of a file.
#[derive(Debug)]
struct Placeholder {
    outlet: Outlet,
    /// Bytes that the HTTP library has not passed.
    remaining: usize,
}

impl Outlet {
    /// Makes a place for the range; places must be sent in the order in which they were made.
    pub(super) fn place(&self, range: FileRange) -> Outgoing {
        let placeholder = Placeholder {
            outlet: self.clone(),
            remaining: range.len(),
        };
        self.ledger.lock().ranges.push_back(range);
        Outgoing(Content::File(placeholder))
    }

    /// Writes some of these bytes, in their order, with files in the place of placeholders.
    ///
    /// Returns how many were written. Not to be used with another stream than the connection's.
    ///
    /// # Errors
    /// The client is gone, a file cannot be read, or the outlet is broken.
    pub(super) fn poll_write(
        &self,
        stream: &mut TcpStream,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut ledger = self.ledger.lock();
        if ledger.is_broken || ledger.sent > 0 {
            return Poll::Ready(Err(lost()));
        }
        let place = slices.iter().position(|slice| is_placeholder(slice));
        let (before, place) = slices.split_at(place.unwrap_or(slices.len()));
        match place.first() {
            Some(place) if before.iter().all(|slice| slice.is_empty()) => {
                ledger.poll_send(stream, context, place.len())
            }
            _ => Pin::new(stream).poll_write_vectored(context, before),
        }
    }
}

/// Whether these bytes stand for those of a file.
fn is_placeholder(slice: &[u8]) -> bool {
    !slice.is_empty() && PLACEHOLDER.as_ptr_range().contains(&slice.as_ptr())
}

impl Ledger {
    /// Sends at most `limit` bytes of the file that comes next.
    fn poll_send(
        &mut self,
        stream: &mut TcpStream,
        context: &mut Context<'_>,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        let sent = loop {
            let Some(range) = self.ranges.front_mut() else {
                return Poll::Ready(Err(lost()));
            };
            if !self.read.is_empty() {
                let bytes = &self.read[..limit.min(self.read.len())];
                let sent = ready!(Pin::new(stream).poll_write(context, bytes))?;
                self.read.advance(sent);
                range.advance(sent);
                break sent;
            }
            if let Some(reading) = &mut self.reading {
                let read = ready!(reading.as_mut().poll(context));
                self.reading = None;
                self.read = read.inspect_err(log_unreadable)?;
                continue;
            }
            ready!(stream.poll_write_ready(context))?;
            if self.only_reads || !range.is_cached() {
                self.reading = Some(Box::pin(range.read()));
                continue;
            }
            match stream.try_io(Interest::WRITABLE, || (self.send)(range, &*stream, limit)) {
                Ok(sent) => break sent,
                // Reading it finds what still can be read, and drops the file for what cannot.
                Err(error) if FileRange::is_failure_of_the_file(&error) => {
                    self.reading = Some(Box::pin(range.read()));
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => {
                        self.only_reads = true;
                    }
                    _ => return Poll::Ready(Err(error)),
                },
            }
        };
        self.sent += sent;
        if self.ranges.front().is_some_and(FileRange::is_empty) {
            self.ranges.pop_front();
        }
        Poll::Ready(Ok(sent))
    }
}

fn lost() -> io::Error {
    io::Error::other("a place for a file was lost")
}

fn log_unreadable(error: &io::Error) {
    let error = error as &dyn std::error::Error;
    tracing::error!(error, "a file cannot be read: the answer is cut short");
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            ranges: VecDeque::new(),
            sent: 0,
            reading: None,
            read: Bytes::new(),
            send: Box::new(|range, stream, limit| range.send(stream, limit)),
            only_reads: false,
            is_broken: false,
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("ranges", &self.ranges)
            .field("sent", &self.sent)
            .field("is_broken", &self.is_broken)
            .finish_non_exhaustive()
    }
}

impl From<Bytes> for Outgoing {
    fn from(bytes: Bytes) -> Self {
        Self(Content::Memory(bytes))
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        match &self.0 {
            Content::Memory(bytes) => bytes.remaining(),
            Content::File(placeholder) => placeholder.remaining,
        }
    }

    fn chunk(&self) -> &[u8] {
        match &self.0 {
            Content::Memory(bytes) => bytes.chunk(),
            Content::File(placeholder) => {
                &PLACEHOLDER[..placeholder.remaining.min(PLACEHOLDER_BYTES)]
            }
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.0 {
            Content::Memory(bytes) => bytes.advance(count),
            Content::File(placeholder) => placeholder.advance(count),
        }
    }
}

impl Placeholder {
    /// Passes bytes, which the outlet must have sent.
    fn advance(&mut self, count: usize) {
        self.remaining = self
            .remaining
            .checked_sub(count)
            .expect("a buffer is not advanced beyond its end");
        let mut ledger = self.outlet.ledger.lock();
        match ledger.sent.checked_sub(count) {
            Some(sent) => ledger.sent = sent,
            None => ledger.is_broken = true,
        }
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        if self.remaining > 0 {
            self.outlet.ledger.lock().is_broken = true;
        }
    }
}

#[cfg(test)]
mod tests {
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
            let mut written =
                poll_fn(|context| outlet.poll_write(stream, context, &slices)).await?;
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
}
