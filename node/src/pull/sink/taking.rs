//! Taking bytes: written, hashed in order and checked where they come from other nodes, or only hashed
//! and passed on where the blob is relayed.

use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::oci::Digest;
use rangemap::RangeSet;

use super::verification::Arrived;
use super::{Sink, blocking};
use crate::store::{PartWriter, StoreError};

/// How much of what was written out of order is hashed behind each write, in bytes.
const BACKLOG_BYTES: u64 = 4 * 1024 * 1024;

/// How a batch was taken.
#[derive(Debug)]
pub(in crate::pull) enum Taken {
    /// It is in the file.
    Written,
    /// It is only hashed; it goes to readers through the window.
    Relayed(Vec<Bytes>),
}

/// Whether a chunk from another node was taken.
#[derive(Debug)]
pub(in crate::pull) enum Checked {
    /// It fits its check.
    Right(Taken),
    /// It does not and is dropped. For a last chunk with the digest that the whole would have had.
    Wrong(Option<Digest>),
}

impl Sink {
    /// Takes the bytes at `offset`; `written` is what the file has already.
    ///
    /// # Errors
    /// The disk failed. A full disk is no error while bytes come in order: they are relayed.
    pub(in crate::pull) async fn take(
        &self,
        offset: u64,
        chunks: Vec<Bytes>,
        written: RangeSet<u64>,
    ) -> Result<Taken, StoreError> {
        let writer = self.writer.lock().clone();
        let Some(writer) = writer else {
            return Ok(self.relay(offset, chunks).await);
        };
        // Beside each other: hashing takes as long as everything else together.
        let hashing = self.hash_beside(writer.clone(), offset, chunks.clone(), written);
        let turn = self.turn().await;
        let writing = blocking(move || {
            let _turn = turn;
            (writer.write(offset, &chunks), chunks)
        });
        let ((in_order, hashed), (result, chunks)) = tokio::join!(hashing, writing);
        match result {
            Ok(()) => hashed.map(|()| Taken::Written),
            Err(error) if error.is_full() && in_order => {
                tracing::warn!(
                    blob.digest = %self.digest, %error,
                    "the disk is full: the rest of the blob is relayed without being kept"
                );
                self.stop_storing().await;
                Ok(Taken::Relayed(chunks))
            }
            Err(error) => Err(error),
        }
    }

    /// Hashes a batch if its bytes are the next ones, and some of what was `written` behind them;
    /// returns whether they were.
    async fn hash_beside(
        &self,
        writer: PartWriter,
        offset: u64,
        chunks: Vec<Bytes>,
        written: RangeSet<u64>,
    ) -> (bool, Result<(), StoreError>) {
        let progress = Arc::clone(&self.progress);
        let far = self.far.clone();
        blocking(move || {
            let (in_order, caught_up) = {
                let mut progress = progress.lock();
                let in_order = progress.hashed() == offset;
                progress.add(offset, &chunks);
                let until = progress.hashed().saturating_add(BACKLOG_BYTES);
                (in_order, progress.catch_up(&writer, &written, until))
            };
            if let Some(far) = far.filter(|_| !in_order) {
                far.lock().add(offset, &chunks);
            }
            (in_order, caught_up)
        })
        .await
    }

    /// Takes a whole chunk at `offset` ahead of the chain if it has the digest that was stated.
    /// It is hashed in order later, from the file.
    ///
    /// # Errors
    /// The disk failed.
    pub(in crate::pull) async fn take_far(
        &self,
        offset: u64,
        chunks: Vec<Bytes>,
        digest: Digest,
    ) -> Result<Checked, StoreError> {
        let turn = self.turn().await;
        let writer = self.writer.lock().clone();
        blocking(move || {
            let _turn = turn;
            let mut hasher = digest.algorithm().hasher();
            chunks.iter().for_each(|chunk| hasher.update(chunk));
            if hasher.finish() != digest {
                return Ok(Checked::Wrong(None));
            }
            let Some(writer) = writer else {
                return Ok(Checked::Right(Taken::Relayed(chunks)));
            };
            writer.write(offset, &chunks)?;
            Ok(Checked::Right(Taken::Written))
        })
        .await
    }

    /// Takes whole chunks if they fit their checks; what comes behind the first that does not is
    /// dropped, and the result ends with it.
    ///
    /// # Errors
    /// As [`Sink::take`].
    pub(in crate::pull) async fn take_checked(
        &self,
        batch: Vec<Arrived>,
        written: RangeSet<u64>,
    ) -> Result<Vec<Checked>, StoreError> {
        let turn = self.turn().await;
        let writer = self.writer.lock().clone();
        let progress = Arc::clone(&self.progress);
        let digest = self.digest;
        blocking(move || {
            let _turn = turn;
            let mut results = Vec::with_capacity(batch.len());
            for chunk in batch {
                let checked = chunk.take(&digest, writer.as_ref(), &progress)?;
                let is_wrong = matches!(checked, Checked::Wrong(_));
                results.push(checked);
                if is_wrong {
                    break;
                }
            }
            if let Some(writer) = writer {
                let mut progress = progress.lock();
                let until = progress.hashed().saturating_add(BACKLOG_BYTES);
                progress.catch_up(&writer, &written, until)?;
            }
            Ok(results)
        })
        .await
    }

    async fn relay(&self, offset: u64, chunks: Vec<Bytes>) -> Taken {
        let progress = Arc::clone(&self.progress);
        blocking(move || {
            progress.lock().add(offset, &chunks);
            Taken::Relayed(chunks)
        })
        .await
    }
}
