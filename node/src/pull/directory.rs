//! What the other members have told of their holdings.
//!
//! A member's word counts for as long as its stream lives. That it holds something is believed at
//! once, and found out by taking it; that it holds something *not* is believed only when it has
//! told everything, by the placement that this node has as well. Until then it is asked, so
//! differing views cost a question and never a second fetch.
//!
//! A question from a member that is about to ask an upstream leaves a trace (`intents`): of two that
//! mean to fetch the same, one hears of the other although only one of them asks. This file keeps
//! and looks up; `follow` listens, `neighbours` asks. Source: SPEC.md "Follow".

mod intents;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::HoldingsChange;
use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use intents::Intents;

/// Most keys that are kept of all members together: some 40 MB, and the share of one of 150 members
/// if each of them holds a million contents.
const MAX_KEYS: usize = 2_000_000;

/// What is known of the members' holdings; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    told: HashMap<NodeId, Told>,
    /// How many keys all of them have told.
    keys: usize,
    max_keys: usize,
    intents: Intents,
}

/// What one member has told on the stream that it has now.
#[derive(Debug, Default)]
struct Told {
    keys: HashSet<Key>,
    /// The placement by which it tells.
    placement: Option<u64>,
    in_sync: bool,
    /// Its keys were more than there is room for, and are not kept.
    too_much: bool,
}

/// What a member's word on some content is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// It has told that it holds it.
    Holds,
    /// It would have told.
    HoldsNot,
    /// It has to be asked.
    Unknown,
}

/// A member tells more than there is room for; it is asked instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("member holds more than can be kept in mind")]
pub(super) struct TooMuch;

/// How much the others have told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HoldingsStatus {
    /// Members that are asked to tell what they hold.
    pub members: usize,
    /// Those whose word is complete, so that they need not be asked.
    pub in_sync: usize,
    /// Contents that all of them have told of.
    pub contents: usize,
    /// Members that hold more than can be kept in mind; they are asked.
    #[serde(serialize_with = "texts")]
    pub too_much: Vec<NodeId>,
}

/// Writes ids as text.
pub(super) fn texts<S: Serializer>(ids: &[NodeId], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ids.iter().map(NodeId::to_string))
}

impl Default for Directory {
    fn default() -> Self {
        Self::with_room_for(MAX_KEYS)
    }
}

impl Directory {
    fn with_room_for(max_keys: usize) -> Self {
        let inner = Inner {
            told: HashMap::new(),
            keys: 0,
            max_keys,
            intents: Intents::default(),
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// Begins to believe a member, until what is returned is dropped.
    pub(super) fn open(&self, peer: NodeId) -> Telling {
        let mut inner = self.inner.lock();
        inner.close(&peer);
        inner.told.insert(peer, Told::default());
        Telling {
            directory: self.clone(),
            peer,
        }
    }

    /// Remembers that a member goes to an upstream unless somebody has this.
    pub(super) fn note_intent(&self, peer: NodeId, key: Key) {
        self.inner.lock().intents.note(peer, key);
    }

    /// Returns the members that have stated since then that they mean to fetch this.
    pub(super) fn intending(&self, key: Key, since: Instant) -> Vec<NodeId> {
        self.inner.lock().intents.stated_since(key, since)
    }

    /// Returns what a member's word on `key` is worth to a node with this placement.
    pub(super) fn word(&self, peer: &NodeId, key: Key, placement: u64) -> Word {
        let inner = self.inner.lock();
        let Some(told) = inner.told.get(peer) else {
            return Word::Unknown;
        };
        if told.keys.contains(&key) {
            return Word::Holds;
        }
        let means_to = inner.intents.include(peer, key);
        match told.is_current(placement) && !means_to {
            true => Word::HoldsNot,
            false => Word::Unknown,
        }
    }

    /// Forgets what nodes meant that are no members any more.
    pub(super) fn retain(&self, is_member: impl Fn(&NodeId) -> bool) {
        self.inner.lock().intents.retain(is_member);
    }

    /// Returns how much these members have told a node with this placement.
    pub(super) fn status(&self, members: usize, placement: u64) -> HoldingsStatus {
        let inner = self.inner.lock();
        let current = inner.told.values();
        let current = current.filter(|told| told.is_current(placement));
        let too_much = inner.told.iter().filter(|(_, told)| told.too_much);
        let mut too_much: Vec<NodeId> = too_much.map(|(id, _)| *id).collect();
        too_much.sort();
        HoldingsStatus {
            members,
            in_sync: current.count(),
            contents: inner.keys,
            too_much,
        }
    }
}

/// A member that tells; dropping it forgets what was told.
#[derive(Debug)]
pub(super) struct Telling {
    directory: Directory,
    peer: NodeId,
}

impl Telling {
    /// Takes note of a change.
    ///
    /// # Errors
    /// [`TooMuch`]: of all members this one has told most, and there is no room for all. What it
    /// tells is not kept any more.
    pub(super) fn note(&self, change: HoldingsChange) -> Result<(), TooMuch> {
        let mut inner = self.directory.inner.lock();
        inner.note(self.peer, change);
        let told = inner.told.get(&self.peer);
        match told.is_some_and(|told| told.too_much) {
            true => Err(TooMuch),
            false => Ok(()),
        }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.directory.inner.lock().close(&self.peer);
    }
}

impl Inner {
    fn close(&mut self, peer: &NodeId) {
        if let Some(told) = self.told.remove(peer) {
            self.keys -= told.keys.len();
        }
    }

    fn note(&mut self, peer: NodeId, change: HoldingsChange) {
        let Some(told) = self.told.get_mut(&peer) else {
            return;
        };
        let before = told.keys.len();
        match change {
            HoldingsChange::Began { placement } => {
                told.keys = HashSet::new();
                told.placement = Some(placement);
                told.in_sync = false;
            }
            HoldingsChange::Have(keys) if !told.too_much => told.keys.extend(keys),
            HoldingsChange::Have(_) => {}
            HoldingsChange::Lost(keys) => keys.iter().for_each(|key| {
                told.keys.remove(key);
            }),
            HoldingsChange::Fetching(keys) => {
                for key in keys {
                    self.intents.note(peer, key);
                }
            }
            HoldingsChange::InSync => told.in_sync = true,
        }
        self.keys = self.keys - before + told.keys.len();
        while self.keys > self.max_keys {
            self.drop_largest();
        }
    }

    /// Lets go of the keys of whoever has told most, so that one member cannot crowd out the rest.
    fn drop_largest(&mut self) {
        let largest = self.told.values_mut().max_by_key(|told| told.keys.len());
        let told = largest.expect("more keys than the bound are somebody's");
        self.keys -= told.keys.len();
        told.keys = HashSet::new();
        told.too_much = true;
    }
}

impl Told {
    /// Whether what was not told is not there.
    fn is_current(&self, placement: u64) -> bool {
        self.in_sync && !self.too_much && self.placement == Some(placement)
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::oci::{Algorithm, Digest};

    use super::intents::INTENT_LIFETIME;
    use super::*;

    const PLACEMENT: u64 = 7;

    pub(super) fn peer(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    pub(super) fn key(number: u32) -> Key {
        Key::of_digest(&Digest::of(Algorithm::Sha256, &number.to_le_bytes()))
    }

    fn keys(range: std::ops::Range<u32>) -> HoldingsChange {
        HoldingsChange::Have(range.map(key).collect())
    }

    fn in_sync(directory: &Directory, number: u8, have: HoldingsChange) -> Telling {
        let telling = directory.open(peer(number));
        let placement = PLACEMENT;
        for change in [HoldingsChange::Began { placement }, have] {
            telling.note(change).expect("room");
        }
        telling.note(HoldingsChange::InSync).expect("room");
        telling
    }

    #[test]
    fn what_was_not_told_counts_only_by_the_same_placement_while_the_stream_lives() {
        let directory = Directory::default();
        let word = |number, placement| directory.word(&peer(1), key(number), placement);
        assert_eq!(word(1, PLACEMENT), Word::Unknown);
        let telling = directory.open(peer(1));
        let placement = PLACEMENT;
        telling
            .note(HoldingsChange::Began { placement })
            .expect("room");
        telling.note(keys(1..2)).expect("room");
        assert_eq!(word(1, PLACEMENT), Word::Holds);
        assert_eq!(
            word(2, PLACEMENT),
            Word::Unknown,
            "there may be more to come"
        );
        telling.note(HoldingsChange::InSync).expect("room");
        assert_eq!(word(2, PLACEMENT), Word::HoldsNot);
        assert_eq!(word(2, PLACEMENT + 1), Word::Unknown);
        telling
            .note(HoldingsChange::Lost(vec![key(1)]))
            .expect("room");
        assert_eq!(word(1, PLACEMENT), Word::HoldsNot);
        telling
            .note(HoldingsChange::Began { placement })
            .expect("room");
        assert_eq!(word(1, PLACEMENT), Word::Unknown);
        drop(telling);
        assert_eq!(directory.status(0, PLACEMENT), HoldingsStatus::default());
    }

    #[tokio::test(start_paused = true)]
    async fn an_intent_is_asked_about_for_an_hour() {
        let directory = Directory::default();
        let telling = in_sync(&directory, 1, keys(0..0));
        let word = |number| directory.word(&peer(1), key(number), PLACEMENT);
        directory.note_intent(peer(1), key(1));
        telling
            .note(HoldingsChange::Fetching(vec![key(2)]))
            .expect("room");
        let words = [1, 2, 3].map(word);
        assert_eq!(words, [Word::Unknown, Word::Unknown, Word::HoldsNot]);
        tokio::time::advance(INTENT_LIFETIME).await;
        assert_eq!([1, 2].map(word), [Word::HoldsNot; 2]);
    }

    #[test]
    fn who_tells_most_makes_room_for_the_others() {
        let directory = Directory::with_room_for(100);
        let honest = in_sync(&directory, 1, keys(0..40));
        let liar = in_sync(&directory, 2, keys(0..60));
        honest.note(keys(40..41)).expect("the other one goes");
        assert_eq!(liar.note(keys(100..110)), Err(TooMuch));
        let status = directory.status(2, PLACEMENT);
        assert_eq!((status.in_sync, status.contents), (1, 41));
        assert_eq!(status.too_much, [peer(2)]);
        assert_eq!(directory.word(&peer(2), key(7), PLACEMENT), Word::Unknown);
        assert_eq!(directory.word(&peer(1), key(7), PLACEMENT), Word::Holds);
        // Telling anew does not help: there is no room for it.
        let placement = PLACEMENT;
        assert_eq!(liar.note(HoldingsChange::Began { placement }), Err(TooMuch));
        drop(liar);
        assert_eq!(directory.status(1, PLACEMENT).too_much, []);
    }
}
