//! Taking bytes: checked where they come from other nodes, written, and hashed in order; or left to be
//! passed on where the blob is relayed.

use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::oci::Digest;
use parking_lot::Mutex;
use rangemap::RangeSet;

use super::passing::Passing;
use super::verification::{Arrived, Verification};
use super::{Sink, Storage, blocking};
use crate::store::{PartWriter, StoreError};

/// How much of what was written out of order is hashed behind each write, in bytes.
const BACKLOG_BYTES: u64 = 4 * 1024 * 1024;

/// How a batch was taken.
#[derive(Debug)]
pub(in crate::pull) enum Taken {
    /// It is in the file.
    Written,
    /// It is not kept; it goes to readers through the window.
    Relayed(Passing),
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
    /// The disk failed. A full disk is no error: the bytes are relayed.
    pub(in crate::pull) async fn take(
        &self,
        offset: u64,
        chunks: Vec<Bytes>,
        written: RangeSet<u64>,
    ) -> Result<Taken, StoreError> {
        let Storage::Kept(writer) = self.storage() else {
            return Ok(Taken::Relayed(Passing::new(chunks, false)));
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
            Err(error) if error.is_full() => {
                self.stop_for_want_of_room(&error).await;
                Ok(Taken::Relayed(Passing::new(chunks, in_order)))
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
                let in_order = progress.add(offset, &chunks);
                let until = progress.hashed().saturating_add(BACKLOG_BYTES);
                (in_order, progress.catch_up(Some(&writer), &written, until))
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
        let storage = self.storage();
        let taken = blocking(move || {
            let _turn = turn;
            let mut hasher = digest.algorithm().hasher();
            chunks.iter().for_each(|chunk| hasher.update(chunk));
            if hasher.finish() != digest {
                return Ok((Checked::Wrong(None), None));
            }
            let written = match storage.writer() {
                Some(writer) => writer.write(offset, &chunks).map(|()| true),
                None => Ok(false),
            };
            match written {
                Ok(true) => Ok((Checked::Right(Taken::Written), None)),
                Err(error) if !error.is_full() => Err(error),
                written => {
                    let relayed = Taken::Relayed(Passing::new(chunks, false));
                    Ok((Checked::Right(relayed), written.err()))
                }
            }
        });
        let (checked, full) = taken.await?;
        if let Some(error) = full {
            self.stop_for_want_of_room(&error).await;
        }
        Ok(checked)
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
        let storage = self.storage();
        let progress = Arc::clone(&self.progress);
        let digest = self.digest;
        let taken = blocking(move || {
            let _turn = turn;
            let taken = take_all(batch, &digest, storage.writer(), &progress)?;
            if let Some(writer) = storage.writer() {
                let mut progress = progress.lock();
                let until = progress.hashed().saturating_add(BACKLOG_BYTES);
                progress.catch_up(Some(writer), &written, until)?;
            }
            Ok(taken)
        });
        let (results, full) = taken.await?;
        if let Some(error) = full {
            self.stop_for_want_of_room(&error).await;
        }
        Ok(results)
    }
}

/// Takes chunks up to the first that is wrong. Returns what came of them, and what a disk said that is
/// full: from there on they are not written.
fn take_all(
    batch: Vec<Arrived>,
    digest: &Digest,
    mut writer: Option<&PartWriter>,
    progress: &Mutex<Verification>,
) -> Result<(Vec<Checked>, Option<StoreError>), StoreError> {
    let mut full = None;
    let mut results = Vec::with_capacity(batch.len());
    for chunk in batch {
        let checked = match chunk.take(digest, writer, progress) {
            Ok(checked) => checked,
            Err((error, passing)) if error.is_full() => {
                writer = None;
                full = Some(error);
                Checked::Right(Taken::Relayed(passing))
            }
            Err((error, _)) => return Err(error),
        };
        let is_wrong = matches!(checked, Checked::Wrong(_));
        results.push(checked);
        if is_wrong {
            break;
        }
    }
    Ok((results, full))
}
