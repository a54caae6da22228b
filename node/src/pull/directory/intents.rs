//! Which members mean to fetch what from an upstream, as far as they have said so.
//!
//! Each question from a member that is about to ask an upstream is remembered as long as the fetch
//! may take. What members hold is `directory`'s; whether somebody has to be asked back for an
//! intent is not decided here.

use std::collections::HashMap;
use std::time::Duration;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::placement::Key;
use tokio::time::Instant;

/// How long a member's intent is kept: longer than fetches take. A trace that is too old costs a
/// question, one that was dropped too early a second fetch.
pub(super) const INTENT_LIFETIME: Duration = Duration::from_secs(3600);

/// Most intents that are kept of one member; one that has more is asked about everything.
const MAX_INTENTS: usize = 4096;

/// What all members mean to fetch.
#[derive(Debug, Default)]
pub(super) struct Intents {
    stated: HashMap<NodeId, Stated>,
}

/// What one member means to fetch, and until when that is remembered.
#[derive(Debug, Default)]
struct Stated {
    keys: HashMap<Key, Instant>,
    /// Set while there were too many to keep.
    any_until: Option<Instant>,
}

impl Intents {
    /// Remembers that a member goes to an upstream unless somebody has this.
    pub(super) fn note(&mut self, peer: NodeId, key: Key) {
        self.stated.entry(peer).or_default().note(key);
    }

    /// Whether a member may be about to fetch this.
    pub(super) fn include(&self, peer: &NodeId, key: Key) -> bool {
        let stated = self.stated.get(peer);
        stated.is_some_and(|stated| stated.includes(key))
    }

    /// Returns the members that have stated since then that they mean to fetch this.
    pub(super) fn stated_since(&self, key: Key, since: Instant) -> Vec<NodeId> {
        let all = self.stated.iter();
        let intending = all.filter(|(_, stated)| stated.includes_since(key, since));
        intending.map(|(id, _)| *id).collect()
    }

    /// Forgets what nodes meant that are no members any more.
    pub(super) fn retain(&mut self, is_member: impl Fn(&NodeId) -> bool) {
        self.stated.retain(|id, _| is_member(id));
    }
}

impl Stated {
    fn note(&mut self, key: Key) {
        let now = Instant::now();
        if self.keys.len() >= MAX_INTENTS {
            self.keys.retain(|_, until| *until > now);
        }
        let until = now + INTENT_LIFETIME;
        if self.keys.len() >= MAX_INTENTS {
            self.any_until = Some(until);
            return;
        }
        self.keys.insert(key, until);
    }

    fn includes(&self, key: Key) -> bool {
        let now = Instant::now();
        let any = self.any_until.is_some_and(|until| until > now);
        any || self.keys.get(&key).is_some_and(|until| *until > now)
    }

    fn includes_since(&self, key: Key, since: Instant) -> bool {
        let until = self.keys.get(&key).copied().max(self.any_until);
        until.is_some_and(|until| until >= since + INTENT_LIFETIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::directory::tests::{key, peer};

    #[tokio::test(start_paused = true)]
    async fn who_has_stated_an_intent_lately_is_known() {
        let mut intents = Intents::default();
        intents.note(peer(1), key(1));
        tokio::time::advance(Duration::from_millis(1)).await;
        let since = Instant::now();
        intents.note(peer(2), key(1));
        intents.note(peer(3), key(2));
        assert_eq!(intents.stated_since(key(1), since), [peer(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_means_to_fetch_too_much_may_be_about_to_fetch_anything() {
        let mut intents = Intents::default();
        for number in 0..=MAX_INTENTS {
            intents.note(peer(1), key(u32::try_from(number).expect("small")));
        }
        assert!(intents.include(&peer(1), key(u32::MAX)));
        tokio::time::advance(INTENT_LIFETIME).await;
        assert!(!intents.include(&peer(1), key(u32::MAX)));
    }
}
