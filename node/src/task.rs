//! Tasks that have a name, a span and an end.
//!
//! Every task of the daemon is started through [`Tasks`], so that drain can ask all of them to
//! stop and wait until they have. This room does not decide what a task does when it is asked.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

/// The daemon's running tasks; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
}

impl Tasks {
    /// Starts `future` as a task inside `span`.
    ///
    /// The task should end soon after [`Tasks::stopping`] resolves. Dropping the returned handle
    /// detaches the task, it does not stop it.
    #[expect(clippy::disallowed_methods, reason = "the one place where tasks start")]
    pub fn spawn<F>(&self, span: Span, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(self.tracker.track_future(future.instrument(span)))
    }

    /// Resolves when the daemon has begun to stop.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub fn stopping(&self) -> WaitForCancellationFutureOwned {
        self.stopping.clone().cancelled_owned()
    }

    /// Whether the daemon has begun to stop.
    pub fn are_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Asks all tasks to stop and waits at most `patience` for them.
    ///
    /// Returns the number of tasks that were still running then.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting; the tasks have been asked all the same.
    pub async fn stop(&self, patience: Duration) -> usize {
        self.stopping.cancel();
        self.tracker.close();
        // Elapsed means that some tasks did not make it: the count below says how many.
        let _ = tokio::time::timeout(patience, self.tracker.wait()).await;
        self.tracker.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stop_waits_for_tasks_that_listen() {
        let tasks = Tasks::default();
        let stopping = tasks.stopping();
        let task = tasks.spawn(Span::none(), async move {
            stopping.await;
            "stopped"
        });
        assert_eq!(tasks.stop(Duration::from_secs(10)).await, 0);
        assert_eq!(task.await.expect("task ran"), "stopped");
    }

    #[tokio::test(start_paused = true)]
    async fn stop_counts_tasks_that_do_not() {
        let tasks = Tasks::default();
        tasks.spawn(Span::none(), std::future::pending::<()>());
        assert_eq!(tasks.stop(Duration::from_secs(10)).await, 1);
    }
}
