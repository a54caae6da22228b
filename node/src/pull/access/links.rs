//! The links of content that is here: the repositories that it was fetched out of.
//!
//! They stand in the store, and those that were used lately also in memory. Whether a link is still
//! believed is not decided here.

use std::sync::Arc;

use millrace_protocol::oci::Digest;
use moka::sync::Cache;

use crate::store::{Provenance, Record, Store};
use crate::upstream::FetchError;

use super::super::error::PullError;
use super::Form;
use super::rules::Rules;

/// Most contents whose links are kept in memory; some 300 bytes each.
const MAX_LINKS: u64 = 20_000;

/// The links of all content.
#[derive(Debug)]
pub(super) struct Links {
    store: Store,
    rules: Arc<Rules>,
    /// Whether anything is kept from anybody by the configuration.
    restricts: bool,
    known: Cache<Digest, Linked>,
}

/// What some content was fetched as.
#[derive(Clone, Debug)]
pub(super) struct Linked {
    /// Whether one of them is for everybody.
    pub(super) is_open: bool,
    all: Arc<[Provenance]>,
}

impl Linked {
    pub(super) fn include(&self, own: &Provenance) -> bool {
        self.all.contains(own)
    }
}

impl Links {
    pub(super) fn new(store: Store, rules: Arc<Rules>, restricts: bool) -> Self {
        Self {
            store,
            rules,
            restricts,
            known: Cache::new(MAX_LINKS),
        }
    }

    /// Returns the links of content, from the store unless those in memory are enough for `own`;
    /// `None` if the content is not here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) async fn latest(
        &self,
        digest: &Digest,
        own: &Provenance,
    ) -> Result<Option<Linked>, PullError> {
        let known = self.known.get(digest);
        match known.filter(|links| links.is_open || links.include(own)) {
            Some(links) => Ok(Some(links)),
            None => self.read(digest).await,
        }
    }

    /// Returns the links of content from the store; `None` if the content is not here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) async fn read(&self, digest: &Digest) -> Result<Option<Linked>, PullError> {
        let links = match self.store.links(digest).await? {
            None => return Ok(None),
            Some(Record::Known(all)) if !all.is_empty() => Linked {
                is_open: all.iter().any(|one| self.rules.is_open(one)),
                all: all.into(),
            },
            // It could be anybody's, because the record is lost or a peer did not know either;
            // where nothing is kept from anybody it is given all the same.
            Some(Record::Known(_) | Record::Lost) => Linked {
                is_open: !self.restricts,
                all: Arc::new([]),
            },
        };
        self.known.insert(*digest, links.clone());
        Ok(Some(links))
    }

    /// Keeps that the repository has this content.
    pub(super) async fn add(&self, digest: &Digest, own: Provenance) {
        let kept = self.store.link(digest, own).await;
        self.known.invalidate(digest);
        if let Err(error) = kept {
            tracing::warn!(%error, blob.digest = %digest, "a link is not kept; it will be asked for again");
        }
    }

    /// Takes a link away where a refusal says that the repository has the content no more.
    pub(super) async fn refuse(
        &self,
        digest: &Digest,
        own: Provenance,
        form: Form,
        error: &PullError,
    ) {
        if !self.is_withdrawn(digest, form, error).await {
            return;
        }
        let removed = self.store.unlink(digest, own).await;
        self.known.invalidate(digest);
        if let Err(error) = removed {
            tracing::error!(%error, blob.digest = %digest, "a withdrawn link is still on disk");
        }
    }

    /// Whether a refusal in this form is about the content as it is here: what was fetched as a
    /// manifest may never have been there as a blob, and the reverse.
    async fn is_withdrawn(&self, digest: &Digest, form: Form, error: &PullError) -> bool {
        if matches!(error, PullError::Fetch(FetchError::Denied { .. })) {
            // That is about the repository, whatever was asked for.
            return true;
        }
        let known = match self.store.manifest(digest).await {
            Ok(Some(_)) => Form::Manifest,
            Ok(None) | Err(_) => Form::Blob,
        };
        form == known
    }
}
