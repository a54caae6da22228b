//! Passing bytes on that cannot be stored, at the pace of the fastest reader.

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
/// Dropping the future drops the bytes; they are in the digest and in the window, or in neither.
pub(super) async fn relay(
    transfer: &Transfer,
    sink: &Sink,
    start: u64,
    mut passing: Passing,
    advance: impl FnOnce(&mut State),
) -> Result<bool, PullError> {
    let mut watch = transfer.watch();
    let full = |window: &Option<Window>| window.as_ref().is_some_and(Window::is_full);
    // The channel cannot close: the caller holds the transfer.
    let _ = watch.wait_for(|state| !full(&state.window)).await;
    if !transfer.has_waiters() {
        return Err(PullError::Stopped);
    }
    let written = transfer.state().written.clone();
    sink.catch_up(start, written).await?;
    match sink.pass(start, &mut passing) {
        Place::Next => {}
        Place::Ahead(next) => {
            // Whoever reads behind them is to look for another way.
            transfer.change(|state| _ = state.window.get_or_insert_with(|| Window::new(next)));
            return Ok(false);
        }
        Place::Lost => return Err(PullError::Stopped),
    }
    transfer.change(|state| {
        let State {
            window, written, ..
        } = state;
        let window = window.get_or_insert_with(|| Window::new(start));
        let mut position = start;
        for chunk in passing.chunks {
            let length = chunk.len() as u64;
            if !window.push(position, chunk, written) {
                return Err(PullError::Stopped);
            }
            position += length;
        }
        advance(state);
        Ok(true)
    })
}
