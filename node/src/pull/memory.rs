//! Memory for chunks that come from other nodes: bounded for all takes together, one chunk for each
//! at least.
//!
//! A take holds one chunk for as long as it runs, from its arrival until it is written, so that none
//! waits for another to end as long as there are not more takes than chunks. What makes it fast is
//! several chunks at a time: those are lent one by one, and only as far as nobody lacks his first.
//! Bookkeeping only; the chunks are `take`'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::orphans::Orphans;

/// Most chunks that all takes together hold in memory: 128 MiB. As many takes can run at a time, as
/// downloads from one upstream by default.
const MAX_CHUNKS: usize = 512;

/// The chunks that all takes may hold; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    chunks: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    orphans: Orphans,
}

/// What one take may hold; dropping it gives back what none of its chunks hold.
#[derive(Debug)]
pub(super) struct Share {
    memory: Memory,
    /// The chunk that is this take's own.
    own: Arc<Semaphore>,
    _first: OwnedSemaphorePermit,
    /// Whether nobody waits for what is taken.
    is_copy: bool,
}

/// The right to hold a chunk, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    _permit: OwnedSemaphorePermit,
}

impl Memory {
    pub(super) fn new(orphans: Orphans) -> Self {
        Self {
            chunks: Arc::new(Semaphore::new(MAX_CHUNKS)),
            waiting: Arc::default(),
            orphans,
        }
    }

    /// Waits until a take may hold its first chunk; orphans make way for it.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue.
    pub(super) async fn share(&self) -> Share {
        let first = match Arc::clone(&self.chunks).try_acquire_owned() {
            Ok(first) => first,
            Err(_) => {
                let _waiting = Waiting::new(&self.waiting);
                self.orphans.press();
                let first = Arc::clone(&self.chunks).acquire_owned().await;
                first.expect("the semaphore is never closed")
            }
        };
        self.with(first, false)
    }

    /// Lets a take hold its first chunk that nobody waits for; `None` where it would have to wait.
    pub(super) fn copy_share(&self) -> Option<Share> {
        let first = Arc::clone(&self.chunks).try_acquire_owned().ok()?;
        Some(self.with(first, true))
    }

    fn with(&self, first: OwnedSemaphorePermit, is_copy: bool) -> Share {
        Share {
            memory: self.clone(),
            own: Arc::new(Semaphore::new(1)),
            _first: first,
            is_copy,
        }
    }

    /// Lends so many chunks if they are free now.
    pub(super) fn try_room(&self, chunks: u32) -> Option<Room> {
        let permit = Arc::clone(&self.chunks).try_acquire_many_owned(chunks);
        permit.ok().map(|permit| Room { _permit: permit })
    }

    /// Returns how many chunks takes hold or keep for what arrives.
    pub(super) fn taken(&self) -> usize {
        MAX_CHUNKS.saturating_sub(self.chunks.available_permits())
    }

    /// Returns how many takes wait for their first chunk.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl Share {
    /// Returns the room of the take's own chunk if none of its chunks has it.
    pub(super) fn own(&self) -> Option<Room> {
        let permit = Arc::clone(&self.own).try_acquire_owned();
        permit.ok().map(|permit| Room { _permit: permit })
    }

    /// Returns room beyond that if nobody needs it more: for a copy only out of what is more than half.
    pub(super) fn more(&self) -> Option<Room> {
        let free = self.memory.chunks.available_permits();
        if self.is_copy && free <= MAX_CHUNKS / 2 {
            return None;
        }
        self.memory.try_room(1)
    }
}

/// Somebody who waits, as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    /// Memory of which all is taken but so many chunks.
    fn left(chunks: usize) -> (Memory, Option<Room>) {
        let memory = Memory::new(Orphans::default());
        let taken = u32::try_from(MAX_CHUNKS - chunks).expect("small");
        let taken = memory.try_room(taken);
        (memory, taken)
    }

    #[test]
    fn a_chunk_for_each_take_goes_before_a_second_for_any() {
        let (memory, _taken) = left(2);
        let first = memory.share().now_or_never().expect("free");
        let extra = first.more().expect("free");
        let mut second = Box::pin(memory.share());
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!(memory.waiting(), 1);
        drop(extra);
        assert!(first.more().is_none(), "somebody waits for it");
        let second = second.now_or_never().expect("given back");
        assert_eq!(memory.waiting(), 0);
        drop(first);
        assert!(second.more().is_some());
    }

    #[test]
    fn a_copy_takes_nothing_that_others_may_need() {
        let (memory, taken) = left(MAX_CHUNKS / 2 + 2);
        let copy = memory.copy_share().expect("free");
        let extra = copy.more().expect("more than half is free");
        assert!(copy.more().is_none());
        let other = memory.share().now_or_never().expect("free");
        assert!(other.more().is_some());
        drop(extra);
        drop(taken);
        let (memory, _taken) = left(0);
        assert!(memory.copy_share().is_none(), "it does not wait");
    }

    #[test]
    fn who_waits_presses_orphans() {
        let (memory, _taken) = left(0);
        let mut pressed = Box::pin(memory.orphans.pressed());
        assert!(pressed.as_mut().now_or_never().is_none());
        assert!(memory.share().now_or_never().is_none());
        assert!(pressed.now_or_never().is_some());
    }

    #[test]
    fn the_own_chunk_comes_back_when_it_is_written() {
        let (memory, _taken) = left(1);
        let share = memory.share().now_or_never().expect("free");
        let own = share.own().expect("free");
        assert!(share.own().is_none());
        drop(own);
        assert!(share.own().is_some());
    }
}
