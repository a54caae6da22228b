//! Passing bytes on that cannot be stored, at the pace of the fastest reader.

use bytes::Bytes;

use super::error::PullError;
use super::transfer::{State, Transfer};
use super::window::Window;

/// Passes consecutive `chunks`, beginning at `start`, through the transfer's window; `advance` is
/// told each new position under the lock of the state.
///
/// # Errors
/// [`PullError::Stopped`] when nobody reads any more, [`PullError::FellBehind`] when the bytes are
/// not the next ones.
/// # Cancel safety
/// Dropping the future loses the bytes that no reader has had.
pub(super) async fn relay(
    transfer: &Transfer,
    start: u64,
    chunks: Vec<Bytes>,
    advance: impl Fn(&mut State, u64),
) -> Result<(), PullError> {
    let mut watch = transfer.watch();
    let mut position = start;
    for chunk in chunks {
        let full = |window: &Option<Window>| window.as_ref().is_some_and(Window::is_full);
        // The channel cannot close: the caller holds the transfer.
        let _ = watch.wait_for(|state| !full(&state.window)).await;
        if !transfer.has_waiters() {
            return Err(PullError::Stopped);
        }
        position += chunk.len() as u64;
        let in_order = transfer.change(|state| {
            let window = state.window.get_or_insert_with(|| Window::new(start));
            let in_order = window.end() + chunk.len() as u64 == position;
            window.push(chunk);
            advance(state, position);
            in_order
        });
        if !in_order {
            return Err(PullError::FellBehind);
        }
    }
    Ok(())
}
