//! Files that are looked at again while the node runs.
//!
//! Polling and not notification, because files in containers are often links that are swapped far
//! from the path that is configured. This room knows when to look, and keeps what could not be
//! used; what is read, and what it is good for, is the caller's.

use std::error::Error;
use std::future::Future;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;

/// How often files are looked at. Somebody who was removed is out soon after, and reading a few
/// kilobytes costs nothing.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Calls `look` over and over, where it may block, until `stopping` resolves.
///
/// # Cancel safety
/// Dropping the future ends the watching; a look that has begun is taken to its end.
pub async fn poll<L>(what: &'static str, look: L, stopping: impl Future<Output = ()>)
where
    L: Fn() + Clone + Send + 'static,
{
    let mut stopping = std::pin::pin!(stopping);
    loop {
        tokio::select! {
            () = &mut stopping => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        if let Err(error) = tokio::task::spawn_blocking(look.clone()).await {
            tracing::error!(%error, "{what} cannot be looked at");
        }
    }
}

/// A change of files that could not be used.
#[derive(Clone, Debug, Serialize)]
pub struct Refusal {
    /// When it was found, in seconds since 1970.
    pub at_unix_seconds: u64,
    /// What is wrong.
    pub message: String,
}

impl Refusal {
    /// Describes an error that was found now, with what is behind it.
    fn now(error: &dyn Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            at_unix_seconds: since.unwrap_or_default().as_secs(),
            message,
        }
    }
}

/// The content that could not be used, by what tells it from others, so that it is complained
/// about once.
#[derive(Debug)]
pub struct Unusable<K> {
    last: Mutex<Option<(K, Refusal)>>,
}

impl<K> Default for Unusable<K> {
    fn default() -> Self {
        Self {
            last: Mutex::default(),
        }
    }
}

impl<K: PartialEq> Unusable<K> {
    /// Returns what is wrong with the files as they are; `None` when they are in use.
    pub fn last(&self) -> Option<Refusal> {
        let last = self.last.lock();
        last.as_ref().map(|(_, refusal)| refusal.clone())
    }

    /// Whether this content was found unusable before.
    pub fn is_known(&self, content: &K) -> bool {
        matches!(&*self.last.lock(), Some((known, _)) if known == content)
    }

    /// Remembers content that cannot be used.
    pub fn refuse(&self, content: K, error: &dyn Error) {
        *self.last.lock() = Some((content, Refusal::now(error)));
    }

    /// Forgets what was wrong: the files are in use.
    pub fn clear(&self) {
        *self.last.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the file")]
    struct Unreadable(#[source] io::Error);

    #[test]
    fn what_is_refused_is_told_with_its_cause_until_it_is_mended() {
        let refused = Unusable::default();
        assert!(refused.last().is_none() && !refused.is_known(&1));
        refused.refuse(1, &Unreadable(io::Error::other("too far away")));
        let last = refused.last().expect("just refused");
        assert_eq!(last.message, "cannot read the file: too far away");
        assert!(refused.is_known(&1) && !refused.is_known(&2));
        refused.clear();
        assert!(refused.last().is_none() && !refused.is_known(&1));
    }

    #[tokio::test(start_paused = true)]
    async fn looks_are_repeated_until_the_end() {
        let looks = Arc::new(AtomicUsize::new(0));
        let (stop, stopping) = oneshot::channel::<()>();
        let stop = Arc::new(Mutex::new(Some(stop)));
        let counted = looks.clone();
        let look = move || {
            if counted.fetch_add(1, Ordering::Relaxed) == 2 {
                stop.lock().take();
            }
        };
        poll("nothing", look, async { drop(stopping.await) }).await;
        assert!(looks.load(Ordering::Relaxed) >= 3);
    }
}
