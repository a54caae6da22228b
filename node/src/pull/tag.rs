//! Resolving tags: known answer, check at the home or the upstream, stale answer.
//!
//! A check asks the tag's home, which asks the upstream by one `HEAD`; a `GET` by digest follows
//! only for a manifest that nobody has (contract U6). Equal checks run once. What a record is
//! worth is decided in `policy`, who is asked in `resolve`.

use std::time::Duration;

use millrace_protocol::oci::{Digest, Reference, Tag};
use moka::sync::Cache;
use tokio::time::Instant;

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
use super::resolve::{self, Resolved};

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
    access: Access,
    negative: Negative,
    policies: Policies,
    config: Config,
    neighbours: Option<Neighbours>,
    records: Cache<String, Known>,
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
    key: String,
    news: News,
    deadline: Deadline,
}

/// From when on an answer is news for a question.
#[derive(Clone, Copy, Debug)]
enum News {
    /// It has come since then, from a check that may have begun before: the tag has a lifetime.
    Come(Instant),
    /// It is from a check that has begun since then: the tag is to be checked each time.
    Begun(Instant),
}

impl News {
    /// For a question that comes now.
    fn from_now(is_each_time: bool) -> Self {
        if is_each_time {
            Self::Begun(Instant::now())
        } else {
            Self::Come(Instant::now())
        }
    }

    /// For a check that begins now and is shared by all who came before.
    fn of_check(self) -> Self {
        match self {
            Self::Come(_) => self,
            Self::Begun(_) => Self::Begun(Instant::now()),
        }
    }

    fn is(self, word: &Word) -> bool {
        match self {
            Self::Come(since) => word.came >= since,
            Self::Begun(since) => word.began >= since,
        }
    }

    /// Waits for a check that is under way, if that is news, else for the next.
    async fn join<V, F>(
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
struct Word {
    stated: Stated,
    /// When it was asked.
    began: Instant,
    /// When it had answered.
    came: Instant,
}

/// What an upstream says of a tag.
#[derive(Clone, Debug)]
enum Stated {
    /// A digest that can be had by itself.
    Digest(Digest),
    /// A manifest whose digest cannot be verified: a signed schema 1 manifest.
    Unverifiable(ManifestAnswer),
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
            store,
            manifests,
            access,
            negative,
            policies: Policies::new(&config),
            config,
            neighbours,
            records: Cache::new(MAX_RECORDS),
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
            key: name(origin, tag).key(),
            // Before looking: what the upstream says from now on is news, also when the record of it
            // is written just behind the look.
            news: News::from_now(policy == Policy::Always),
            deadline,
        };
        let Some(known) = self.record(origin, tag, &question.key).await? else {
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

    /// Returns what a tag points to and how old that is, for a node whose home of it this is.
    ///
    /// # Errors
    /// Why the upstream does not tell.
    /// # Cancel safety
    /// Dropping the future leaves a check running.
    pub(super) async fn resolve_as_home(
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

    fn healed(&self) -> Option<Duration> {
        self.shared.neighbours.as_ref()?.healed()
    }

    /// Returns what this node last knew of a tag, and the time since then or a little more, if that is
    /// known.
    pub(super) async fn recall(&self, origin: &Origin, tag: &Tag) -> Option<(Digest, Duration)> {
        let key = name(origin, tag).key();
        let known = self.record(origin, tag, &key).await.ok()??;
        let age = known.age(Now::read())?;
        Some((known.record.digest, age))
    }

    /// Asks the upstream, together with everybody who asks it the same now; takes an answer that
    /// is news.
    async fn ask_upstream(
        &self,
        origin: &Origin,
        tag: &Tag,
        news: News,
    ) -> Result<Word, PullError> {
        let key = name(origin, tag).key();
        let ask = || {
            let (tags, origin, tag) = (self.clone(), origin.clone(), tag.clone());
            async move {
                let key = name(&origin, &tag).key();
                match tags.shared.words.get(&key) {
                    Some(word) if news.is(&word) => Ok(word),
                    _ => tags.check_at_upstream(origin, tag).await,
                }
            }
        };
        loop {
            let asking = news.join(&self.shared.upstream_checks, key.clone(), ask);
            let word = asking.await?;
            // Who was joined may have been content with an older one.
            if news.is(&word) {
                return Ok(word);
            }
        }
    }

    async fn check_at_upstream(self, origin: Origin, tag: Tag) -> Result<Word, PullError> {
        let began = Instant::now();
        let stated = self.stated(&origin, &tag).await;
        match &stated {
            Ok(Stated::Digest(digest)) => {
                let credential = origin.upstream.credential().to_string();
                let known = (*digest, began.elapsed());
                self.remember(&origin, &tag, credential, known).await;
            }
            Ok(Stated::Unverifiable(_)) => {}
            Err(error) => self.refused(&origin, &tag, error).await,
        }
        let word = Word {
            stated: stated?,
            began,
            came: Instant::now(),
        };
        // That is out of the repository, so it may be read with these credentials.
        self.shared.access.confirm(&origin);
        let key = name(&origin, &tag).key();
        self.shared.words.insert(key, word.clone());
        Ok(word)
    }

    async fn stated(&self, origin: &Origin, tag: &Tag) -> Result<Stated, PullError> {
        let waits = &self.shared.manifests.waits;
        let fetched = match resolve::ask_upstream(waits, origin, tag).await? {
            Resolved::Digest(digest) => return Ok(Stated::Digest(digest)),
            Resolved::Manifest(fetched) => fetched,
        };
        let answer = self.shared.manifests.accept(origin, fetched).await?;
        Ok(if answer.media_type.is_schema1() {
            Stated::Unverifiable(answer)
        } else {
            Stated::Digest(answer.digest)
        })
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
        let known = match self.record(origin, tag, &question.key).await? {
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

    async fn record(
        &self,
        origin: &Origin,
        tag: &Tag,
        key: &str,
    ) -> Result<Option<Known>, PullError> {
        if let Some(known) = self.shared.records.get(key) {
            return Ok(Some(known));
        }
        let Some(record) = self.shared.store.tag(&name(origin, tag)).await? else {
            return Ok(None);
        };
        let kept = Known::kept(record, Now::read());
        // A check may have learnt more while the index was read.
        let newest = self.shared.records.entry_by_ref(key).or_insert(kept);
        Ok(Some(newest.into_value()))
    }

    /// Asks the home or the upstream, together with everybody who asks the same now; takes an answer
    /// that is news.
    async fn check(&self, question: &Question<'_>) -> Result<ManifestAnswer, PullError> {
        let &Question {
            origin, tag, news, ..
        } = question;
        self.shared.negative.check(origin, wanted(tag))?;
        let ask = || {
            let news = news.of_check();
            self.clone().ask(origin.clone(), tag.clone(), news)
        };
        let check = news.join(&self.shared.checks, question.key.clone(), ask);
        question.deadline.for_others(check).await?
    }

    async fn ask(self, origin: Origin, tag: Tag, news: News) -> Result<ManifestAnswer, PullError> {
        match self.ask_homes(&origin, &tag).await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => {
                self.refused(&origin, &tag, &error).await;
                return Err(error);
            }
        }
        let word = self.ask_upstream(&origin, &tag, news).await?;
        match word.stated {
            Stated::Digest(digest) => {
                let behind = Deadline::within(HEADER_BUDGET);
                let manifests = &self.shared.manifests;
                let answer = manifests.by_digest(&origin, &digest, behind).await?;
                // Once more, because only now there is a sidecar that can carry the claim.
                let credential = origin.upstream.credential().to_string();
                let known = (digest, word.began.elapsed());
                self.remember(&origin, &tag, credential, known).await;
                Ok(answer)
            }
            Stated::Unverifiable(answer) => Ok(answer),
        }
    }

    /// Asks the tag's homes and gets the manifest that they name.
    ///
    /// `None` when this node has to ask the upstream itself.
    async fn ask_homes(
        &self,
        origin: &Origin,
        tag: &Tag,
    ) -> Result<Option<ManifestAnswer>, PullError> {
        let Some(neighbours) = &self.shared.neighbours else {
            return Ok(None);
        };
        let max_age = self.policy(origin, tag).max_age();
        let Some(known) = resolve::ask_homes(neighbours, origin, tag, max_age).await? else {
            return Ok(None);
        };
        let manifests = &self.shared.manifests;
        let behind = Deadline::within(HEADER_BUDGET);
        let digest = known.answer.digest;
        match manifests.by_digest(origin, &digest, behind).await {
            Ok(answer) => {
                let known_since = (digest, known.age());
                let credential = known.answer.origin.credential;
                self.remember(origin, tag, credential, known_since).await;
                Ok(Some(answer))
            }
            // What the tag pointed to is gone, or cannot be had: the upstream has the last word.
            Err(_) => Ok(None),
        }
    }

    /// Records what the upstream said so long ago.
    async fn remember(
        &self,
        origin: &Origin,
        tag: &Tag,
        credential: String,
        (digest, age): (Digest, Duration),
    ) {
        let name = name(origin, tag);
        let now = Now::read();
        let checked_at = now.seconds_before(age);
        let known = self.shared.store.tag(&name).await.ok().flatten();
        let resolved_at = known
            .filter(|known| known.digest == digest)
            .map(|known| known.resolved_at);
        let record = TagRecord {
            digest,
            resolved_at: resolved_at.unwrap_or(checked_at),
            checked_at,
        };
        let told = Known::told(record.clone(), age, now);
        self.shared.records.insert(name.key(), told);
        if let Err(error) = self.shared.store.put_tag(name, credential, record).await {
            tracing::warn!(%error, "a tag could not be recorded; it is lost at the next start");
        }
    }

    /// Forgets a tag that the upstream refuses, so that an outage does not bring it back.
    async fn refused(&self, origin: &Origin, tag: &Tag, error: &PullError) {
        self.shared.negative.remember(origin, wanted(tag), error);
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
