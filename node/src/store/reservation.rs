//! Room on its way to a part: what was taken and promised while nobody counts it yet.
//!
//! Making room takes a while, and whoever asked may have gone when it is done. So it is given back
//! with this value, unless the part takes it over. How much is asked for is decided in `part`.

use std::sync::Arc;

use super::Inner;
use super::error::StoreError;

/// Room that no part counts. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Reservation {
    inner: Arc<Inner>,
    /// Bytes that are taken, of which the file system has allocated none.
    bytes: u64,
    /// Bytes beyond these for which others could make way when they come.
    promised: u64,
}

impl Reservation {
    /// Takes over what was promised before.
    pub(super) fn new(inner: &Arc<Inner>, promised: u64) -> Self {
        Self {
            inner: Arc::clone(inner),
            bytes: 0,
            promised,
        }
    }

    /// Takes `more` bytes, once `new` ones are promised beyond what was, to a part that is said to
    /// become `size` bytes long; blocks.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] and [`StoreError::NoSpace`]; what was promised before stays so.
    pub(super) fn grow(&mut self, size: u64, new: u64, more: u64) -> Result<(), StoreError> {
        if new > 0 {
            self.inner.promise(size, new)?;
            self.promised += new;
        }
        let made = self.inner.make_room(more);
        if made.is_ok() {
            self.bytes += more;
            self.unpromise(self.promised.min(more));
        } else {
            self.unpromise(new);
        }
        made
    }

    fn unpromise(&mut self, bytes: u64) {
        self.inner.space.unpromise(bytes);
        self.promised -= bytes;
    }

    /// Hands over the bytes that are taken and those that are promised.
    pub(super) fn take_over(mut self) -> (u64, u64) {
        let taken = (self.bytes, self.promised);
        (self.bytes, self.promised) = (0, 0);
        taken
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.inner.space.allocated(self.bytes);
        self.inner.space.shrink(self.bytes);
        self.inner.space.unpromise(self.promised);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;
    use millrace_protocol::oci::{Algorithm, Digest};
    use tokio::runtime::Runtime;

    use super::*;
    use crate::store::space::Taken;
    use crate::store::{Config, Sidecar, Store};
    use crate::task::Tasks;

    /// Begins to reserve room that another blob has, and gives up while that makes way.
    async fn give_up(config: &Config, kept: u64) -> Arc<Inner> {
        let store = Store::open(config, &Tasks::default()).await;
        let store = store.expect("opened");
        store.wait_for_index().await;
        let bytes = Bytes::from(vec![1; 1_000]);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let part = store.part(&Digest::of(Algorithm::Sha256, b"other")).await;
        let mut part = part.expect("part");
        part.expect(800, 0);
        part.reserve(kept).await.expect("room");
        let stored = store.put_manifest(&digest, bytes, Sidecar::of(None, Vec::new()));
        stored.await.expect("stored");

        let eviction = store.inner.eviction.lock();
        let reserved = part.reserve(500).now_or_never();
        assert!(reserved.is_none(), "it waits for its turn to evict");
        drop(eviction);
        while store.status().blobs > 0 {
            tokio::task::yield_now().await;
        }
        Arc::clone(&store.inner)
    }

    #[test]
    fn room_that_nobody_waits_for_any_more_is_given_back() {
        // The first time nothing is promised yet.
        for kept in [0, 100] {
            let folder = tempfile::tempdir().expect("a folder");
            let config = Config {
                min_free: Some(0),
                max_size: Some(1_200),
                ..Config::new(folder.path())
            };
            let runtime = Runtime::new().expect("runtime");
            let inner = runtime.block_on(give_up(&config, kept));
            // Waits for what still runs.
            drop(runtime);
            assert_eq!(inner.space.taken(), Taken::default(), "{kept}");
        }
    }
}
