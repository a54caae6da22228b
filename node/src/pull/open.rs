//! Opening a blob for a client: from the store, else by the one transfer of its digest.
//!
//! Also what a `HEAD` tells of a blob, for which nothing is fetched. How the bytes come here is the
//! filler's, how they are read is said in `blob`.

use millrace_protocol::oci::Digest;

use super::Puller;
use super::access::{Form, Proof, fetched_for};
use super::blob::OpenBlob;
use super::deadline::Deadline;
use super::error::PullError;
use super::metrics::Kind;
use super::negative::Wanted;
use super::origin::{Origin, Source};
use super::table::Want;
use super::transfer::{Transfer, Waiter};

/// What a client needs of a blob without its bytes.
#[derive(Clone, Copy, Debug)]
pub struct BlobHead {
    /// Size in bytes, unless the upstream does not tell.
    pub size: Option<u64>,
    /// Where it would come from.
    pub source: Source,
}

impl Puller {
    /// Opens a blob; returns when a source is confirmed.
    ///
    /// # Errors
    /// Why it cannot be had.
    /// # Cancel safety
    /// Dropping the future removes a waiter and nothing else.
    /// Source: OCI Distribution Spec end-2.
    pub async fn blob(&self, origin: &Origin, digest: &Digest) -> Result<OpenBlob, PullError> {
        let deadline = self.deadline();
        let opening = self.open_blob(origin, digest, deadline);
        let result = deadline.for_answer(opening).await.flatten();
        let source = result.as_ref().ok().map(OpenBlob::source);
        self.inner.metrics.count(Kind::blob, source);
        result
    }

    async fn open_blob(
        &self,
        origin: &Origin,
        digest: &Digest,
        deadline: Deadline,
    ) -> Result<OpenBlob, PullError> {
        let access = &self.inner.access;
        let mut proof = access.prove(origin, digest, Form::Blob, deadline).await?;
        if let Some(blob) = self.inner.store.blob(digest).await? {
            if proof == Proof::Absent {
                // It was committed between the two.
                proof = access.prove(origin, digest, Form::Blob, deadline).await?;
            }
            if proof == Proof::Given {
                return Ok(OpenBlob::stored(*digest, origin.clone(), deadline, blob));
            }
        }
        self.inner.negative.check(origin, Wanted::Blob(*digest))?;
        let joined = match self.join(origin, digest, deadline).await {
            // Nothing has reached the client yet, so one fresh attempt is free.
            Err(error) if error.is_corrupt() => self.join(origin, digest, deadline).await,
            result => result,
        };
        let waiter = joined?;
        if proof == Proof::Absent {
            self.share(origin, &waiter.transfer, deadline).await?;
        }
        Ok(OpenBlob::growing(origin.clone(), deadline, waiter))
    }

    /// Lets a client have bytes that are on their way, perhaps for somebody else's repository.
    async fn share(
        &self,
        origin: &Origin,
        transfer: &Transfer,
        deadline: Deadline,
    ) -> Result<(), PullError> {
        let access = &self.inner.access;
        if let Some(asked) = fetched_for(transfer, origin) {
            access.confirm(origin, asked);
            return Ok(());
        }
        let digest = &transfer.digest;
        if access.prove(origin, digest, Form::Blob, deadline).await? == Proof::Given {
            return Ok(());
        }
        let provenance = transfer.state().fetched_as();
        access.vouch(origin, digest, &provenance, deadline).await
    }

    async fn join(
        &self,
        origin: &Origin,
        digest: &Digest,
        deadline: Deadline,
    ) -> Result<Waiter, PullError> {
        let fillers = &self.inner.fillers;
        let origins = std::slice::from_ref(origin);
        let joined = fillers.table.join(digest, origins, Want::CLIENT);
        if let Some(far) = joined.begun {
            fillers.start(&joined.waiter.transfer, far);
        }
        let confirmed = deadline.for_others(joined.waiter.confirmed()).await;
        let is_queued = joined.waiter.transfer.is_queued();
        confirmed.map_err(|error| error.in_crowd_of(&origin.upstream, is_queued))??;
        Ok(joined.waiter)
    }

    /// Returns what a `HEAD` of a blob tells, without fetching it.
    ///
    /// The upstream is asked for one byte, because some refuse `HEAD` (contract U8).
    ///
    /// # Errors
    /// Why it cannot be had.
    pub async fn blob_head(&self, origin: &Origin, digest: &Digest) -> Result<BlobHead, PullError> {
        let deadline = self.deadline();
        let examining = self.examine_blob(origin, digest, deadline);
        deadline.for_answer(examining).await.flatten()
    }

    async fn examine_blob(
        &self,
        origin: &Origin,
        digest: &Digest,
        deadline: Deadline,
    ) -> Result<BlobHead, PullError> {
        let access = &self.inner.access;
        let proof = access.prove(origin, digest, Form::Blob, deadline).await?;
        let blob = match proof {
            Proof::Given => self.inner.store.blob(digest).await?,
            Proof::Absent => None,
        };
        if let Some(blob) = blob {
            return Ok(BlobHead {
                size: Some(blob.size()),
                source: Source::Local,
            });
        }
        self.inner.negative.check(origin, Wanted::Blob(*digest))?;
        let elsewhere = self.head_elsewhere(origin, digest, proof, deadline);
        if let Some(head) = elsewhere.await? {
            return Ok(head);
        }
        let Origin {
            upstream,
            repository,
        } = origin;
        let probing = upstream.probe_blob(repository, digest, deadline.asking());
        let size = probing
            .await
            .map_err(PullError::from)
            .inspect_err(|error| {
                let wanted = Wanted::Blob(*digest);
                self.inner.negative.remember(origin, wanted, error);
            })?;
        Ok(BlobHead {
            size,
            source: Source::Upstream,
        })
    }

    /// Returns what is known of a blob that is on its way to this node or that another node has,
    /// as soon as it may be told to this client: that a blob exists is no less than its bytes.
    async fn head_elsewhere(
        &self,
        origin: &Origin,
        digest: &Digest,
        proof: Proof,
        deadline: Deadline,
    ) -> Result<Option<BlobHead>, PullError> {
        let transfer = self.inner.fillers.table.get(digest);
        if let Some(transfer) = transfer.filter(|transfer| transfer.state().is_confirmed()) {
            if proof == Proof::Absent {
                self.share(origin, &transfer, deadline).await?;
            }
            let size = transfer.state().size;
            let source = Source::Upstream;
            return Ok(size.map(|_| BlobHead { size, source }));
        }
        let Some(neighbours) = &self.inner.neighbours else {
            return Ok(None);
        };
        let Some((size, provenance)) = neighbours.examine(digest).await else {
            return Ok(None);
        };
        if proof == Proof::Absent {
            let access = &self.inner.access;
            access.vouch(origin, digest, &provenance, deadline).await?;
        }
        Ok(Some(BlobHead {
            size: Some(size),
            source: Source::Peer,
        }))
    }
}
