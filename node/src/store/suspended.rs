//! Parts that wait on disk to be continued, and the files that say what they have.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use millrace_protocol::oci::Digest;
use rangemap::RangeSet;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::layout::{self, Layout};
use super::uses::Uses;
use super::{Inner, log_failure};

/// Version of the state file of a suspended part; another one means: begin again.
const STATE_VERSION: u32 = 1;

/// Unit in which the system counts what a file takes, whatever the blocks of its file system.
const BLOCK_BYTES: u64 = 512;

/// What the state file of a suspended part says.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    /// Half-open ranges that are on disk.
    ranges: Vec<(u64, u64)>,
}

/// A part that waits on disk to be continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suspended {
    /// What it takes of the disk.
    pub(super) bytes: u64,
    /// When it was suspended, as `uses` numbers that.
    pub(super) since: u64,
}

impl Inner {
    /// Remembers which ranges of a part are on disk, for whoever continues it; blocks.
    pub(super) fn put_suspended(
        &self,
        digest: &Digest,
        written: &RangeSet<u64>,
        metadata: &Metadata,
    ) -> Result<(), StoreError> {
        let state = State {
            version: STATE_VERSION,
            ranges: written.iter().map(|r| (r.start, r.end)).collect(),
        };
        let state = serde_json::to_vec(&state).expect("numbers are valid JSON");
        layout::replace(&self.layout.part_state(digest), &state)?;
        let part = Suspended {
            bytes: taken(written, metadata),
            since: self.uses.next(),
        };
        self.space.suspend(part.bytes);
        self.suspended.lock().insert(*digest, part);
        Ok(())
    }

    /// Returns which ranges a suspended part has, which count as those of a growing one from now on.
    pub(super) fn take_suspended(&self, digest: &Digest) -> RangeSet<u64> {
        let mut suspended = self.suspended.lock();
        let Some(part) = suspended.remove(digest) else {
            return RangeSet::new();
        };
        let state = self.layout.part_state(digest);
        let mut saved = saved_ranges(&state);
        // From now on the part changes, so the state must not be believed after a crash.
        if let Err(error) = layout::remove(&state) {
            tracing::warn!(%error, "a suspended part is begun anew");
            saved.clear();
        }
        self.space.resume(part.bytes, length(&saved));
        saved
    }
}

/// Reads which ranges a suspended part has; anything odd about it means none.
fn saved_ranges(path: &Path) -> RangeSet<u64> {
    let state: Option<State> = fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match state {
        Some(state) if state.version == STATE_VERSION => state
            .ranges
            .into_iter()
            .filter(|(start, end)| start < end)
            .map(|(start, end)| start..end)
            .collect(),
        _ => RangeSet::new(),
    }
}

/// Finds suspended parts and removes the rest of the folder; for the start of a store.
pub(super) fn find_suspended(
    layout: &Layout,
    uses: &Uses,
) -> Result<Vec<(Digest, Suspended)>, StoreError> {
    let mut found = Vec::new();
    for entry in layout::entries(&layout.parts())? {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let digest: Option<Digest> = name.replacen('-', ":", 1).parse().ok();
        match digest.and_then(|digest| Some((digest, suspended(&path, (layout, uses), &digest)?))) {
            Some(part) => found.push(part),
            None if is_state_of_a_part(&path) => {}
            None => log_failure(layout::remove(&path), "remove what is no part"),
        }
    }
    Ok(found)
}

fn suspended(part: &Path, (layout, uses): (&Layout, &Uses), digest: &Digest) -> Option<Suspended> {
    let saved = saved_ranges(&layout.part_state(digest));
    let metadata = part.metadata().ok().filter(Metadata::is_file)?;
    let since = uses.earlier(metadata.modified().ok()?);
    let bytes = taken(&saved, &metadata);
    (!saved.is_empty()).then_some(Suspended { bytes, since })
}

/// Returns what a part takes of the disk: what the file system says, which may have kept more than
/// was written, or does not know yet.
fn taken(written: &RangeSet<u64>, metadata: &Metadata) -> u64 {
    length(written).max(metadata.blocks().saturating_mul(BLOCK_BYTES))
}

/// Returns how many bytes there are in `ranges`.
pub(super) fn length(ranges: &RangeSet<u64>) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

fn is_state_of_a_part(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "json")
        && path.with_extension("").exists()
}
