//! Bytes that are relayed because nothing can be kept: they are hashed at the instant at which readers
//! get them, so that the digest is that of what readers had and of nothing else.
//!
//! How fast they go, and to whom, is `relay`'s.

use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::chunk::{ChainHasher, ChainValue};
use rangemap::RangeSet;

use super::verification::Verification;
use super::{Sink, blocking};
use crate::store::StoreError;

/// Bytes on their way to readers.
#[derive(Debug)]
pub(in crate::pull) struct Passing {
    chunks: Vec<Bytes>,
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
}

impl Sink {
    /// Adds bytes from `start` on to the digest, behind what is `written` before them, and has them
    /// shown, if they are the next ones; `show` says whether readers can have them.
    ///
    /// # Errors
    /// What was written cannot be read.
    /// # Cancel safety
    /// Bytes are hashed and shown, or neither; both may still happen when dropped, until
    /// [`Sink::settled`].
    pub(in crate::pull) async fn pass(
        &self,
        start: u64,
        passing: Passing,
        written: RangeSet<u64>,
        show: impl FnOnce(Vec<Bytes>) -> bool + Send + 'static,
    ) -> Result<Place, StoreError> {
        let turn = self.turn().await;
        let storage = self.storage();
        let progress = Arc::clone(&self.progress);
        blocking(move || {
            let _turn = turn;
            let mut progress = progress.lock();
            progress.catch_up(storage.file(), &written, start)?;
            let Passing { chunks, hash } = passing;
            Ok(match progress.pass(start, &chunks, hash) {
                // Under the lock, so that nothing comes between.
                Place::Next if !show(chunks) => Place::Lost,
                place => place,
            })
        })
        .await
    }
}

impl Verification {
    /// Adds bytes that belong at `start` to the digest, unless it has them.
    fn pass(&mut self, start: u64, chunks: &[Bytes], hash: Hash) -> Place {
        let lengths = chunks.iter().map(|chunk| chunk.len() as u64);
        let end = start + lengths.sum::<u64>();
        match hash {
            Hash::Done => {}
            _ if self.hashed() < start => return Place::Ahead(self.hashed()),
            _ if self.hashed() > start => return Place::Lost,
            Hash::ToDo => {
                self.add(start, chunks);
            }
            Hash::Checked(checked) => self.adopt(start, checked.0, checked.1),
        }
        if self.hashed() < end {
            return Place::Lost;
        }
        Place::Next
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use millrace_protocol::oci::{Algorithm, Digest};
    use parking_lot::Mutex;

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

    fn passing(range: Range<usize>) -> Passing {
        Passing::new(vec![Bytes::from_static(&BYTES[range])], false)
    }

    #[tokio::test]
    async fn the_digest_is_of_the_bytes_that_were_passed_on_in_order() {
        let folder = tempfile::tempdir().expect("folder");
        let sink = relaying(folder.path()).await;
        let shown = Arc::new(Mutex::new(Vec::new()));
        let pass = async |range: Range<usize>| {
            let shown = Arc::clone(&shown);
            let show = move |chunks: Vec<Bytes>| {
                shown.lock().extend(chunks.concat());
                true
            };
            let start = range.start as u64;
            let passed = sink.pass(start, passing(range), RangeSet::new(), show);
            passed.await.expect("hashed")
        };
        assert_eq!(pass(9..20).await, Place::Ahead(0));
        assert_eq!(pass(0..9).await, Place::Next);
        assert_eq!(pass(9..20).await, Place::Next);
        let again = pass(9..20).await;
        assert_eq!(again, Place::Lost, "readers may have had others");
        assert_eq!(pass(20..BYTES.len()).await, Place::Next);
        assert_eq!(*shown.lock(), BYTES);
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
        let pass = async |range: Range<usize>| {
            let passing = Passing::new(passing(range.clone()).chunks, true);
            let start = range.start as u64;
            let passed = sink.pass(start, passing, RangeSet::new(), |_| true);
            passed.await.expect("hashed")
        };
        assert_eq!(pass(0..9).await, Place::Next);
        assert_eq!(pass(9..20).await, Place::Lost);
    }
}
