//! One task for equal questions that are asked at the same time.
//!
//! The task outlives those who asked, so its answer is there for whoever asks next.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Span;

use crate::task::Tasks;

use super::error::PullError;

/// The questions under way, by key; clones share them.
pub(super) struct Flights<K, V> {
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
    tasks: Tasks,
}

/// A question under way.
struct Flight<V> {
    began: Instant,
    answer: Answer<V>,
}

type Answer<V> = watch::Receiver<Option<Result<V, PullError>>>;

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(tasks: Tasks) -> Self {
        Self {
            running: Arc::default(),
            tasks,
        }
    }

    /// Waits for the answer to `key`, asking for it if nobody is.
    ///
    /// # Errors
    /// What the question ended with.
    /// # Cancel safety
    /// Dropping the future leaves the question running.
    pub(super) async fn join<F>(&self, key: K, ask: impl FnOnce() -> F) -> Result<V, PullError>
    where
        F: Future<Output = Result<V, PullError>> + Send + 'static,
    {
        self.enter(key, ask).land().await
    }

    /// As [`Flights::join`], for the answer to a question that was asked at `since` or later.
    ///
    /// All who come while an older one is under way share the one that follows it.
    ///
    /// # Errors
    /// What the question ended with.
    /// # Cancel safety
    /// As [`Flights::join`]; the following question is not asked if nobody is there to ask it.
    pub(super) async fn join_since<F>(
        &self,
        key: K,
        since: Instant,
        ask: impl Fn() -> F,
    ) -> Result<V, PullError>
    where
        F: Future<Output = Result<V, PullError>> + Send + 'static,
    {
        loop {
            let flight = self.enter(key.clone(), &ask);
            let began = flight.began;
            let answer = flight.land().await;
            if began >= since {
                return answer;
            }
        }
    }

    fn enter<F>(&self, key: K, ask: impl FnOnce() -> F) -> Flight<V>
    where
        F: Future<Output = Result<V, PullError>> + Send + 'static,
    {
        let mut running = self.running.lock();
        if let Some(flight) = running.get(&key) {
            return flight.clone();
        }
        let (sender, answer) = watch::channel(None);
        let began = Instant::now();
        let flight = Flight { began, answer };
        running.insert(key.clone(), flight.clone());
        let entry = Entry {
            running: Arc::clone(&self.running),
            key,
        };
        let question = ask();
        self.tasks.spawn(Span::current(), async move {
            let result = question.await;
            // Out of the table first: who asks now gets a new answer, not this one.
            drop(entry);
            let _ = sender.send(Some(result));
        });
        flight
    }
}

impl<V: Clone> Flight<V> {
    async fn land(mut self) -> Result<V, PullError> {
        let answered = self.answer.wait_for(Option::is_some).await;
        let answered = answered.map_err(|_| PullError::Stopped)?;
        answered.clone().unwrap_or(Err(PullError::Stopped))
    }
}

impl<V> Clone for Flight<V> {
    fn clone(&self) -> Self {
        Self {
            began: self.began,
            answer: self.answer.clone(),
        }
    }
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = self.running.lock().len();
        f.debug_struct("Flights")
            .field("running", &running)
            .finish_non_exhaustive()
    }
}

/// Takes a question out of the table, also when its task panics.
struct Entry<K: Eq + Hash, V> {
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Entry<K, V> {
    fn drop(&mut self) {
        self.running.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn equal_questions_are_asked_once() {
        let flights: Flights<&str, usize> = Flights::new(Tasks::default());
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let asked = Arc::clone(&asked);
            async move {
                tokio::task::yield_now().await;
                Ok(asked.fetch_add(1, Ordering::Relaxed))
            }
        };
        let (a, b) = tokio::join!(flights.join("k", ask), flights.join("k", ask));
        assert_eq!((a.ok(), b.ok()), (Some(0), Some(0)));
        assert_eq!(
            flights.join("k", ask).await.ok(),
            Some(1),
            "answers are not kept"
        );
    }

    #[tokio::test]
    async fn who_comes_too_late_for_a_question_shares_the_next_one() {
        let flights: Flights<&str, usize> = Flights::new(Tasks::default());
        let asked = Arc::new(AtomicUsize::new(0));
        let (land, landed) = watch::channel(false);
        let ask = || {
            let (asked, mut landed) = (Arc::clone(&asked), landed.clone());
            async move {
                let number = asked.fetch_add(1, Ordering::Relaxed);
                let _ = landed.wait_for(|landed| *landed).await;
                Ok(number)
            }
        };
        let join = async || {
            let since = Instant::now();
            flights.join_since("k", since, ask).await.ok()
        };
        let (first, second, third, any, ()) = tokio::join!(
            biased;
            join(),
            join(),
            join(),
            flights.join("k", ask),
            async { assert!(land.send(true).is_ok()) }
        );
        assert_eq!((first, any.ok()), (Some(0), Some(0)));
        assert_eq!((second, third), (Some(1), Some(1)));
    }

    #[tokio::test]
    async fn the_question_outlives_who_asked() {
        let flights: Flights<&str, ()> = Flights::new(Tasks::default());
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let (done, mut is_done) = tokio::sync::mpsc::channel(1);
        let join = flights.join("k", move || async move {
            let _ = finished.await;
            let _ = done.send(()).await;
            Ok(())
        });
        assert!(futures_util::FutureExt::now_or_never(join).is_none());
        finish.send(()).expect("the question waits");
        assert_eq!(is_done.recv().await, Some(()));
    }
}
