//! What this node waits for others for: the upstream, or nodes that do.
//!
//! Whoever has asked this node is told *pending* for as long, and is told that nothing comes of it
//! when the node's own work does not get on instead: its disk hangs, say. Bookkeeping only.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_protocol::placement::Key;
use parking_lot::Mutex;

/// The keys of what is waited for, with how often; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Waits {
    keys: Arc<Mutex<HashMap<Key, usize>>>,
}

/// A wait; dropping it ends it.
#[derive(Debug)]
pub(super) struct Waiting {
    waits: Waits,
    key: Key,
}

impl Waits {
    /// Notes that others are waited for, for as long as the result lives.
    pub(super) fn begin(&self, key: Key) -> Waiting {
        *self.keys.lock().entry(key).or_default() += 1;
        Waiting {
            waits: self.clone(),
            key,
        }
    }

    /// Whether others are waited for.
    pub(super) fn contains(&self, key: Key) -> bool {
        self.keys.lock().contains_key(&key)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut keys = self.waits.keys.lock();
        if let Some(count) = keys.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                keys.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_protocol::oci::{Algorithm, Digest};

    #[test]
    fn a_key_is_waited_for_until_the_last_wait_ends() {
        let waits = Waits::default();
        let key = Key::of_digest(&Digest::of(Algorithm::Sha256, b"blob"));
        let (first, second) = (waits.begin(key), waits.begin(key));
        drop(first);
        assert!(waits.contains(key));
        drop(second);
        assert!(waits.keys.lock().is_empty());
    }
}
