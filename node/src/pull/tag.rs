//! Resolving tags: known answer, check at the home or the upstream, stale answer.
//!
//! Here is decided what a client is told. How a tag is checked is said in `check`, what is known of
//! it in `records`, what other nodes are told in `home`, which answer is new enough in `news`. What a
//! record is worth is decided in `policy`, how others are asked in `resolve`.

mod check;
mod home;
mod news;
mod records;

use std::time::Duration;

use millrace_protocol::oci::{Digest, Reference, Tag};
use moka::sync::Cache;

use crate::store::{Store, TagName, TagRecord};
use crate::task::Tasks;

use super::access::Access;
use super::config::Config;
use super::deadline::{Deadline, HEADER_BUDGET};
use super::error::PullError;
use super::flights::Flights;
use super::known::{Known, Now};
use super::manifest::{ManifestAnswer, Manifests};
use super::negative::{Negative, Wanted};
use super::neighbours::Neighbours;
use super::origin::Origin;
use super::policy::{Freshness, Policies, Policy};
use super::resolve;
use news::{News, Word};
use records::{MAX_RECORDS, Records};

/// The tags of a node; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Tags {
    shared: std::sync::Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    manifests: Manifests,
    access: Access,
    negative: Negative,
    policies: Policies,
    config: Config,
    neighbours: Option<Neighbours>,
    records: Records,
    checks: Flights<String, ManifestAnswer>,
    /// Checks that ask nobody but the upstream: for other nodes, and where no home could help.
    upstream_checks: Flights<String, Word>,
    /// What upstreams last answered, for who asked before that and comes too late for the check.
    words: Cache<String, Word>,
}

/// A client's question for a tag.
#[derive(Clone, Debug)]
struct Question<'a> {
    origin: &'a Origin,
    tag: &'a Tag,
    name: TagName,
    news: News,
    deadline: Deadline,
}

impl Tags {
    pub(super) fn new(manifests: Manifests, tasks: Tasks, config: Config) -> Self {
        let Manifests {
            store,
            access,
            negative,
            neighbours,
            ..
        } = manifests.clone();
        let shared = Shared {
            records: Records::new(store.clone(), negative.clone(), config.stale_denied),
            store,
            manifests,
            access,
            negative,
            policies: Policies::new(&config),
            config,
            neighbours,
            checks: Flights::new(tasks.clone()),
            upstream_checks: Flights::new(tasks),
            words: Cache::builder()
                .max_capacity(MAX_RECORDS)
                .time_to_live(HEADER_BUDGET)
                .build(),
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
        deadline: Deadline,
    ) -> Result<ManifestAnswer, PullError> {
        let Shared {
            policies, config, ..
        } = &*self.shared;
        let policy = self.policy(origin, tag);
        let question = &Question {
            origin,
            tag,
            name: name(origin, tag),
            // Before looking: what the upstream says from now on is news, also when the record of it
            // is written just behind the look.
            news: News::from_now(policy == Policy::Always),
            deadline,
        };
        let Some(known) = self.shared.records.find(&question.name).await? else {
            return self.first(question).await;
        };
        let age = known.age(Now::read());
        let record = known.record;
        match policies.freshness(policy, age) {
            Freshness::Fresh => self.fresh(question, &record.digest).await,
            Freshness::Stale { if_slow, if_away } => {
                let check = self.check(question);
                tokio::pin!(check);
                if if_slow && let Some(known) = self.known(origin, &record.digest, deadline).await {
                    match tokio::time::timeout(config.revalidate, &mut check).await {
                        Ok(result) => {
                            return self.or_stale(result, question, &record, if_away).await;
                        }
                        Err(_slow) => return Ok(known),
                    }
                }
                self.or_stale(check.await, question, &record, if_away).await
            }
        }
    }

    fn policy(&self, origin: &Origin, tag: &Tag) -> Policy {
        let policies = &self.shared.policies;
        let policy = policies.of(origin.upstream.name(), &origin.repository, tag);
        policy.after_healing(self.healed())
    }

    fn healed(&self) -> Option<Duration> {
        self.shared.neighbours.as_ref()?.healed()
    }

    /// Resolves a tag without a record.
    ///
    /// Right after a start the record may only not have been read yet: where the upstream does
    /// not answer, that is waited for. Other nodes may remember the tag, too.
    async fn first(&self, question: &Question<'_>) -> Result<ManifestAnswer, PullError> {
        let Shared {
            store, policies, ..
        } = &*self.shared;
        let &Question { origin, tag, .. } = question;
        let error = match self.check(question).await {
            Err(error) if !error.is_denial() => error,
            result => return result,
        };
        let ready = store.wait_for_index();
        question.deadline.for_answer(ready).await?;
        let known = match self.shared.records.find(&question.name).await? {
            Some(known) => known,
            None => self
                .recall_elsewhere(origin, tag)
                .await
                .ok_or_else(|| error.clone())?,
        };
        let (policy, age) = (self.policy(origin, tag), known.age(Now::read()));
        let if_away = match policies.freshness(policy, age) {
            Freshness::Fresh => true,
            Freshness::Stale { if_away, .. } => if_away,
        };
        self.or_stale(Err(error), question, &known.record, if_away)
            .await
    }

    /// Takes over what another node remembers of a tag.
    async fn recall_elsewhere(&self, origin: &Origin, tag: &Tag) -> Option<Known> {
        let neighbours = self.shared.neighbours.as_ref()?;
        let recalled = resolve::recall(neighbours, origin, tag).await?;
        let (now, age) = (Now::read(), recalled.age());
        let checked_at = now.seconds_before(age);
        let record = TagRecord {
            digest: recalled.answer.digest,
            resolved_at: checked_at,
            checked_at,
        };
        // It is not remembered here: nobody has told this node, and it may be gone tomorrow.
        Some(Known::told(record, age, now))
    }

    /// Answers from a fresh record, and checks it all the same if the upstream has lost what it
    /// points to.
    async fn fresh(
        &self,
        question: &Question<'_>,
        digest: &Digest,
    ) -> Result<ManifestAnswer, PullError> {
        let manifests = &self.shared.manifests;
        let fetching = manifests.by_digest(question.origin, digest, question.deadline);
        match fetching.await {
            Err(error) if error.is_denial() => {
                let news = News::from_now(false);
                let question = question.clone();
                self.check(&Question { news, ..question }).await
            }
            result => result,
        }
    }

    /// Falls back to the known answer where the policy allows it for this error.
    async fn or_stale(
        &self,
        result: Result<ManifestAnswer, PullError>,
        question: &Question<'_>,
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
            let last = question.deadline.to_the_last();
            self.known(question.origin, &record.digest, last).await
        } else {
            None
        };
        known.ok_or(error)
    }

    /// Returns a manifest that is here, or on another node, and can be promised now.
    async fn known(
        &self,
        origin: &Origin,
        digest: &Digest,
        deadline: Deadline,
    ) -> Option<ManifestAnswer> {
        let manifests = &self.shared.manifests;
        match manifests.local(digest).await.ok()? {
            Some(answer) => manifests.promised(origin, answer).await.ok(),
            None if self.shared.neighbours.is_some() => {
                manifests.by_digest(origin, digest, deadline).await.ok()
            }
            None => None,
        }
    }
}

fn wanted(tag: &Tag) -> Wanted {
    Wanted::Manifest(Reference::Tag(tag.clone()))
}

fn name(origin: &Origin, tag: &Tag) -> TagName {
    TagName {
        upstream: origin.upstream.name().to_owned(),
        repository: origin.repository.clone(),
        tag: tag.clone(),
    }
}
