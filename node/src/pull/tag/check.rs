//! Checking what a tag points to: at its home, else at the upstream.
//!
//! A check asks the tag's home, which asks the upstream by one `HEAD`; a `GET` by digest follows
//! only for a manifest that nobody has (contract U6). Equal checks run once and outlive who asked for
//! them. How nodes and upstreams are asked is said in `resolve`.

use millrace_protocol::oci::Tag;
use tokio::time::Instant;

use super::super::deadline::{Deadline, HEADER_BUDGET};
use super::super::error::PullError;
use super::super::manifest::ManifestAnswer;
use super::super::origin::Origin;
use super::super::resolve::{self, Resolved};
use super::news::{News, Stated, Word};
use super::{Question, Tags, name, wanted};

impl Tags {
    /// Asks the home or the upstream, together with everybody who asks the same now; takes an answer
    /// that is news.
    ///
    /// # Errors
    /// Why the tag cannot be had.
    /// # Cancel safety
    /// Dropping the future leaves a check running.
    pub(super) async fn check(&self, question: &Question<'_>) -> Result<ManifestAnswer, PullError> {
        let &Question {
            origin, tag, news, ..
        } = question;
        self.shared.negative.check(origin, wanted(tag))?;
        let ask = || {
            let news = news.of_check();
            self.clone().ask(origin.clone(), tag.clone(), news)
        };
        let check = news.join(&self.shared.checks, question.name.key(), ask);
        question.deadline.for_others(check).await?
    }

    async fn ask(self, origin: Origin, tag: Tag, news: News) -> Result<ManifestAnswer, PullError> {
        match self.ask_homes(&origin, &tag).await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => {
                self.shared.records.refused(&origin, &tag, &error).await;
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
                self.shared
                    .records
                    .remember(&origin, &tag, credential, known)
                    .await;
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
                self.shared
                    .records
                    .remember(origin, tag, credential, known_since)
                    .await;
                Ok(Some(answer))
            }
            // What the tag pointed to is gone, or cannot be had: the upstream has the last word.
            Err(_) => Ok(None),
        }
    }

    /// Asks the upstream, together with everybody who asks it the same now; takes an answer that
    /// is news.
    ///
    /// # Errors
    /// Why the upstream does not tell.
    /// # Cancel safety
    /// Dropping the future leaves a check running.
    pub(super) async fn ask_upstream(
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
                self.shared
                    .records
                    .remember(&origin, &tag, credential, known)
                    .await;
            }
            Ok(Stated::Unverifiable(_)) => {}
            Err(error) => self.shared.records.refused(&origin, &tag, error).await,
        }
        let word = Word {
            stated: stated?,
            began,
            came: Instant::now(),
        };
        // That is out of the repository, so it may be read with these credentials.
        self.shared.access.confirm(&origin, began);
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
}
