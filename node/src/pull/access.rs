//! Whether content belongs to the repository that it is asked for in: before every cache hit.
//!
//! A digest alone proves nothing: who may read one repository could name the digest of another's
//! layer. So content that is not for everybody is handed out only where its provenance links it to
//! the repository; else the upstream is asked with this node's credentials, by the first byte of a
//! blob or the head of a manifest, and a yes becomes a link. In a cluster the home of the content
//! is asked before (`home`), so that one question to the upstream is enough for all.
//!
//! A link is believed while the repository's standing is: any answer of the upstream out of the
//! repository confirms it for `access_ttl`; a refusal takes the link away. While the upstream cannot
//! be asked, the last confirmation counts for `access_grace`. What the upstream says depends on the
//! node's credentials and not on who asks, so it is kept for each repository, under whatever rule
//! the client came in. Who may read which repository is said in `rules`, what content was fetched
//! as in `links`, what upstreams last said, and for how long that counts, in `standing`.

mod ask;
mod home;
mod links;
mod rules;
mod standing;

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::access::Caller;
use millrace_protocol::oci::{Digest, Reference};
use millrace_protocol::placement::Key;
use tokio::time::Instant;

use crate::store::Provenance;

use super::Surroundings;
use super::config::Config;
use super::deadline::{Deadline, HEADER_BUDGET};
use super::error::PullError;
use super::flights::Flights;
use super::negative::{Negative, Wanted};
use super::neighbours::{Hop, Neighbours};
use super::origin::Origin;
use super::transfer::Transfer;
use links::Links;
use rules::Rules;
use standing::Standings;

/// The check of a node; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Access {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    negative: Negative,
    rules: Arc<Rules>,
    /// Whether anything is kept from anybody by the configuration.
    restricts: bool,
    links: Links,
    standings: Standings,
    /// The last part of the key: whether only the upstream is asked.
    checks: Flights<(Provenance, Digest, Form, bool), ()>,
    /// The other nodes, in a cluster.
    neighbours: Option<Neighbours>,
}

/// How the bytes under a digest are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    Blob,
    Manifest,
}

impl Form {
    fn wanted(self, digest: &Digest) -> Wanted {
        match self {
            Self::Blob => Wanted::Blob(*digest),
            Self::Manifest => Wanted::Manifest(Reference::Digest(*digest)),
        }
    }
}

/// What is known of content before it is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// It may go out to who may read the repository.
    Given,
    /// It is not here, so whoever fetches it now proves it.
    Absent,
}

impl Access {
    pub(super) fn new(config: &Config, surroundings: Surroundings) -> Self {
        let rules = Arc::new(Rules::new(&config.access));
        let restricts = config.has_credentials || rules.restrict();
        let inner = Inner {
            negative: surroundings.negative,
            links: Links::new(surroundings.store, Arc::clone(&rules), restricts),
            rules,
            restricts,
            standings: Standings::new(config),
            checks: Flights::new(surroundings.tasks),
            neighbours: surroundings.neighbours,
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
        deadline: Deadline,
    ) -> Result<Proof, PullError> {
        let own = origin.provenance();
        let Some(links) = self.inner.links.latest(digest, &own).await? else {
            return Ok(Proof::Absent);
        };
        if links.is_open {
            return Ok(Proof::Given);
        }
        let is_linked = links.include(&own);
        let settling = self.settle(origin, (digest, form), is_linked, deadline);
        settling.await?;
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
        deadline: Deadline,
    ) -> Result<(), PullError> {
        let is_open = |one: &Provenance| self.inner.rules.is_open(one);
        if !self.inner.restricts || provenance.iter().any(is_open) {
            return Ok(());
        }
        let is_linked = provenance.contains(&origin.provenance());
        self.settle(origin, (digest, Form::Blob), is_linked, deadline)
            .await
    }

    /// Decides about content that is not for everybody, by its link and by what the upstream says.
    async fn settle(
        &self,
        origin: &Origin,
        (digest, form): (&Digest, Form),
        is_linked: bool,
        deadline: Deadline,
    ) -> Result<(), PullError> {
        let own = origin.provenance();
        if is_linked && self.inner.standings.is_confirmed(&own) {
            return Ok(());
        }
        let asked = self.ask(origin, digest, form, deadline);
        if !is_linked || !self.inner.standings.is_in_grace(&own) {
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

    /// Says how long ago the upstream answered out of the repository, which has this content: to
    /// another node, which accepts an answer of this age.
    ///
    /// Asks the upstream, and no other node: whoever asks may itself be asked by this one.
    ///
    /// # Errors
    /// That the repository has it not, or why the upstream cannot be asked.
    /// # Cancel safety
    /// As [`Access::prove`].
    pub(super) async fn vouch_for_peer(
        &self,
        origin: &Origin,
        digest: &Digest,
        form: Form,
        max_age: Duration,
    ) -> Result<Duration, PullError> {
        let own = origin.provenance();
        let age = self.inner.standings.fresh_age(&own);
        if let Some(age) = age.filter(|age| *age < max_age)
            && let Some(links) = self.inner.links.read(digest).await?
            && links.include(&own)
        {
            return Ok(age);
        }
        let deadline = Deadline::within(HEADER_BUDGET);
        let question = (digest, form);
        self.put(origin, question, Vec::new(), deadline).await?;
        Ok(Duration::ZERO)
    }

    /// Asks whether the repository has this content, together with everybody who asks the same
    /// now: first the homes of the content, then the upstream.
    ///
    /// # Errors
    /// That it does not, or why it cannot be asked.
    pub(super) async fn ask(
        &self,
        origin: &Origin,
        digest: &Digest,
        form: Form,
        deadline: Deadline,
    ) -> Result<(), PullError> {
        let neighbours = self.inner.neighbours.as_ref();
        let homes = neighbours.map(|neighbours| neighbours.other_homes(Key::of_digest(digest)));
        let homes = homes.unwrap_or_default();
        self.put(origin, (digest, form), homes, deadline).await
    }

    async fn put(
        &self,
        origin: &Origin,
        (digest, form): (&Digest, Form),
        homes: Vec<Hop>,
        deadline: Deadline,
    ) -> Result<(), PullError> {
        self.inner.negative.check(origin, form.wanted(digest))?;
        let key = (origin.provenance(), *digest, form, homes.is_empty());
        let question = || self.clone().question(origin.clone(), *digest, form, homes);
        let check = self.inner.checks.join(key, question);
        deadline.for_others(check).await?
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
        deadline: Deadline,
    ) -> Result<(), PullError> {
        if !self.inner.restricts {
            return Ok(());
        }
        self.ask(origin, digest, form, deadline).await
    }

    /// Notes that the upstream has given something out of the repository for which it was asked at
    /// `asked`: what it has refused since counts more.
    pub(super) fn confirm(&self, origin: &Origin, asked: Instant) {
        if self.inner.restricts {
            let standings = &self.inner.standings;
            standings.confirm(origin.provenance(), asked);
        }
    }

    /// Whether the caller may know of a repository, written as `upstream/repository`.
    pub(super) fn may_list(&self, name: &str, is_anonymous: bool, caller: &Caller<'_>) -> bool {
        let (upstream, repository) = name.split_once('/').unwrap_or((name, ""));
        let readers = self.inner.rules.readers(upstream, repository, is_anonymous);
        millrace_protocol::access::permits(readers, caller)
    }

    async fn question(
        self,
        origin: Origin,
        digest: Digest,
        form: Form,
        homes: Vec<Hop>,
    ) -> Result<(), PullError> {
        let own = origin.provenance();
        let said = match self.ask_homes(&origin, &digest, form, &homes).await {
            Some(said) => said,
            None => ask::upstream(&origin, &digest, form).await,
        };
        match &said {
            Ok(at) => {
                self.inner.standings.confirm(own.clone(), *at);
                self.inner.links.add(&digest, own).await;
            }
            Err(error) if error.is_denial() => {
                let wanted = form.wanted(&digest);
                self.inner.negative.remember(&origin, wanted, error);
                self.inner.standings.refuse(&own, (digest, form), error);
                self.inner.links.refuse(&digest, own, form, error).await;
            }
            Err(_) => {}
        }
        said.map(drop)
    }
}

/// Returns when the upstream was asked by this origin for bytes that are on their way, if they come
/// from its answer to that, so that they prove that the repository has them.
pub(super) fn fetched_for(transfer: &Transfer, origin: &Origin) -> Option<Instant> {
    let state = transfer.state();
    let (own, asked) = state.fetched.as_ref()?;
    (*own == origin.provenance()).then_some(*asked)
}
