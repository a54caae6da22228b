//! What this node remembers of tags: in memory, and in the store for the next start.
//!
//! What a record is worth is decided in `policy`.

use std::time::Duration;

use millrace_protocol::oci::{Digest, Tag};
use moka::ops::compute::{CompResult, Op};
use moka::sync::Cache;

use crate::store::{Store, TagName, TagRecord};

use super::super::error::PullError;
use super::super::known::{Known, Now};
use super::super::negative::Negative;
use super::super::origin::Origin;
use super::{name, wanted};

/// Most tags whose records are kept in memory.
pub(super) const MAX_RECORDS: u64 = 10_000;

/// The records of a node.
#[derive(Debug)]
pub(super) struct Records {
    store: Store,
    negative: Negative,
    /// Whether what the upstream refuses stays known.
    stale_denied: bool,
    recent: Cache<String, Known>,
}

impl Records {
    pub(super) fn new(store: Store, negative: Negative, stale_denied: bool) -> Self {
        Self {
            store,
            negative,
            stale_denied,
            recent: Cache::new(MAX_RECORDS),
        }
    }

    /// Returns what is known of a tag.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn find(&self, name: &TagName) -> Result<Option<Known>, PullError> {
        let key = name.key();
        if let Some(known) = self.recent.get(&key) {
            return Ok(Some(known));
        }
        let Some(record) = self.store.tag(name).await? else {
            return Ok(None);
        };
        let kept = Known::kept(record, Now::read());
        // A check may have learnt more while the index was read.
        let newest = self.recent.entry(key).or_insert(kept);
        Ok(Some(newest.into_value()))
    }

    /// Records what the upstream said so long ago, unless it has said something else since: a manifest
    /// may take longer to come than the next check.
    pub(super) async fn remember(
        &self,
        origin: &Origin,
        tag: &Tag,
        credential: String,
        (digest, age): (Digest, Duration),
    ) {
        let name = name(origin, tag);
        let now = Now::read();
        let checked_at = now.seconds_before(age);
        let known = self.find(&name).await.ok().flatten();
        let resolved_at = known
            .map(|known| known.record)
            .filter(|known| known.digest == digest)
            .map(|known| known.resolved_at);
        let record = TagRecord {
            digest,
            resolved_at: resolved_at.unwrap_or(checked_at),
            checked_at,
        };
        let told = Known::told(record.clone(), age, now);
        let is_behind =
            |known: &Known| known.record.digest != digest && known.is_younger_than(age, now);
        let entered = self
            .recent
            .entry(name.key())
            .and_compute_with(|known| match known {
                Some(known) if is_behind(known.value()) => Op::Nop,
                _ => Op::Put(told),
            });
        if matches!(entered, CompResult::Unchanged(_)) {
            return;
        }
        if let Err(error) = self.store.put_tag(name, credential, record).await {
            tracing::warn!(%error, "a tag could not be recorded; it is lost at the next start");
        }
    }

    /// Forgets a tag that the upstream refuses, so that an outage does not bring it back.
    pub(super) async fn refused(&self, origin: &Origin, tag: &Tag, error: &PullError) {
        self.negative.remember(origin, wanted(tag), error);
        if !error.is_denial() || self.stale_denied {
            return;
        }
        let name = name(origin, tag);
        self.recent.invalidate(&name.key());
        if let Err(error) = self.store.remove_tag(name).await {
            tracing::warn!(%error, "a refused tag could not be forgotten");
        }
    }
}
