//! What other nodes are told of a tag, with its age.
//!
//! Who asks decides what it does with it.

use std::time::Duration;

use millrace_protocol::oci::{Digest, Tag};

use super::super::error::PullError;
use super::super::known::Now;
use super::super::origin::Origin;
use super::super::policy::Policy;
use super::news::{News, Stated};
use super::{Tags, name, wanted};

impl Tags {
    /// Returns what a tag points to and how old that is, for a node whose home of it this is.
    ///
    /// # Errors
    /// Why the upstream does not tell.
    /// # Cancel safety
    /// Dropping the future leaves a check running.
    pub(in crate::pull) async fn resolve_as_home(
        &self,
        origin: &Origin,
        tag: &Tag,
        max_age: Duration,
    ) -> Result<(Digest, Duration), PullError> {
        let news = News::from_now(max_age.is_zero());
        let max_age = match (self.policy(origin, tag), self.healed()) {
            // A node for which no split has healed yet may ask for less.
            (Policy::Ttl(_), Some(healed)) => max_age.min(healed),
            _ => max_age,
        };
        if let Some((digest, age)) = self.recall(origin, tag).await
            && age < max_age
        {
            return Ok((digest, age));
        }
        self.shared.negative.check(origin, wanted(tag))?;
        let word = self.ask_upstream(origin, tag, news).await?;
        match word.stated {
            Stated::Digest(digest) => Ok((digest, word.began.elapsed())),
            // Everybody has to ask for the bytes.
            Stated::Unverifiable(_) => Err(PullError::Unconfigured),
        }
    }

    /// Returns what this node last knew of a tag, and the time since then or a little more, if that is
    /// known.
    pub(in crate::pull) async fn recall(
        &self,
        origin: &Origin,
        tag: &Tag,
    ) -> Option<(Digest, Duration)> {
        let known = self.shared.records.find(&name(origin, tag)).await;
        let known = known.ok()??;
        let age = known.age(Now::read())?;
        Some((known.record.digest, age))
    }
}
