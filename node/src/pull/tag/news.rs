//! Whether an answer for a tag is new enough for a question.
//!
//! Decisions, and the waiting for a check that is under way; who is asked is said in `check`.

use millrace_protocol::oci::Digest;
use tokio::time::Instant;

use super::super::error::PullError;
use super::super::flights::Flights;
use super::super::manifest::ManifestAnswer;

/// From when on an answer is news for a question.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    /// It has come since then, from a check that may have begun before: the tag has a lifetime.
    Come(Instant),
    /// It is from a check that has begun since then: the tag is to be checked each time.
    Begun(Instant),
}

impl News {
    /// For a question that comes now.
    pub(super) fn from_now(is_each_time: bool) -> Self {
        if is_each_time {
            Self::Begun(Instant::now())
        } else {
            Self::Come(Instant::now())
        }
    }

    /// For a check that begins now and is shared by all who came before.
    pub(super) fn of_check(self) -> Self {
        match self {
            Self::Come(_) => self,
            Self::Begun(_) => Self::Begun(Instant::now()),
        }
    }

    pub(super) fn is(self, word: &Word) -> bool {
        match self {
            Self::Come(since) => word.came >= since,
            Self::Begun(since) => word.began >= since,
        }
    }

    /// Waits for a check that is under way, if that is news, else for the next.
    pub(super) async fn join<V, F>(
        self,
        checks: &Flights<String, V>,
        key: String,
        check: impl Fn() -> F,
    ) -> Result<V, PullError>
    where
        V: Clone + Send + Sync + 'static,
        F: Future<Output = Result<V, PullError>> + Send + 'static,
    {
        match self {
            Self::Come(_) => checks.join(key, check).await,
            Self::Begun(since) => checks.join_since(key, since, check).await,
        }
    }
}

/// What an upstream said of a tag, and when.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub(super) stated: Stated,
    /// When it was asked.
    pub(super) began: Instant,
    /// When it had answered.
    pub(super) came: Instant,
}

/// What an upstream says of a tag.
#[derive(Clone, Debug)]
pub(super) enum Stated {
    /// A digest that can be had by itself.
    Digest(Digest),
    /// A manifest whose digest cannot be verified: a signed schema 1 manifest.
    Unverifiable(ManifestAnswer),
}
