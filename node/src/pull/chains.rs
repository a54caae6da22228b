//! The chains of blobs that are in the store, for nodes that take them from here.
//!
//! A fill leaves the chain it computed; for an older blob it is computed while the first node
//! takes the blob, once for all who ask, and kept while memory for it lasts. On the way the blob
//! is verified anew: one whose disk has changed it is removed.

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

    async fn compute(self, digest: Digest, blob: Arc<BlobFile>, sender: watch::Sender<Chain>) {
        let phase = match self.hash(&digest, &blob, &sender).await {
            Ok(actual) if actual == digest => ChainPhase::Whole,
            Ok(actual) => {
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

    async fn hash(
        &self,
        digest: &Digest,
        blob: &BlobFile,
        sender: &watch::Sender<Chain>,
    ) -> std::io::Result<Digest> {
        let mut hasher = ChainHasher::new(digest.algorithm());
        while hasher.hashed() < blob.size() {
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
        Ok(hasher.finish())
    }
}
