//! Where the bytes of one transfer go: hashed in order, and written to a part while the disk has
//! room, else passed through a bounded window.
//!
//! The values at the ends of chunks that hashing passes are the blob's chain: by it other nodes
//! check what they take from this one. Chunks from other nodes are checked here before they are
//! written, with the same pass over their bytes.

mod passing;
mod room;
mod taking;
mod verification;

use std::sync::Arc;

use millrace_protocol::chunk::ChainValue;
use millrace_protocol::oci::Digest;
use parking_lot::Mutex;
use rangemap::RangeSet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::store::{FileReader, Part, PartWriter, Pin, Sidecar, Store, StoreError};

use super::far::{FarChunk, FarChunks, FarHasher};
use super::orphans::Orphans;
pub(super) use passing::{Passing, Place};
pub(super) use taking::{Checked, Taken};
pub(super) use verification::{Arrived, Check};
use verification::{Chain, Verification};

/// Most writes at a time; there are fewer segments and batches.
const MAX_WRITES: u32 = 8;

/// What becomes of bytes that have come.
#[derive(Clone, Debug)]
enum Storage {
    /// They are written.
    Kept(PartWriter),
    /// They are passed on. What was written before can still be read, to hash it.
    PassedOn(Option<PartWriter>),
}

impl Storage {
    /// Returns the file to write to; `None` where nothing is kept any more.
    fn writer(&self) -> Option<&PartWriter> {
        match self {
            Self::Kept(file) => Some(file),
            Self::PassedOn(_) => None,
        }
    }

    /// Returns the file to read from what was written, if there ever was one.
    fn file(&self) -> Option<&PartWriter> {
        match self {
            Self::Kept(file) => Some(file),
            Self::PassedOn(file) => file.as_ref(),
        }
    }
}

/// The receiving end of one transfer.
#[derive(Debug)]
pub(super) struct Sink {
    digest: Digest,
    part: tokio::sync::Mutex<Option<Part>>,
    storage: Mutex<Storage>,
    progress: Arc<Mutex<Verification>>,
    chain: Chain,
    /// Of what comes out of order from an upstream; others are told of it in a cluster only.
    far: Option<Arc<Mutex<FarHasher>>>,
    /// They make way where there is no room.
    orphans: Orphans,
    /// Held while something is written, also by who has left meanwhile.
    writes: Arc<Semaphore>,
}

impl Sink {
    /// Opens the part of a digest, or goes without one when none can be made: that nothing can be
    /// kept is no reason to give nothing.
    ///
    /// # Errors
    /// This node lacks what it takes to open a file, and so to ask anybody.
    pub(super) async fn open(
        store: &Store,
        digest: &Digest,
        in_cluster: bool,
        orphans: &Orphans,
    ) -> Result<Self, StoreError> {
        let part = match store.part(digest).await {
            Ok(part) => Some(part),
            Err(error) if error.is_shortage() => return Err(error),
            Err(error) => {
                tracing::error!(
                    blob.digest = %digest, error = &error as &dyn std::error::Error,
                    "the store takes nothing: the blob is relayed without being kept"
                );
                None
            }
        };
        let chain = Chain::default();
        let verification = Verification::new(digest.algorithm(), Arc::clone(&chain));
        Ok(Self {
            digest: *digest,
            storage: Mutex::new(match &part {
                Some(part) => Storage::Kept(part.writer()),
                None => Storage::PassedOn(None),
            }),
            part: tokio::sync::Mutex::new(part),
            progress: Arc::new(Mutex::new(verification)),
            chain,
            far: in_cluster.then(Arc::default),
            orphans: orphans.clone(),
            writes: Arc::new(Semaphore::new(MAX_WRITES as usize)),
        })
    }

    /// Adds to `chain` what hashing has passed since.
    pub(super) fn publish_chain(&self, chain: &mut Vec<ChainValue>) {
        if let Some(new) = self.chain.lock().get(chain.len()..) {
            chain.extend_from_slice(new);
        }
    }

    /// As [`Sink::publish_chain`], up to the first value that is not as `stated`; no further than
    /// what is stated.
    ///
    /// # Errors
    /// The index of that value.
    pub(super) fn publish_agreed(
        &self,
        chain: &mut Vec<ChainValue>,
        stated: &[ChainValue],
    ) -> Result<(), u32> {
        let own = self.chain.lock();
        let known = chain.len();
        for (own, stated) in own.iter().skip(known).zip(stated.iter().skip(known)) {
            if own != stated {
                return Err(u32::try_from(chain.len()).unwrap_or(u32::MAX));
            }
            chain.push(own.clone());
        }
        Ok(())
    }

    /// Adds to `far` what came out of order since.
    pub(super) fn publish_far(&self, far: &mut FarChunks) {
        let found = self.far.as_ref().map(|far| far.lock().take());
        for (index, digest) in found.into_iter().flatten() {
            let stated_by = None;
            far.insert(index, FarChunk { digest, stated_by });
        }
    }

    /// Waits until nothing is being written any more by who has left: it must not come over what
    /// was checked better.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(super) async fn settled(&self) {
        let all = self.writes.acquire_many(MAX_WRITES).await;
        drop(all.expect("the semaphore is never closed"));
    }

    /// Waits until something may be written; the result goes with the write to its end.
    async fn turn(&self) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.writes).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    /// Returns what an earlier transfer left on disk, and a reader of the file.
    pub(super) async fn saved(&self) -> Option<(RangeSet<u64>, FileReader)> {
        let part = self.part.lock().await;
        let part = part.as_ref()?;
        Some((part.saved().clone(), part.reader()))
    }

    pub(super) fn is_relaying(&self) -> bool {
        self.storage.lock().writer().is_none()
    }

    fn storage(&self) -> Storage {
        self.storage.lock().clone()
    }

    /// Hashes whatever is written and not hashed yet, and returns the digest of the whole.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter than `size`.
    pub(super) async fn finish(
        &self,
        size: u64,
        written: RangeSet<u64>,
    ) -> Result<Digest, StoreError> {
        self.settled().await;
        let storage = self.storage();
        let progress = Arc::clone(&self.progress);
        blocking(move || {
            let mut progress = progress.lock();
            progress.catch_up(storage.file(), &written, size)?;
            Ok(progress.digest())
        })
        .await
    }

    /// Makes the verified blob visible, and keeps it from eviction while the result lives; `None` when
    /// it was relayed.
    ///
    /// # Errors
    /// A file operation failed; the blob is not kept then.
    pub(super) async fn commit(
        &self,
        size: u64,
        sidecar: Sidecar,
    ) -> Result<Option<Pin>, StoreError> {
        match self.part.lock().await.take() {
            Some(part) => part.commit(size, sidecar).await.map(Some),
            None => Ok(None),
        }
    }

    /// Keeps what was written for a later transfer.
    ///
    /// # Errors
    /// A file operation failed; nothing is kept then.
    pub(super) async fn suspend(&self, written: RangeSet<u64>) -> Result<(), StoreError> {
        // What is still being written is cut off: nobody was told of it.
        self.settled().await;
        match self.part.lock().await.take() {
            Some(part) if !written.is_empty() => part.suspend(written).await,
            Some(part) => {
                part.discard().await;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Drops the part and relays what still comes; readers that have the file open keep it.
    pub(super) async fn stop_storing(&self) {
        let part = self.part.lock().await.take();
        self.pass_on_from_here(part).await;
    }

    async fn pass_on_from_here(&self, part: Option<Part>) {
        {
            let mut storage = self.storage.lock();
            *storage = Storage::PassedOn(storage.file().cloned());
        }
        if let Some(part) = part {
            part.discard().await;
        }
    }
}

/// Runs hashing and writing on the blocking pool.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is gone, and with it whoever waits here.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;
    use millrace_protocol::oci::Algorithm;

    use super::*;
    use crate::store::Config;
    use crate::task::Tasks;

    #[tokio::test]
    async fn a_write_is_waited_for_when_who_began_it_has_left() {
        let folder = tempfile::tempdir().expect("folder");
        let tasks = Tasks::default();
        let config = Config {
            min_free: Some(0),
            max_size: Some(1 << 20),
            ..Config::new(folder.path())
        };
        let store = Store::open(&config, &tasks).await;
        let store = store.expect("opened");
        let bytes = Bytes::from_static(b"a blob of one chunk");
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let sink = Sink::open(&store, &digest, true, &Orphans::default()).await;
        let sink = sink.expect("opened");
        let check = Check {
            before: ChainValue::start(Algorithm::Sha256),
            after: None,
        };
        let chunk = Arrived {
            offset: 0,
            bytes: vec![bytes.clone()],
            check,
        };
        {
            // Nothing that is written ends while this is held.
            let _held = sink.progress.lock();
            let left = sink.take_checked(vec![chunk], RangeSet::new());
            assert!(left.now_or_never().is_none(), "it has begun");
            assert!(sink.settled().now_or_never().is_none());
        }
        sink.settled().await;
        let storage = sink.storage();
        let writer = storage.writer().expect("stored");
        let mut written = vec![0; bytes.len()];
        writer.read(0, &mut written).expect("written");
        assert_eq!(written, bytes);
    }
}
