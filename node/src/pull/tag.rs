//! Resolving tags: known answer, check at the upstream, stale answer.
//!
//! A check is one `HEAD`, and a `GET` by digest only for a manifest that is not here (contract
//! U6). Equal checks run once. What a record is worth is decided in `policy`.

use millrace_protocol::oci::{Digest, Reference, Tag};
use moka::sync::Cache;
use tokio::time::Instant;

use crate::store::{Store, TagName, TagRecord};
use crate::task::Tasks;

use super::HEADER_BUDGET;
use super::config::Config;
use super::error::PullError;
use super::flights::Flights;
use super::manifest::{ManifestAnswer, Manifests};
use super::negative::Negative;
use super::origin::Origin;
use super::policy::{Freshness, Policies};

/// Most tags whose records are kept in memory.
const MAX_RECORDS: u64 = 10_000;

/// The tags of a node; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Tags {
    shared: std::sync::Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    manifests: Manifests,
    negative: Negative,
    policies: Policies,
    config: Config,
    records: Cache<String, TagRecord>,
    checks: Flights<String, ManifestAnswer>,
}

impl Tags {
    pub(super) fn new(
        store: Store,
        tasks: Tasks,
        manifests: Manifests,
        negative: Negative,
        config: Config,
    ) -> Self {
        let shared = Shared {
            store,
            manifests,
            negative,
            policies: Policies::new(&config),
            config,
            records: Cache::new(MAX_RECORDS),
            checks: Flights::new(tasks),
        };
        Self {
            shared: shared.into(),
        }
    }

    /// Returns the manifest that a tag points to, by the tag's policy.
    ///
    /// # Errors
    /// Why it cannot be had.
    /// # Cancel safety
    /// Dropping the future leaves a check running.
    pub(super) async fn resolve(
        &self,
        origin: &Origin,
        tag: &Tag,
    ) -> Result<ManifestAnswer, PullError> {
        let Shared {
            policies, config, ..
        } = &*self.shared;
        let key = format!("{}/{}:{tag}", origin.upstream.name(), origin.repository);
        let Some(record) = self.record(origin, tag, &key).await? else {
            return self.first(origin, tag, &key).await;
        };
        let policy = policies.of(origin.upstream.name(), &origin.repository, tag);
        match policies.freshness(policy, &record, unix_now()) {
            Freshness::Fresh => self.fresh(origin, tag, &key, &record.digest).await,
            Freshness::Stale { if_slow, if_away } => {
                let check = self.check(origin, tag, &key);
                tokio::pin!(check);
                if if_slow && let Some(known) = self.known(origin, &record.digest).await {
                    match tokio::time::timeout(config.revalidate, &mut check).await {
                        Ok(result) => return self.or_stale(result, origin, &record, if_away).await,
                        Err(_slow) => return Ok(known),
                    }
                }
                self.or_stale(check.await, origin, &record, if_away).await
            }
        }
    }

    /// Resolves a tag without a record.
    ///
    /// Right after a start the record may only not have been read yet: where the upstream does
    /// not answer, that is waited for.
    async fn first(
        &self,
        origin: &Origin,
        tag: &Tag,
        key: &str,
    ) -> Result<ManifestAnswer, PullError> {
        let Shared {
            store, policies, ..
        } = &*self.shared;
        let error = match self.check(origin, tag, key).await {
            Err(error) if !error.is_denial() && !store.is_index_ready() => error,
            result => return result,
        };
        let ready = store.wait_for_index();
        super::blob::in_time(Instant::now() + HEADER_BUDGET, ready).await?;
        let Some(record) = self.record(origin, tag, key).await? else {
            return Err(error);
        };
        let policy = policies.of(origin.upstream.name(), &origin.repository, tag);
        let if_away = match policies.freshness(policy, &record, unix_now()) {
            Freshness::Fresh => true,
            Freshness::Stale { if_away, .. } => if_away,
        };
        self.or_stale(Err(error), origin, &record, if_away).await
    }

    /// Answers from a fresh record, and checks it all the same if the upstream has lost what it
    /// points to.
    async fn fresh(
        &self,
        origin: &Origin,
        tag: &Tag,
        key: &str,
        digest: &Digest,
    ) -> Result<ManifestAnswer, PullError> {
        match self.shared.manifests.by_digest(origin, digest).await {
            Err(error) if error.is_denial() => self.check(origin, tag, key).await,
            result => result,
        }
    }

    /// Falls back to the known answer where the policy allows it for this error.
    async fn or_stale(
        &self,
        result: Result<ManifestAnswer, PullError>,
        origin: &Origin,
        record: &TagRecord,
        if_away: bool,
    ) -> Result<ManifestAnswer, PullError> {
        let error = match result {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let allowed = if error.is_denial() {
            self.shared.config.stale_denied
        } else {
            if_away
        };
        let known = if allowed {
            self.known(origin, &record.digest).await
        } else {
            None
        };
        known.ok_or(error)
    }

    /// Returns a manifest that is here and can be promised now.
    async fn known(&self, origin: &Origin, digest: &Digest) -> Option<ManifestAnswer> {
        let manifests = &self.shared.manifests;
        let answer = manifests.local(digest).await.ok()??;
        manifests.promised(origin, answer).await.ok()
    }

    async fn record(
        &self,
        origin: &Origin,
        tag: &Tag,
        key: &str,
    ) -> Result<Option<TagRecord>, PullError> {
        if let Some(record) = self.shared.records.get(key) {
            return Ok(Some(record));
        }
        let record = self.shared.store.tag(&name(origin, tag)).await?;
        if let Some(record) = &record {
            self.shared.records.insert(key.to_owned(), record.clone());
        }
        Ok(record)
    }

    /// Asks the upstream, together with everybody who asks the same now.
    async fn check(
        &self,
        origin: &Origin,
        tag: &Tag,
        key: &str,
    ) -> Result<ManifestAnswer, PullError> {
        self.shared.negative.check(origin, tag.as_str())?;
        let check = self.shared.checks.join(key.to_owned(), || {
            self.clone().ask(origin.clone(), tag.clone())
        });
        super::blob::in_time(Instant::now() + HEADER_BUDGET, check).await?
    }

    async fn ask(self, origin: Origin, tag: Tag) -> Result<ManifestAnswer, PullError> {
        let result = self.fetch(&origin, &tag).await;
        match &result {
            Ok(answer) if answer.media_type.is_schema1() => {}
            Ok(answer) => self.remember(&origin, &tag, answer.digest).await,
            Err(error) => self.refused(&origin, &tag, error).await,
        }
        result
    }

    /// One `HEAD`; a `GET` where that tells no digest or a digest that is not here.
    async fn fetch(&self, origin: &Origin, tag: &Tag) -> Result<ManifestAnswer, PullError> {
        let Origin {
            upstream,
            repository,
        } = origin;
        let manifests = &self.shared.manifests;
        let reference = Reference::Tag(tag.clone());
        let deadline = Instant::now() + HEADER_BUDGET;
        let head = upstream
            .head_manifest(repository, &reference, deadline)
            .await?;
        let is_schema1 = head
            .media_type
            .is_some_and(|media_type| media_type.is_schema1());
        if let Some(digest) = head.digest.filter(|_| !is_schema1) {
            return manifests.by_digest(origin, &digest).await;
        }
        let fetched = upstream
            .fetch_manifest(repository, &reference, deadline)
            .await?;
        manifests.accept(origin, fetched).await
    }

    /// Records what the upstream has just said.
    async fn remember(&self, origin: &Origin, tag: &Tag, digest: Digest) {
        let name = name(origin, tag);
        let now = unix_now();
        let known = self.shared.store.tag(&name).await.ok().flatten();
        let resolved_at = known
            .filter(|known| known.digest == digest)
            .map(|known| known.resolved_at);
        let record = TagRecord {
            digest,
            resolved_at: resolved_at.unwrap_or(now),
            checked_at: now,
        };
        self.shared.records.insert(name.key(), record.clone());
        let credential = origin.upstream.credential().to_string();
        if let Err(error) = self.shared.store.put_tag(name, credential, record).await {
            tracing::warn!(%error, "a tag could not be recorded; it is lost at the next start");
        }
    }

    /// Forgets a tag that the upstream refuses, so that an outage does not bring it back.
    async fn refused(&self, origin: &Origin, tag: &Tag, error: &PullError) {
        self.shared.negative.remember(origin, tag.as_str(), error);
        if !error.is_denial() || self.shared.config.stale_denied {
            return;
        }
        let name = name(origin, tag);
        self.shared.records.invalidate(&name.key());
        if let Err(error) = self.shared.store.remove_tag(name).await {
            tracing::warn!(%error, "a refused tag could not be forgotten");
        }
    }
}

fn name(origin: &Origin, tag: &Tag) -> TagName {
    TagName {
        upstream: origin.upstream.name().to_owned(),
        repository: origin.repository.clone(),
        tag: tag.clone(),
    }
}

fn unix_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}
