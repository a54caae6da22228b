//! A stretch of a blob that somebody fetches, and that nobody else fetches as long as this lives.

use std::ops::Range;
use std::sync::Arc;

use millrace_protocol::chunk::CHUNK_BYTES;

use super::segment::SegmentId;
use super::transfer::Transfer;

/// A segment of a transfer; dropping it, also unused, lets others claim what it lacks.
#[derive(Debug)]
pub(super) struct Claimed<'a> {
    transfer: &'a Arc<Transfer>,
    id: SegmentId,
}

impl<'a> Claimed<'a> {
    pub(super) fn new(transfer: &'a Arc<Transfer>, id: SegmentId) -> Self {
        Self { transfer, id }
    }

    pub(super) fn id(&self) -> SegmentId {
        self.id
    }

    /// Returns the position and the end of what is left; the end may move closer meanwhile.
    pub(super) fn bounds(&self) -> (u64, u64) {
        self.transfer.state().segments.bounds(self.id)
    }

    /// Returns the indices of the chunks that are left, half-open.
    pub(super) fn chunks(&self) -> Range<u32> {
        let (position, end) = self.bounds();
        let index = |chunks: u64| u32::try_from(chunks).unwrap_or(u32::MAX);
        index(position / CHUNK_BYTES)..index(end.div_ceil(CHUNK_BYTES))
    }

    pub(super) fn is_over(&self) -> bool {
        let (position, end) = self.bounds();
        position >= end
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.transfer.change(|state| state.segments.finish(self.id));
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::oci::{Algorithm, Digest};

    use super::*;
    use crate::pull::rank::Rank;
    use crate::pull::transfer::State;

    #[test]
    fn what_was_claimed_in_vain_can_be_claimed_again() {
        let digest = Digest::of(Algorithm::Sha256, b"a blob");
        let (transfer, _far) = Transfer::new(digest, Rank::Node);
        let claim = || transfer.change(State::claim);
        let claimed = claim().map(|id| Claimed::new(&transfer, id));
        assert!(claimed.is_some_and(|claimed| !claimed.is_over()));
        let again = claim().map(|id| Claimed::new(&transfer, id));
        assert!(again.is_some());
        assert!(claim().is_none(), "somebody has it");
    }
}
