//! The chains of blobs that are in the store, for nodes that take them from here.
//!
//! A fill leaves the chain it computed; for an older blob it is computed while the first node
//! takes the blob, once for all who ask and as long as anybody listens, and kept while memory for it
//! lasts. On the way the blob is verified anew: one whose disk has changed it is removed.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_protocol::chunk::{CHUNK_BYTES, ChainHasher, ChainValue};
use millrace_protocol::oci::Digest;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::store::{BlobFile, Store};
use crate::task::Tasks;

/// Memory for chains that were used lately, in bytes: those of 256 GiB of content.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// Bytes of memory that one value counts.
const VALUE_BYTES: usize = size_of::<ChainValue>();

/// All chains of a node; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Chains {
    store: Store,
    tasks: Tasks,
    known: Cache<Digest, Arc<Vec<ChainValue>>>,
    running: Arc<Mutex<HashMap<Digest, watch::Receiver<Chain>>>>,
}

/// How far a chain is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    pub(super) values: Vec<ChainValue>,
    pub(super) phase: ChainPhase,
}

/// Whether more of a chain will follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ChainPhase {
    /// More values follow.
    #[default]
    Growing,
    /// It is whole, and the blob is right.
    Whole,
    /// The blob cannot be read, or is not what its digest promises.
    Bad,
}

impl Chains {
    pub(super) fn new(store: Store, tasks: Tasks) -> Self {
        let known = Cache::builder()
            .max_capacity(CACHE_BYTES)
            .weigher(|_, values: &Arc<Vec<ChainValue>>| {
                u32::try_from(values.len() * VALUE_BYTES + 256).unwrap_or(u32::MAX)
            })
            .build();
        Self {
            store,
            tasks,
            known,
            running: Arc::default(),
        }
    }

    /// Keeps the chain of a blob that was just verified.
    pub(super) fn put(&self, digest: &Digest, values: Vec<ChainValue>) {
        self.known.insert(*digest, Arc::new(values));
    }

    /// Returns the chain of a stored blob, to be watched while it is being computed.
    pub(super) fn watch(&self, digest: &Digest, blob: &Arc<BlobFile>) -> watch::Receiver<Chain> {
        if let Some(values) = self.known.get(digest) {
            let chain = Chain {
                values: values.to_vec(),
                phase: ChainPhase::Whole,
            };
            return watch::channel(chain).1;
        }
        let mut running = self.running.lock();
        if let Some(chain) = running.get(digest) {
            return chain.clone();
        }
        let (sender, chain) = watch::channel(Chain::default());
        running.insert(*digest, chain.clone());
        let span = tracing::info_span!("chain", blob.digest = %digest);
        let computing = self.clone().compute(*digest, Arc::clone(blob), sender);
        self.tasks.spawn(span, computing);
        chain
    }

    /// Computes a chain until it is whole, nobody listens any more or the node stops; in the last case
    /// whoever listens hears that no more comes.
    async fn compute(self, digest: Digest, blob: Arc<BlobFile>, sender: watch::Sender<Chain>) {
        let hashed = tokio::select! {
            hashed = self.hash(&digest, &blob, &sender) => hashed,
            () = self.tasks.stopping() => return,
        };
        let phase = match hashed {
            Ok(None) => return,
            Ok(Some(actual)) if actual == digest => ChainPhase::Whole,
            Ok(Some(actual)) => {
                tracing::error!(%actual, "a blob on disk is damaged; removed");
                drop(blob);
                if let Err(error) = self.store.remove(&digest).await {
                    tracing::error!(%error, "a damaged blob could not be removed");
                }
                ChainPhase::Bad
            }
            Err(error) => {
                tracing::error!(%error, "a blob on disk cannot be read");
                ChainPhase::Bad
            }
        };
        if phase == ChainPhase::Whole {
            self.put(&digest, sender.borrow().values.clone());
        }
        self.running.lock().remove(&digest);
        sender.send_modify(|chain| chain.phase = phase);
    }

    /// Hashes a blob; `None` when nobody listens any more.
    async fn hash(
        &self,
        digest: &Digest,
        blob: &BlobFile,
        sender: &watch::Sender<Chain>,
    ) -> std::io::Result<Option<Digest>> {
        let mut hasher = ChainHasher::new(digest.algorithm());
        while hasher.hashed() < blob.size() {
            if self.is_deserted(digest, sender) {
                return Ok(None);
            }
            let start = hasher.hashed();
            let end = (start + CHUNK_BYTES - start % CHUNK_BYTES).min(blob.size());
            let bytes = blob.reader().read(start, end).await?;
            let hashed = tokio::task::spawn_blocking(move || {
                let mut value = None;
                hasher.update(&bytes, |reached| value = Some(reached));
                (hasher, value)
            });
            let (behind, value) = hashed.await.map_err(std::io::Error::other)?;
            hasher = behind;
            if let Some(value) = value {
                sender.send_modify(|chain| chain.values.push(value));
            }
        }
        Ok(Some(hasher.finish()))
    }

    /// Whether nobody listens to a chain; it is no longer running then, and who comes begins anew.
    fn is_deserted(&self, digest: &Digest, sender: &watch::Sender<Chain>) -> bool {
        // Listeners are added under this lock. One receiver is kept here.
        let mut running = self.running.lock();
        let is_deserted = sender.receiver_count() <= 1;
        if is_deserted {
            running.remove(digest);
        }
        is_deserted
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use millrace_protocol::oci::Algorithm;

    use crate::store::Config;

    use super::*;

    /// A blob of four chunks that is stored, and the chains of its store.
    async fn stored(folder: &Path, tasks: &Tasks) -> (Chains, Digest, Arc<BlobFile>) {
        let bytes = vec![7; usize::try_from(CHUNK_BYTES * 4).expect("small")];
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let fan = folder.join("blobs/sha256").join(&digest.hex()[..2]);
        std::fs::create_dir_all(&fan).expect("made");
        std::fs::write(fan.join(digest.hex()), bytes).expect("written");
        let store = Store::open(&Config::new(folder), tasks).await;
        let store = store.expect("opened");
        let blob = store.blob(&digest).await.expect("read").expect("is there");
        (Chains::new(store, tasks.clone()), digest, Arc::new(blob))
    }

    async fn whole(mut chain: watch::Receiver<Chain>) -> bool {
        let ended = chain.wait_for(|chain| chain.phase != ChainPhase::Growing);
        let ended = tokio::time::timeout(Duration::from_secs(20), ended).await;
        let ended = ended.expect("it ends");
        ended.is_ok_and(|chain| chain.phase == ChainPhase::Whole)
    }

    #[tokio::test]
    async fn a_chain_that_nobody_listens_to_is_left() {
        let (folder, tasks) = (tempfile::tempdir().expect("folder"), Tasks::default());
        let (chains, digest, blob) = stored(folder.path(), &tasks).await;
        // It has not begun before somebody waits.
        drop(chains.watch(&digest, &blob));
        while !chains.running.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(chains.known.get(&digest).is_none(), "it was not computed");
        let (one, other) = (chains.watch(&digest, &blob), chains.watch(&digest, &blob));
        drop(one);
        assert!(whole(other).await, "who comes then begins anew");
        assert_eq!(
            chains.known.get(&digest).map(|values| values.len()),
            Some(4)
        );
    }

    #[tokio::test]
    async fn a_chain_ends_with_the_node() {
        let (folder, tasks) = (tempfile::tempdir().expect("folder"), Tasks::default());
        let (chains, digest, blob) = stored(folder.path(), &tasks).await;
        let chain = chains.watch(&digest, &blob);
        assert_eq!(tasks.stop(Duration::from_secs(20)).await, 0);
        assert!(!whole(chain).await);
    }
}
