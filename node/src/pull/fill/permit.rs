//! Whether a fill may begin, and until when it may go on.
//!
//! What somebody waits for needs nothing. A copy waits for a place among the copies first; a fill
//! that everybody has left goes on as one of the orphans, if there is a place among them. Both make
//! way when others need the room (`orphans`). How a fill is suspended, and what becomes of what it
//! has, is not decided here.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::pull::error::PullError;
use crate::pull::orphans::{Orphans, Place};
use crate::pull::sink::Sink;
use crate::pull::table::Table;
use crate::pull::transfer::Transfer;
use crate::task::Tasks;

use super::Fillers;

/// The permit of one fill.
#[derive(Debug)]
pub(super) struct Permit {
    transfer: Arc<Transfer>,
    table: Table,
    tasks: Tasks,
    orphans: Orphans,
    /// Among the orphans or copies, while it is one: until what it has is kept.
    place: Mutex<Option<Place>>,
}

impl Permit {
    pub(super) fn new(fillers: &Fillers, transfer: &Arc<Transfer>) -> Self {
        Self {
            transfer: Arc::clone(transfer),
            table: fillers.table.clone(),
            tasks: fillers.tasks.clone(),
            orphans: fillers.orphans.clone(),
            place: Mutex::default(),
        }
    }

    /// Waits for a place, where this is for a copy and as long as it is nothing more.
    ///
    /// # Errors
    /// It is to make way before it has begun.
    pub(super) async fn granted(&self) -> Result<(), PullError> {
        let mut waiters = self.transfer.watch_waiters();
        loop {
            let _queued = self.transfer.queue();
            tokio::select! {
                biased;
                () = self.transfer.awaited() => return Ok(()),
                place = self.orphans.enter_copy() => {
                    *self.place.lock() = Some(place);
                    return Ok(());
                }
                () = self.orphans.pressed() => {}
                () = self.tasks.stopping() => {}
                // An error cannot be: the transfer is here.
                _ = waiters.wait_for(|waiters| *waiters == 0) => {}
            }
            self.leave()?;
        }
    }

    /// Ends the transfer, which is to make way, unless somebody waits for it by now.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn leave(&self) -> Result<(), PullError> {
        let is_over = self.tasks.are_stopping() || self.table.leave(&self.transfer);
        if is_over {
            Err(PullError::Stopped)
        } else {
            Ok(())
        }
    }

    /// Resolves when the fill should stop although it could go on: the node stops, or nobody
    /// waits and there are too many such fills, or to be none, or others need the room.
    ///
    /// Who makes a copy waits for nothing, so it makes way as an orphan does.
    pub(super) async fn withdrawn(&self, sink: &Sink) -> PullError {
        let stopping = self.tasks.stopping();
        tokio::select! {
            () = stopping => {}
            () = self.orphaned(sink) => {}
        }
        PullError::Stopped
    }

    async fn orphaned(&self, sink: &Sink) {
        let mut waiters = self.transfer.watch_waiters();
        loop {
            let pressed = self.orphans.pressed();
            let is_awaited = self.transfer.is_awaited();
            let is_orphan = *waiters.borrow_and_update() == 0;
            let is_spare = is_orphan || !is_awaited;
            if is_spare && sink.is_relaying() {
                return;
            }
            if is_orphan && !(is_awaited && self.has_place()) {
                return;
            }
            if !is_spare {
                *self.place.lock() = None;
            }
            tokio::select! {
                changed = waiters.changed() => if changed.is_err() { return },
                () = pressed, if is_spare => return,
            }
        }
    }

    /// Whether there is a place for it among the orphans; it has it then.
    fn has_place(&self) -> bool {
        let mut place = self.place.lock();
        if place.is_none() {
            *place = self.orphans.enter();
        }
        place.is_some() && !self.orphans.are_closed()
    }
}
