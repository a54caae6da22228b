//! Room for what is about to be written: reserved as bytes come, and what happens where there is none.

use std::ops::Range;

use rangemap::RangeSet;

use super::Sink;
use crate::store::StoreError;

/// Bytes that may be on their way to the file beside a batch: they are reserved before they come.
const MARGIN_BYTES: u64 = 4 * 1024 * 1024;

/// Least and most bytes that are reserved beyond that in one step. A step is as large as what has
/// come: a size is only what somebody says, and others are evicted for bytes alone.
const STEP_BYTES: (u64, u64) = (1024 * 1024, 64 * 1024 * 1024);

impl Sink {
    /// Makes sure that the disk has room for a batch behind what is `written`, and for some more;
    /// and, before the first, that it could have room for `size`. For what `is_awaited`, fills that
    /// nobody waits for make way; without room all the same the blob is relayed from here on.
    ///
    /// # Errors
    /// The disk failed; that it is full is an error only for what nobody waits for.
    pub(in crate::pull) async fn reserve(
        &self,
        size: Option<u64>,
        batch: Range<u64>,
        written: &RangeSet<u64>,
        is_awaited: bool,
    ) -> Result<(), StoreError> {
        let mut part = self.part.lock().await;
        let Some(open) = part.as_mut() else {
            return Ok(());
        };
        let here: u64 = written.iter().map(|range| range.end - range.start).sum();
        let here = here + (batch.end - batch.start);
        let total = ahead_of(here, size.unwrap_or(u64::MAX), open.reserved());
        open.expect(size.unwrap_or(0), batch.start);
        let mut reserved = open.reserve(total).await;
        if !is_awaited {
            return reserved;
        }
        if matches!(reserved, Err(StoreError::NoSpace { .. })) && self.orphans.make_way().await {
            reserved = open.reserve(total).await;
        }
        match reserved {
            Err(error) if error.is_full() => {
                let part = part.take();
                self.warn_of_relaying(&error);
                self.pass_on_from_here(part).await;
                Ok(())
            }
            result => result,
        }
    }

    /// Relays the blob from here on: the disk is full, which a write has found out.
    pub(super) async fn stop_for_want_of_room(&self, error: &StoreError) {
        if !self.is_relaying() {
            self.warn_of_relaying(error);
        }
        self.stop_storing().await;
    }

    fn warn_of_relaying(&self, error: &StoreError) {
        tracing::warn!(
            blob.digest = %self.digest, %error,
            "the store has no room: the blob is relayed without being kept"
        );
    }
}

/// Returns how many bytes are to be reserved when `here` have come of `size`.
fn ahead_of(here: u64, size: u64, reserved: u64) -> u64 {
    let needed = here.saturating_add(MARGIN_BYTES).min(size);
    if needed <= reserved {
        return reserved;
    }
    let (least, most) = STEP_BYTES;
    needed.saturating_add(here.clamp(least, most)).min(size)
}
