//! Futures that may not be there, for loops that wait for several things at a time.

use tokio::time::Instant;

/// Waits for `future`; for ever where there is none.
///
/// # Cancel safety
/// That of the future, which is only borrowed.
pub(super) async fn resolve<F: Future + Unpin>(future: Option<&mut F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Waits until `due`; for ever where there is no such time.
pub(super) async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
