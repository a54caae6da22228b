//! Waiting until something is true, instead of sleeping and hoping.
//!
//! How long a test waits is one variable, `MILLRACE_TEST_PATIENCE_SECONDS` (default 30), so that
//! a slow machine needs no change of code.

use std::time::Duration;

use tokio::time::Instant;

/// How often a condition is looked at. Short, because each look is cheap and tests add up.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Patience without `MILLRACE_TEST_PATIENCE_SECONDS`.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(30);

/// Returns how long a test waits for a condition.
pub fn patience() -> Duration {
    std::env::var("MILLRACE_TEST_PATIENCE_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .map_or(DEFAULT_PATIENCE, Duration::from_secs)
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within [`patience`]; the message names `what` was awaited.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    eventually_some(what, async || condition().await.then_some(())).await;
}

/// Waits until `attempt` yields a value and returns it.
///
/// # Panics
/// When there is none within [`patience`]; the message names `what` was awaited.
pub async fn eventually_some<T>(what: &str, attempt: impl AsyncFnMut() -> Option<T>) -> T {
    match within(patience(), attempt).await {
        Some(value) => value,
        None => panic!("waited {:?} in vain: {what}", patience()),
    }
}

/// Waits at most `limit` until `attempt` yields a value.
pub async fn within<T>(limit: Duration, mut attempt: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Ok(Some(value)) = tokio::time::timeout_at(deadline, attempt()).await {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_becomes_true_ends_the_wait() {
        let looks = std::cell::Cell::new(0);
        eventually("three looks", || {
            looks.set(looks.get() + 1);
            let enough = looks.get() == 3;
            async move { enough }
        })
        .await;
        assert_eq!(looks.get(), 3);
    }

    #[tokio::test]
    async fn a_condition_that_never_holds_ends_at_the_limit() {
        let never = within(Duration::from_millis(50), || async { None::<()> }).await;
        assert_eq!(never, None);
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_ends_at_the_limit() {
        let hung = within(
            Duration::from_millis(50),
            std::future::pending::<Option<()>>,
        )
        .await;
        assert_eq!(hung, None);
    }
}
