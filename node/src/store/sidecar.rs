//! What cannot be derived from content: how it was fetched and what names point to it.
//!
//! The sidecar lies beside the content as JSON, so that it survives the loss of the index. It is
//! written before the content appears under its name: content without a sidecar has unknown
//! provenance and is treated so. Invariant 9 rests on this file.

use std::fmt;
use std::fs;
use std::path::Path;

use millrace_protocol::oci::{MediaType, RepositoryName, Tag};
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::layout;

/// Version of the sidecar's shape; a file of another version counts as absent.
const VERSION: u32 = 1;

/// Most provenances and most tags that one sidecar keeps; the oldest make room.
const MAX_ENTRIES: usize = 64;

/// What some content was fetched as.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Provenance {
    /// Name of the configured upstream.
    pub upstream: String,
    /// Repository within the upstream.
    pub repository: RepositoryName,
    /// Id of the credential that was used, or `anonymous`; never a secret.
    pub credential: String,
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream, self.repository)
    }
}

/// A tag that pointed to this manifest when it was last resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagClaim {
    /// Name of the configured upstream.
    pub upstream: String,
    /// Repository within the upstream.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: Tag,
    /// When the upstream first said so, in seconds since 1970.
    pub resolved_at: u64,
}

impl TagClaim {
    /// Whether both name the same tag.
    pub(super) fn same_name(&self, other: &Self) -> bool {
        self.tag == other.tag
            && self.repository == other.repository
            && self.upstream == other.upstream
    }
}

/// The content of a sidecar file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    version: u32,
    /// The exact `Content-Type` of a manifest; absent for content that was fetched as a blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// What the content was fetched as, oldest first.
    #[serde(default)]
    pub provenance: Vec<Provenance>,
    /// Tags that point here, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<TagClaim>,
}

impl Sidecar {
    /// Describes content that was fetched as `provenance`.
    pub fn new(media_type: Option<MediaType>, provenance: Provenance) -> Self {
        Self::of(media_type, vec![provenance])
    }

    /// Describes content that was fetched as all of `provenance`, or as nothing that is known.
    pub fn of(media_type: Option<MediaType>, mut provenance: Vec<Provenance>) -> Self {
        truncate_front(&mut provenance);
        Self {
            version: VERSION,
            media_type,
            provenance,
            tags: Vec::new(),
        }
    }

    /// Reads a sidecar; an absent, damaged or foreign one is `None`.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let bytes = fs::read(path).ok()?;
        let sidecar: Self = serde_json::from_slice(&bytes).ok()?;
        (sidecar.version == VERSION).then_some(sidecar)
    }

    /// Replaces the file at `path` durably.
    pub(super) fn write(&self, path: &Path) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).expect("a sidecar has no map keys or fallible fields");
        layout::replace(path, &bytes)
    }

    /// Adds what another sidecar of the same content knows. Returns whether anything was new.
    pub(super) fn merge(&mut self, other: Self) -> bool {
        let before = self.clone();
        if self.takes_type_of(&other) {
            self.media_type.clone_from(&other.media_type);
        }
        for provenance in other.provenance {
            self.add_provenance(provenance);
        }
        for claim in other.tags {
            self.claim(claim);
        }
        *self != before
    }

    /// Whether the type that another sidecar states counts: what one registry calls the bytes is not
    /// for another to change.
    fn takes_type_of(&self, other: &Self) -> bool {
        let is_stated = |sidecar: &Self| {
            let media_type = sidecar.media_type.as_ref();
            media_type.is_some_and(|media_type| !media_type.as_str().is_empty())
        };
        if !is_stated(self) {
            return other.media_type.is_some();
        }
        let is_others = |one: &Provenance| other.provenance.contains(one);
        is_stated(other) && self.provenance.iter().all(is_others)
    }

    /// Adds what the content was fetched as, unless that is known.
    pub(super) fn add_provenance(&mut self, provenance: Provenance) {
        if !self.provenance.contains(&provenance) {
            self.provenance.push(provenance);
            truncate_front(&mut self.provenance);
        }
    }

    /// Records that a tag points here.
    pub(super) fn claim(&mut self, claim: TagClaim) {
        self.tags.retain(|known| !known.same_name(&claim));
        self.tags.push(claim);
        truncate_front(&mut self.tags);
    }
}

fn truncate_front<T>(entries: &mut Vec<T>) {
    let excess = entries.len().saturating_sub(MAX_ENTRIES);
    entries.drain(..excess);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(repository: &str) -> Provenance {
        Provenance {
            upstream: "docker.io".into(),
            repository: repository.parse().expect("valid name"),
            credential: "anonymous".into(),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("x.json");
        let sidecar = Sidecar::new(Some(MediaType::new("a/b")), provenance("library/alpine"));
        sidecar.write(&path).expect("written");
        assert_eq!(Sidecar::read(&path), Some(sidecar));
    }

    #[test]
    fn damaged_and_foreign_sidecars_count_as_absent() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("x.json");
        assert_eq!(Sidecar::read(&path), None);
        for content in ["", "{", r#"{"version":2,"provenance":[]}"#] {
            fs::write(&path, content).expect("written");
            assert_eq!(Sidecar::read(&path), None, "{content}");
        }
    }

    #[test]
    fn merging_keeps_each_provenance_once() {
        let mut sidecar = Sidecar::new(None, provenance("a"));
        assert!(!sidecar.merge(Sidecar::new(None, provenance("a"))));
        assert!(sidecar.merge(Sidecar::new(None, provenance("b"))));
        assert_eq!(sidecar.provenance, [provenance("a"), provenance("b")]);
    }

    #[test]
    fn a_type_is_replaced_only_by_who_stated_it() {
        let of = |media_type: &str, repository| {
            Sidecar::new(Some(MediaType::new(media_type)), provenance(repository))
        };
        let after = |mut sidecar: Sidecar, other: Sidecar| {
            sidecar.merge(other);
            sidecar.media_type.expect("stated").as_str().to_owned()
        };
        assert_eq!(after(of("a/b", "a"), of("x/y", "b")), "a/b");
        assert_eq!(after(of("a/b", "a"), of("", "a")), "a/b");
        assert_eq!(after(of("a/b", "a"), of("x/y", "a")), "x/y");
        assert_eq!(after(of("", "a"), of("x/y", "b")), "x/y");
        let as_blob = Sidecar::new(None, provenance("a"));
        assert_eq!(after(as_blob.clone(), of("x/y", "b")), "x/y");
        assert_eq!(after(of("a/b", "a"), as_blob), "a/b");
    }

    #[test]
    fn entries_are_bounded_and_the_newest_stay() {
        let mut sidecar = Sidecar::new(None, provenance("first"));
        for number in 0..MAX_ENTRIES {
            sidecar.merge(Sidecar::new(None, provenance(&format!("r{number}"))));
        }
        assert_eq!(sidecar.provenance.len(), MAX_ENTRIES);
        assert!(!sidecar.provenance.contains(&provenance("first")));
    }
}
