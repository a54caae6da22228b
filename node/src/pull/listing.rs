//! Lists that belong to the upstream: the tags of a repository, the referrers of a digest.
//!
//! They are passed on as they are, page by page, and kept only for a short while. An upstream
//! error is an error here too: an empty list would say "unsigned" (contract F6).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_protocol::oci::Digest;
use moka::sync::Cache;
use tokio::time::Instant;

use crate::task::Tasks;

use super::deadline::{Deadline, HEADER_BUDGET};
use super::error::PullError;
use super::flights::Flights;
use super::negative::{Negative, Wanted};
use super::origin::Origin;

/// How long a page is used without asking again.
const TTL: Duration = Duration::from_secs(30);

/// Most bytes of pages that are kept.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;

/// A page of a repository's tags.
#[derive(Clone, Debug)]
pub struct TagsAnswer {
    /// The tags in the upstream's order.
    pub tags: Arc<Vec<String>>,
    /// Query string of the next page, if there is one.
    pub next_query: Option<String>,
}

/// A page of the manifests that refer to a digest.
#[derive(Clone, Debug)]
pub struct ReferrersAnswer {
    /// An image index, as the upstream sent it or made from the tag schema.
    pub body: Bytes,
    /// What the upstream says it filtered by.
    pub filters_applied: Option<String>,
    /// Query string of the next page, if there is one.
    pub next_query: Option<String>,
}

#[derive(Clone, Debug)]
enum Page {
    Tags(TagsAnswer),
    Referrers(ReferrersAnswer),
}

impl Page {
    fn weight(&self) -> u32 {
        let bytes = match self {
            Self::Tags(page) => page.tags.iter().map(|tag| tag.len() + 24).sum(),
            Self::Referrers(page) => page.body.len(),
        };
        u32::try_from(bytes + 256).unwrap_or(u32::MAX)
    }
}

/// The lists of a node.
#[derive(Debug)]
pub(super) struct Listings {
    negative: Negative,
    cache: Cache<String, Page>,
    asking: Flights<String, Page>,
}

impl Listings {
    pub(super) fn new(tasks: Tasks, negative: Negative) -> Self {
        let cache = Cache::builder()
            .max_capacity(CACHE_BYTES)
            .weigher(|_, page: &Page| page.weight())
            .time_to_live(TTL)
            .build();
        Self {
            negative,
            cache,
            asking: Flights::new(tasks),
        }
    }

    /// Returns a page of tags.
    ///
    /// # Errors
    /// Why the upstream does not give it.
    pub(super) async fn tags(&self, origin: &Origin, query: &str) -> Result<TagsAnswer, PullError> {
        let (asked, wanted) = (origin.clone(), query.to_owned());
        let ask = || async move {
            let Origin {
                upstream,
                repository,
            } = asked;
            let deadline = Instant::now() + HEADER_BUDGET;
            let list = upstream.list_tags(&repository, &wanted, deadline).await?;
            Ok(Page::Tags(TagsAnswer {
                tags: Arc::new(list.tags),
                next_query: list.next_query,
            }))
        };
        match self.page(origin, format!("tags?{query}"), ask).await? {
            Page::Tags(page) => Ok(page),
            Page::Referrers(_) => Err(PullError::Stopped),
        }
    }

    /// Returns a page of referrers.
    ///
    /// # Errors
    /// Why the upstream does not give it.
    pub(super) async fn referrers(
        &self,
        origin: &Origin,
        digest: &Digest,
        query: &str,
    ) -> Result<ReferrersAnswer, PullError> {
        let (asked, digest, wanted) = (origin.clone(), *digest, query.to_owned());
        let ask = move || async move {
            let Origin {
                upstream,
                repository,
            } = asked;
            let deadline = Instant::now() + HEADER_BUDGET;
            let list = upstream
                .referrers(&repository, &digest, &wanted, deadline)
                .await?;
            Ok(Page::Referrers(ReferrersAnswer {
                body: list.body,
                filters_applied: list.filters_applied,
                next_query: list.next_query,
            }))
        };
        match self
            .page(origin, format!("referrers/{digest}?{query}"), ask)
            .await?
        {
            Page::Referrers(page) => Ok(page),
            Page::Tags(_) => Err(PullError::Stopped),
        }
    }

    async fn page<F>(
        &self,
        origin: &Origin,
        subject: String,
        ask: impl FnOnce() -> F,
    ) -> Result<Page, PullError>
    where
        F: Future<Output = Result<Page, PullError>> + Send + 'static,
    {
        let key = format!("{origin} {subject}");
        if let Some(page) = self.cache.get(&key) {
            return Ok(page);
        }
        let subject = Wanted::Page(subject);
        self.negative.check(origin, subject.clone())?;
        let asked = self.asking.join(key.clone(), ask);
        let deadline = Deadline::within(HEADER_BUDGET);
        let result = deadline.for_others(asked).await?;
        match &result {
            Ok(page) => self.cache.insert(key, page.clone()),
            Err(error) => self.negative.remember(origin, subject, error),
        }
        result
    }
}
