//! What the upstream of a mesh has, and how it answers.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_protocol::oci::{Algorithm, Digest};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::fake::{Reply, Seen};

/// Behind how many bytes a body pauses, until the gate is open.
type Pause = Option<(usize, watch::Receiver<bool>)>;

/// What the upstream has: by digest or tag.
#[derive(Clone, Default)]
pub(crate) struct Content {
    blobs: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    tags: Arc<Mutex<HashMap<String, String>>>,
    /// Status of every answer while set.
    pub(crate) broken: Arc<Mutex<Option<u16>>>,
    /// While set, answers wait until it says true.
    pub(crate) gate: Arc<Mutex<Option<watch::Receiver<bool>>>>,
    /// While set, answers from a blob's beginning pause behind so many bytes.
    pub(crate) pause: Arc<Mutex<Pause>>,
    /// While set, answers from a blob's beginning break off behind so many bytes.
    pub(crate) cut: Arc<Mutex<Option<usize>>>,
    /// What `Authorization` must be, once it is set.
    guard: Arc<Mutex<Option<String>>>,
    /// The only repository that has anything, once it is set.
    only_in: Arc<Mutex<Option<String>>>,
}

impl Content {
    pub(crate) fn add(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        self.blobs.lock().insert(digest.to_string(), bytes);
        digest
    }

    pub(crate) fn tag(&self, tag: &str, digest: &Digest) {
        self.tags.lock().insert(tag.to_owned(), digest.to_string());
    }

    /// Lets in only who says this as `Authorization`; others are asked for a password.
    pub(crate) fn guard(&self, authorization: &str) {
        *self.guard.lock() = Some(authorization.to_owned());
    }

    /// Lets all other repositories be empty.
    pub(crate) fn keep_to(&self, repository: &str) {
        *self.only_in.lock() = Some(format!("/v2/{repository}/"));
    }

    pub(super) fn answer(&self, seen: &Seen) -> Reply {
        let only_in = self.only_in.lock().clone();
        if only_in.is_some_and(|only| !seen.target.starts_with(&only)) {
            return Reply::new(404, "");
        }
        let guard = self.guard.lock().clone();
        if guard.is_some_and(|guard| guard != seen.header("authorization")) {
            return Reply::new(401, "").header("www-authenticate", "Basic realm=\"corp\"");
        }
        if let Some(status) = *self.broken.lock() {
            return Reply::new(status, "");
        }
        let path = seen.target.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let tagged = self.tags.lock().get(name).cloned();
        let digest = tagged.unwrap_or_else(|| name.to_owned());
        let Some(bytes) = self.blobs.lock().get(&digest).cloned() else {
            return Reply::new(404, "");
        };
        let range = seen.header("range").strip_prefix("bytes=");
        let start = range.and_then(|range| range.strip_suffix('-')?.parse().ok());
        let reply = match start {
            Some(start) if start > 0 && start < bytes.len() => {
                let (size, last) = (bytes.len(), bytes.len() - 1);
                let range = format!("bytes {start}-{last}/{size}");
                Reply::new(206, &bytes[start..]).header("content-range", range)
            }
            _ => self.whole(bytes),
        };
        let reply = reply
            .header("docker-content-digest", digest)
            .header("content-type", "application/vnd.oci.image.manifest.v1+json");
        match self.gate.lock().clone() {
            Some(gate) => reply.after(gate),
            None => reply,
        }
    }

    fn whole(&self, mut bytes: Vec<u8>) -> Reply {
        let size = bytes.len();
        let cut = *self.cut.lock();
        bytes.truncate(cut.unwrap_or(size));
        let mut reply = Reply::new(200, bytes);
        if cut.is_some() {
            reply = reply.stating(Some(size));
        }
        match self.pause.lock().clone() {
            Some((first, gate)) => reply.pausing(first, gate),
            None => reply,
        }
    }
}
