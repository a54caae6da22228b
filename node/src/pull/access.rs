//! Whether content belongs to the repository that it is asked for in: before every cache hit.
//!
//! A digest alone proves nothing: who may read one repository could name the digest of another's
//! layer. So content that is not for everybody is handed out only where its provenance links it to
//! the repository; else the upstream is asked with this node's credentials, by the first byte of a
//! blob or the head of a manifest, and a yes becomes a link.
//!
//! A link is believed while the repository's standing is: any answer of the upstream out of the
//! repository confirms it for `access_ttl`; a refusal takes the link away. While the upstream cannot
//! be asked, the last confirmation counts for `access_grace`. What the upstream says depends on the
//! node's credentials and not on who asks, so it is kept for each repository, under whatever rule
//! the client came in. Who may read which repository is said in `rules`.

mod rules;

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::access::Caller;
use millrace_protocol::oci::{Digest, Reference, RepositoryName};
use moka::sync::Cache;
use tokio::time::Instant;

use crate::store::{Provenance, Record, Store};
use crate::task::Tasks;

use super::HEADER_BUDGET;
use super::config::Config;
use super::error::PullError;
use super::flights::Flights;
use super::negative::Negative;
use super::origin::Origin;
use super::transfer::{Supply, Transfer};
use rules::Rules;

/// Most contents whose links are kept in memory; some 300 bytes each.
const MAX_LINKS: u64 = 20_000;

/// Most repositories whose standing is kept.
const MAX_STANDINGS: u64 = 10_000;

/// The check of a node; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Access {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    negative: Negative,
    rules: Rules,
    /// Whether anything is kept from anybody by the configuration.
    restricts: bool,
    ttl: Duration,
    grace: Duration,
    /// Counts as a confirmation of what a run before this one fetched.
    started: Instant,
    links: Cache<Digest, Links>,
    standings: Cache<Provenance, Standing>,
    checks: Flights<(Provenance, Digest), ()>,
}

/// How the bytes under a digest are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Blob,
    Manifest,
}

/// What is known of content before it is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// It may go out to who may read the repository.
    Given,
    /// It is not here, so whoever fetches it now proves it.
    Absent,
}

/// What content was fetched as.
#[derive(Clone, Debug)]
struct Links {
    /// Whether one of them is for everybody.
    is_open: bool,
    all: Arc<[Provenance]>,
}

/// What the upstream last said about a repository to these credentials.
#[derive(Clone, Copy, Debug)]
enum Standing {
    Confirmed(Instant),
    Denied,
}

impl Access {
    pub(super) fn new(config: &Config, store: Store, negative: Negative, tasks: Tasks) -> Self {
        let rules = Rules::new(&config.access);
        let inner = Inner {
            store,
            negative,
            restricts: config.has_credentials || rules.restrict(),
            rules,
            ttl: config.access_ttl,
            grace: config.access_grace,
            started: Instant::now(),
            links: Cache::new(MAX_LINKS),
            standings: Cache::new(MAX_STANDINGS),
            checks: Flights::new(tasks),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Whether the caller may read this repository, whatever is in it.
    pub(super) fn permits(&self, origin: &Origin, caller: &Caller<'_>) -> bool {
        self.inner.rules.permit(origin, caller)
    }

    /// Makes sure that content which is here belongs to the repository of `origin`.
    ///
    /// # Errors
    /// Why the upstream does not say so; or that the store cannot be read.
    /// # Cancel safety
    /// Dropping the future leaves a question at the upstream running.
    pub(super) async fn prove(
        &self,
        origin: &Origin,
        digest: &Digest,
        form: Form,
    ) -> Result<Proof, PullError> {
        let known = self.inner.links.get(digest);
        if known.as_ref().is_some_and(|links| links.is_open) {
            return Ok(Proof::Given);
        }
        let own = origin.provenance();
        let links = match known.filter(|links| links.all.contains(&own)) {
            Some(links) => links,
            None => match self.read(digest).await? {
                Some(links) => links,
                None => return Ok(Proof::Absent),
            },
        };
        if links.is_open {
            return Ok(Proof::Given);
        }
        let is_linked = links.all.contains(&own);
        self.settle(origin, digest, form, is_linked).await?;
        Ok(Proof::Given)
    }

    /// Makes sure that content which comes from other nodes, fetched as `provenance`, belongs to the
    /// repository of `origin`.
    ///
    /// # Errors
    /// Why the upstream does not say so.
    /// # Cancel safety
    /// As [`Access::prove`].
    pub(super) async fn vouch(
        &self,
        origin: &Origin,
        digest: &Digest,
        provenance: &[Provenance],
    ) -> Result<(), PullError> {
        let is_open = |one: &Provenance| self.inner.rules.is_open(one);
        if !self.inner.restricts || provenance.iter().any(is_open) {
            return Ok(());
        }
        let is_linked = provenance.contains(&origin.provenance());
        self.settle(origin, digest, Form::Blob, is_linked).await
    }

    /// Decides about content that is not for everybody, by its link and by what the upstream says.
    async fn settle(
        &self,
        origin: &Origin,
        digest: &Digest,
        form: Form,
        is_linked: bool,
    ) -> Result<(), PullError> {
        let own = origin.provenance();
        if is_linked && self.is_confirmed(&own) {
            return Ok(());
        }
        let asked = self.ask(origin, digest, form);
        if !is_linked || !self.is_in_grace(&own) {
            return asked.await;
        }
        // Behind the answer where the upstream is away anyway; its return is noticed all the same.
        let answered = if origin.upstream.is_away() {
            tokio::time::timeout(Duration::ZERO, asked).await
        } else {
            Ok(asked.await)
        };
        match answered {
            Ok(Err(error)) if error.is_denial() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Asks the upstream whether the repository has this content, together with everybody who asks
    /// the same now.
    ///
    /// # Errors
    /// That it does not, or why it cannot be asked.
    pub(super) async fn ask(
        &self,
        origin: &Origin,
        digest: &Digest,
        form: Form,
    ) -> Result<(), PullError> {
        self.inner.negative.check(origin, &digest.to_string())?;
        let key = (origin.provenance(), *digest);
        let check = self
            .inner
            .checks
            .join(key, || self.clone().question(origin.clone(), *digest, form));
        super::blob::in_time(Instant::now() + HEADER_BUDGET, check).await?
    }

    /// As [`Access::ask`], where anything is kept from anybody.
    ///
    /// # Errors
    /// As [`Access::ask`].
    pub(super) async fn ask_if_restricted(
        &self,
        origin: &Origin,
        digest: &Digest,
        form: Form,
    ) -> Result<(), PullError> {
        if !self.inner.restricts {
            return Ok(());
        }
        self.ask(origin, digest, form).await
    }

    /// Notes that the upstream has just given something out of the repository.
    pub(super) fn confirm(&self, origin: &Origin) {
        if self.inner.restricts {
            let standing = Standing::Confirmed(Instant::now());
            self.inner.standings.insert(origin.provenance(), standing);
        }
    }

    /// Whether the caller may know of a repository, written as `upstream/repository`.
    pub(super) fn may_list(&self, name: &str, is_anonymous: bool, caller: &Caller<'_>) -> bool {
        let (upstream, repository) = name.split_once('/').unwrap_or((name, ""));
        let readers = self.inner.rules.readers(upstream, repository, is_anonymous);
        millrace_protocol::access::permits(readers, caller)
    }

    async fn read(&self, digest: &Digest) -> Result<Option<Links>, PullError> {
        let links = match self.inner.store.links(digest).await? {
            None => return Ok(None),
            Some(Record::Known(all)) if !all.is_empty() => Links {
                is_open: all.iter().any(|one| self.inner.rules.is_open(one)),
                all: all.into(),
            },
            // It could be anybody's, because the record is lost or a peer did not know either;
            // where nothing is kept from anybody it is given all the same.
            Some(Record::Known(_) | Record::Lost) => Links {
                is_open: !self.inner.restricts,
                all: Arc::new([]),
            },
        };
        self.inner.links.insert(*digest, links.clone());
        Ok(Some(links))
    }

    fn is_confirmed(&self, own: &Provenance) -> bool {
        let standing = self.inner.standings.get(own);
        matches!(standing, Some(Standing::Confirmed(at)) if at.elapsed() < self.inner.ttl)
    }

    fn is_in_grace(&self, own: &Provenance) -> bool {
        let since = match self.inner.standings.get(own) {
            Some(Standing::Confirmed(at)) => at,
            Some(Standing::Denied) => return false,
            None => self.inner.started,
        };
        since.elapsed() < self.inner.grace
    }

    async fn question(self, origin: Origin, digest: Digest, form: Form) -> Result<(), PullError> {
        let asked = match form {
            Form::Blob => ask_for_blob(&origin, &digest).await,
            Form::Manifest => ask_for_manifest(&origin, digest).await,
        };
        let own = origin.provenance();
        match &asked {
            Ok(()) => {
                self.confirm(&origin);
                self.linked(&digest, own).await;
            }
            Err(error) if error.is_denial() => {
                let subject = digest.to_string();
                self.inner.negative.remember(&origin, &subject, error);
                self.refused(&digest, own, error).await;
            }
            Err(_) => {}
        }
        asked
    }

    async fn linked(&self, digest: &Digest, own: Provenance) {
        let kept = self.inner.store.link(digest, own).await;
        self.inner.links.invalidate(digest);
        if let Err(error) = kept {
            tracing::warn!(%error, blob.digest = %digest, "a link is not kept; it will be asked for again");
        }
    }

    /// Takes a link away. A 401 or 403 is about the repository, a 404 perhaps about this content only.
    async fn refused(&self, digest: &Digest, own: Provenance, error: &PullError) {
        use crate::upstream::FetchError;
        if matches!(error, PullError::Fetch(FetchError::Denied { .. })) {
            self.inner.standings.insert(own.clone(), Standing::Denied);
        }
        let removed = self.inner.store.unlink(digest, own).await;
        self.inner.links.invalidate(digest);
        if let Err(error) = removed {
            tracing::error!(%error, blob.digest = %digest, "a withdrawn link is still on disk");
        }
    }
}

/// Whether bytes that are on their way come from the upstream's answer to this origin alone, so that
/// they prove that the repository has them.
pub(super) fn is_fetched_for(transfer: &Transfer, origin: &Origin) -> bool {
    let is_fetched = {
        let state = transfer.state();
        let own = origin.provenance();
        state.supply == Supply::Upstream && state.provenance.iter().all(|one| *one == own)
    };
    let own = origin.to_string();
    is_fetched
        && transfer
            .candidates()
            .names()
            .iter()
            .all(|name| *name == own)
}

async fn ask_for_blob(origin: &Origin, digest: &Digest) -> Result<(), PullError> {
    let deadline = Instant::now() + HEADER_BUDGET;
    let Origin {
        upstream,
        repository,
    } = origin;
    upstream.probe_blob(repository, digest, deadline).await?;
    Ok(())
}

/// By `HEAD`, which counts as no pull; by `GET` where the upstream does not know `HEAD`.
async fn ask_for_manifest(origin: &Origin, digest: Digest) -> Result<(), PullError> {
    let deadline = Instant::now() + HEADER_BUDGET;
    let reference = Reference::Digest(digest);
    let repository: &RepositoryName = &origin.repository;
    let upstream = &origin.upstream;
    let head = upstream
        .head_manifest(repository, &reference, deadline)
        .await?;
    if head.digest.is_none() && head.media_type.is_none() {
        upstream
            .fetch_manifest(repository, &reference, deadline)
            .await?;
    }
    Ok(())
}
