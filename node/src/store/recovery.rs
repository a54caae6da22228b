//! Entering into the index what it lacks of the files, behind the first requests: everything if it
//! is new, else what was committed in the last moment before a crash.
//!
//! Reads names, and sizes and sidecars of what is entered; content is not hashed here (that is a
//! scrub's work). Requests are served meanwhile, because existence is decided by the file.

use std::collections::HashMap;
use std::fs::{DirEntry, Metadata};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use millrace_protocol::oci::Digest;

use super::error::StoreError;
use super::index::{BlobRecord, Opened};
use super::sidecar::Sidecar;
use super::tags::{TagName, TagRecord};
use super::{Inner, layout};

impl Inner {
    /// Enters every blob on disk that the index lacks; blocks, and returns early when `stop` says so.
    pub(super) fn rebuild(
        self: &Arc<Self>,
        opened: Opened,
        stop: impl Fn() -> bool,
    ) -> Result<(), StoreError> {
        let last_use = |modified| match opened {
            // It came right before a crash, when the numbers may have been far ahead of the time.
            Opened::Existing => self.uses.next(),
            Opened::New => self.uses.earlier(modified),
        };
        let mut tags: HashMap<TagName, TagRecord> = HashMap::new();
        let mut outcome = Ok(());
        self.layout.visit_blobs(|digest, entry| {
            outcome = self.adopt(&digest, entry, last_use, &mut tags);
            outcome.is_ok() && !stop()
        });
        outcome?;
        for (name, record) in tags {
            self.adopt_tag(&name, &record)?;
        }
        Ok(())
    }

    /// Enters one blob, unless it is known or was evicted meanwhile.
    fn adopt(
        &self,
        digest: &Digest,
        entry: &DirEntry,
        last_use: impl Fn(SystemTime) -> u64,
        tags: &mut HashMap<TagName, TagRecord>,
    ) -> Result<(), StoreError> {
        if self.index.blob(digest)?.is_some() {
            return Ok(());
        }
        // The lock that eviction removes files under: a file seen here is there.
        let pins = self.pins.lock();
        let metadata = entry.metadata().ok().filter(Metadata::is_file);
        let Some(metadata) = metadata else {
            return Ok(());
        };
        if self.index.blob(digest)?.is_none() {
            let modified = metadata.modified().unwrap_or(UNIX_EPOCH);
            let record = BlobRecord {
                size: metadata.len(),
                accessed: last_use(modified),
            };
            self.record(digest, record)?;
        }
        drop(pins);
        let Some(sidecar) = Sidecar::read(&self.layout.sidecar(digest)) else {
            return Ok(());
        };
        self.index_repositories(&sidecar)?;
        collect_tags(digest, sidecar, tags);
        Ok(())
    }

    /// Enters a tag, unless it was resolved anew meanwhile.
    fn adopt_tag(&self, name: &TagName, record: &TagRecord) -> Result<(), StoreError> {
        if self.index.tag::<TagRecord>(&name.key())?.is_none() {
            self.index.put_tag(&name.key(), record)?;
        }
        Ok(())
    }

    /// Enters the repositories that a sidecar names into the catalog.
    pub(super) fn index_repositories(&self, sidecar: &Sidecar) -> Result<(), StoreError> {
        for provenance in &sidecar.provenance {
            self.index
                .put_repository(&provenance.upstream, &provenance.repository)?;
        }
        for claim in &sidecar.tags {
            self.index
                .put_repository(&claim.upstream, &claim.repository)?;
        }
        Ok(())
    }

    /// Drops parts that a crash left behind and accounts for those that were suspended.
    pub(super) fn adopt_parts(&self) -> Result<(), StoreError> {
        for (digest, part) in super::suspended::find_suspended(&self.layout, &self.uses)? {
            self.space.suspend(part.bytes);
            self.suspended.lock().insert(digest, part);
        }
        layout::sync_folder(&self.layout.parts())
    }
}

/// Keeps the youngest claim of each tag.
fn collect_tags(digest: &Digest, sidecar: Sidecar, tags: &mut HashMap<TagName, TagRecord>) {
    for claim in sidecar.tags {
        let record = TagRecord {
            digest: *digest,
            resolved_at: claim.resolved_at,
            checked_at: claim.resolved_at,
        };
        let name = TagName {
            upstream: claim.upstream,
            repository: claim.repository,
            tag: claim.tag,
        };
        let known = tags.entry(name).or_insert_with(|| record.clone());
        if known.resolved_at < record.resolved_at {
            *known = record;
        }
    }
}
