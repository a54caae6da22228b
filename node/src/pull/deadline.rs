//! How long one client's request may take until its headers leave, over all its steps together.
//!
//! Only the client stops waiting: what it waited for goes on behind, for whoever asks next. What
//! it is told instead, a known answer or an error, is decided where it waits.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};

use super::error::PullError;

/// Time that a request has for other nodes and upstreams; clients give up after 30 s (contract B5).
pub(super) const HEADER_BUDGET: Duration = Duration::from_secs(20);

/// Which part of the budget comes on top of it for what is known here already: the client has its
/// answer after 24 s, where the contract allows 25 s.
const REST: u32 = 5;

/// The times of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    began: Instant,
    /// Until then the request waits for others.
    asking: Instant,
    /// Until then the client has its answer.
    answer: Instant,
}

impl Deadline {
    /// Returns the times of a request that begins now.
    pub(super) fn within(budget: Duration) -> Self {
        let began = Instant::now();
        let asking = began + budget;
        Self {
            began,
            asking,
            answer: asking + budget / REST,
        }
    }

    /// Returns until when others are waited for.
    pub(super) fn asking(self) -> Instant {
        self.asking
    }

    /// Returns the times of a step that may take all that is left, because the client has nothing
    /// else to hope for.
    pub(super) fn to_the_last(self) -> Self {
        Self {
            asking: self.answer,
            ..self
        }
    }

    /// Waits for others, as long as may be.
    ///
    /// # Errors
    /// [`PullError::Late`].
    pub(super) fn for_others<F: Future>(
        self,
        future: F,
    ) -> impl Future<Output = Result<F::Output, PullError>> {
        self.until(self.asking, future)
    }

    /// Waits for what the client is told, as long as it can be told anything.
    ///
    /// # Errors
    /// [`PullError::Late`].
    pub(super) fn for_answer<F: Future>(
        self,
        future: F,
    ) -> impl Future<Output = Result<F::Output, PullError>> {
        self.until(self.answer, future)
    }

    /// No `async fn`: that would have its argument twice, and these are one within the other.
    fn until<F: Future>(
        self,
        time: Instant,
        future: F,
    ) -> impl Future<Output = Result<F::Output, PullError>> {
        timeout_at(time, future).map(move |timed| {
            timed.map_err(|_| PullError::Late {
                waited: self.began.elapsed(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    async fn waited(step: impl Future<Output = Result<(), PullError>>) -> Duration {
        match step.await {
            Err(PullError::Late { waited }) => waited,
            result => panic!("{result:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn steps_have_their_time_together() {
        let deadline = Deadline::within(HEADER_BUDGET);
        let slow = tokio::time::sleep(Duration::from_secs(15));
        assert!(deadline.for_others(slow).await.is_ok());
        let late = waited(deadline.for_others(pending())).await;
        assert_eq!(late.as_secs(), 20, "the second step has what is left");
        assert!(deadline.for_others(async {}).await.is_ok(), "it is there");
        let last = deadline.to_the_last();
        let late = waited(last.for_others(pending())).await;
        assert_eq!(late.as_secs(), 24);
        assert_eq!(waited(deadline.for_answer(pending())).await.as_secs(), 24);
    }
}
