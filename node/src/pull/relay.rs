//! Passing bytes on that cannot be stored, at the pace of the fastest reader.

use std::sync::Arc;

use super::error::PullError;
use super::sink::{Passing, Place, Sink};
use super::transfer::{State, Transfer};
use super::window::Window;

/// Passes bytes that begin at `start` through the transfer's window; `advance` changes the state with
/// them. Returns whether they were the next ones; nobody has had them otherwise.
///
/// # Errors
/// [`PullError::Stopped`] when nobody reads any more, or the digest cannot be found out any more;
/// [`PullError::Store`] when what was written before cannot be read.
/// # Cancel safety
/// As [`Sink::pass`].
pub(super) async fn relay(
    transfer: &Arc<Transfer>,
    sink: &Sink,
    start: u64,
    passing: Passing,
    advance: impl FnOnce(&mut State) + Send + 'static,
) -> Result<bool, PullError> {
    let mut watch = transfer.watch();
    let full = |window: &Option<Window>| window.as_ref().is_some_and(Window::is_full);
    // The channel cannot close: the caller holds the transfer.
    let _ = watch.wait_for(|state| !full(&state.window)).await;
    if !transfer.has_waiters() {
        return Err(PullError::Stopped);
    }
    let written = transfer.state().written.clone();
    let shown = Arc::clone(transfer);
    let show = move |chunks| {
        shown.change(|state| {
            let are_next = state.relay(start, chunks);
            advance(state);
            are_next
        })
    };
    match sink.pass(start, passing, written, show).await? {
        Place::Next => Ok(true),
        Place::Ahead(next) => {
            // Whoever reads behind them is to look for another way.
            transfer.change(|state| _ = state.window.get_or_insert_with(|| Window::new(next)));
            Ok(false)
        }
        Place::Lost => Err(PullError::Stopped),
    }
}
