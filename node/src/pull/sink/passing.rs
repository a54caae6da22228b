//! Bytes that are relayed because nothing can be kept: they are hashed at the instant at which readers
//! get them, so that the digest is that of what readers had and of nothing else.
//!
//! How fast they go, and to whom, is `relay`'s.

use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::chunk::{ChainHasher, ChainValue};
use rangemap::RangeSet;

use super::{Sink, blocking};
use crate::store::StoreError;

/// Bytes on their way to readers.
#[derive(Debug)]
pub(in crate::pull) struct Passing {
    pub(in crate::pull) chunks: Vec<Bytes>,
    hash: Hash,
}

/// How far the hash of such bytes is.
#[derive(Debug)]
enum Hash {
    ToDo,
    /// The digest in the making has them: they were to be written.
    Done,
    /// From this value on, to this hasher: a chunk that was checked.
    Checked(Box<(ChainValue, ChainHasher)>),
}

/// Where bytes belong that are to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pull) enum Place {
    /// They are the next ones.
    Next,
    /// Others come before them, from this position on.
    Ahead(u64),
    /// The digest has other bytes there, which no reader got: it is lost.
    Lost,
}

impl Passing {
    /// Bytes that were not hashed, or, as `is_hashed` says, were.
    pub(super) fn new(chunks: Vec<Bytes>, is_hashed: bool) -> Self {
        let hash = if is_hashed { Hash::Done } else { Hash::ToDo };
        Self { chunks, hash }
    }

    /// A chunk that leads from the value `before` it to `hasher`.
    pub(super) fn checked(chunks: Vec<Bytes>, before: ChainValue, hasher: ChainHasher) -> Self {
        let hash = Hash::Checked(Box::new((before, hasher)));
        Self { chunks, hash }
    }

    /// Returns how many bytes these are.
    pub(in crate::pull) fn len(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }
}

impl Sink {
    /// Adds bytes to the digest as they are passed on from `start` on. Blocks as long as it takes to
    /// hash one batch: nothing may come between that and what readers see.
    pub(in crate::pull) fn pass(&self, start: u64, passing: &mut Passing) -> Place {
        let end = start + passing.len();
        let mut progress = self.progress.lock();
        match std::mem::replace(&mut passing.hash, Hash::Done) {
            Hash::Done => {}
            _ if progress.hashed() < start => return Place::Ahead(progress.hashed()),
            _ if progress.hashed() > start => return Place::Lost,
            Hash::ToDo => {
                progress.add(start, &passing.chunks);
            }
            Hash::Checked(checked) => progress.adopt(start, checked.0, checked.1),
        }
        if progress.hashed() < end {
            return Place::Lost;
        }
        Place::Next
    }

    /// Hashes what is `written` before `position`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(in crate::pull) async fn catch_up(
        &self,
        position: u64,
        written: RangeSet<u64>,
    ) -> Result<(), StoreError> {
        if self.progress.lock().hashed() >= position {
            return Ok(());
        }
        let storage = self.storage();
        let progress = Arc::clone(&self.progress);
        blocking(move || {
            let mut progress = progress.lock();
            progress.catch_up(storage.file(), &written, position)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::oci::{Algorithm, Digest};

    use super::*;
    use crate::pull::orphans::Orphans;
    use crate::store::{Config, Store};
    use crate::task::Tasks;

    const BYTES: &[u8] = b"what readers had and nothing else";

    async fn relaying(folder: &std::path::Path) -> Sink {
        let store = Store::open(&Config::new(folder), &Tasks::default()).await;
        let digest = Digest::of(Algorithm::Sha256, BYTES);
        let sink = Sink::open(&store.expect("opened"), &digest, true, &Orphans::default()).await;
        let sink = sink.expect("opened");
        sink.stop_storing().await;
        sink
    }

    fn passing(range: std::ops::Range<usize>) -> Passing {
        Passing::new(vec![Bytes::from_static(&BYTES[range])], false)
    }

    #[tokio::test]
    async fn the_digest_is_of_the_bytes_that_were_passed_on_in_order() {
        let folder = tempfile::tempdir().expect("folder");
        let sink = relaying(folder.path()).await;
        assert_eq!(sink.pass(9, &mut passing(9..20)), Place::Ahead(0));
        assert_eq!(sink.pass(0, &mut passing(0..9)), Place::Next);
        assert_eq!(sink.pass(9, &mut passing(9..20)), Place::Next);
        assert_eq!(
            sink.pass(9, &mut passing(9..20)),
            Place::Lost,
            "readers may have had others"
        );
        assert_eq!(sink.pass(20, &mut passing(20..BYTES.len())), Place::Next);
        let digest = sink.finish(BYTES.len() as u64, RangeSet::new()).await;
        assert_eq!(
            digest.expect("hashed"),
            Digest::of(Algorithm::Sha256, BYTES)
        );
    }

    #[tokio::test]
    async fn what_was_to_be_written_is_hashed_once() {
        let folder = tempfile::tempdir().expect("folder");
        let sink = relaying(folder.path()).await;
        sink.progress.lock().add(0, &passing(0..9).chunks);
        let mut hashed = Passing::new(passing(0..9).chunks, true);
        assert_eq!(sink.pass(0, &mut hashed), Place::Next);
        let mut unknown = Passing::new(passing(9..20).chunks, true);
        assert_eq!(sink.pass(9, &mut unknown), Place::Lost);
    }
}
