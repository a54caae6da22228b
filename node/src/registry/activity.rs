//! What a connection is doing, so that one that does nothing can be ended.
//!
//! The HTTP library knows one deadline for everything before a request is complete; clients need
//! two: a request that trickles in is an attack after seconds, an idle connection is normal for
//! minutes. A third bounds a client that has stopped reading.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Longest time from the first byte of a request to the end of its head, and from accepting a
/// connection to its first request.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// Longest time without a request. Clients let go after 30 to 120 s themselves (CLIENT-CONTRACT
/// T4); whoever waits longer does not race with their next request.
const IDLE_PATIENCE: Duration = Duration::from_secs(150);

/// Longest time in which a client takes no byte at all. CRI gives up a pull after 5 min without
/// progress, so nothing that lives is slower.
const WRITE_PATIENCE: Duration = Duration::from_secs(300);

/// Marks that writing is not blocked.
const FLOWING: u64 = u64::MAX;

/// What a connection is doing; shared by its stream, its requests and its watchdog.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    phase: Mutex<(Phase, Instant)>,
    /// Since when writing is blocked, in milliseconds after `began`.
    blocked_ms: AtomicU64,
}

/// Where a connection is between two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No request has begun.
    Idle,
    /// The head of a request is arriving.
    Head,
    /// A request is being answered.
    Busy,
}

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    /// The head of a request took too long.
    Head,
    /// No request came.
    Idle,
    /// The client does not read.
    Write,
}

impl Activity {
    /// Begins with a connection that owes its first request.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            phase: Mutex::new((Phase::Head, now)),
            blocked_ms: AtomicU64::new(FLOWING),
        }
    }

    /// Bytes have arrived.
    pub(super) fn note_read(&self) {
        let mut phase = self.phase.lock();
        if phase.0 == Phase::Idle {
            *phase = (Phase::Head, Instant::now());
        }
    }

    /// A request has arrived in whole.
    pub(super) fn note_request(&self) {
        *self.phase.lock() = (Phase::Busy, Instant::now());
    }

    /// The answer has been handed over.
    pub(super) fn note_answered(&self) {
        *self.phase.lock() = (Phase::Idle, Instant::now());
    }

    /// Bytes have gone out.
    pub(super) fn note_written(&self) {
        self.blocked_ms.store(FLOWING, Ordering::Relaxed);
    }

    /// The client takes no more bytes for now.
    pub(super) fn note_blocked(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(FLOWING - 1);
        // Only the first of several refusals counts: the client may be polled any number of times.
        let _ =
            self.blocked_ms
                .compare_exchange(FLOWING, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Returns when to look again.
    ///
    /// # Errors
    /// Why the connection is to be ended now.
    pub(super) fn check(&self, now: Instant) -> Result<Instant, Expired> {
        let blocked = self.blocked_ms.load(Ordering::Relaxed);
        if blocked != FLOWING {
            let deadline = self.began + Duration::from_millis(blocked) + WRITE_PATIENCE;
            return due(now, deadline, Expired::Write);
        }
        let (phase, since) = *self.phase.lock();
        match phase {
            Phase::Head => due(now, since + HEAD_PATIENCE, Expired::Head),
            // A request may begin at any time, and then its deadline is nearer.
            Phase::Idle => due(now, since + IDLE_PATIENCE, Expired::Idle)
                .map(|deadline| deadline.min(now + HEAD_PATIENCE)),
            Phase::Busy => Ok(now + HEAD_PATIENCE),
        }
    }
}

fn due(now: Instant, deadline: Instant, reason: Expired) -> Result<Instant, Expired> {
    if now >= deadline {
        Err(reason)
    } else {
        Ok(deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(duration: Duration) {
        tokio::time::advance(duration).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_trickles_in_expires() {
        let activity = Activity::new(Instant::now());
        assert_eq!(
            activity.check(Instant::now()),
            Ok(Instant::now() + HEAD_PATIENCE)
        );
        pass(HEAD_PATIENCE - Duration::from_millis(1)).await;
        activity.note_read();
        assert!(activity.check(Instant::now()).is_ok());
        pass(Duration::from_millis(1)).await;
        assert_eq!(activity.check(Instant::now()), Err(Expired::Head));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_as_long_as_it_takes() {
        let activity = Activity::new(Instant::now());
        activity.note_request();
        pass(Duration::from_secs(100_000)).await;
        assert!(activity.check(Instant::now()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_lives_longer_than_a_head() {
        let activity = Activity::new(Instant::now());
        activity.note_request();
        activity.note_answered();
        pass(IDLE_PATIENCE - Duration::from_secs(1)).await;
        assert!(activity.check(Instant::now()).is_ok());
        activity.note_read();
        pass(HEAD_PATIENCE).await;
        assert_eq!(activity.check(Instant::now()), Err(Expired::Head));
        activity.note_request();
        activity.note_answered();
        pass(IDLE_PATIENCE).await;
        assert_eq!(activity.check(Instant::now()), Err(Expired::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_expires() {
        let activity = Activity::new(Instant::now());
        activity.note_request();
        activity.note_blocked();
        pass(WRITE_PATIENCE / 2).await;
        activity.note_written();
        activity.note_blocked();
        pass(WRITE_PATIENCE / 2).await;
        activity.note_blocked();
        assert!(activity.check(Instant::now()).is_ok());
        pass(WRITE_PATIENCE / 2).await;
        assert_eq!(activity.check(Instant::now()), Err(Expired::Write));
    }
}
