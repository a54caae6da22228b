//! Who takes which blob through this node now, and whom each of them is sent to.
//!
//! Takers of a large blob form a chain: each reads from the one that came before it, so that every
//! link carries the blob once in each direction and the time grows by one chunk per node, however
//! many there are. Who is still there when one that came later has the blob is slow: nobody is sent to
//! it any more, and it takes no slot from others. Who comes again has its former place, because others may
//! have been sent to it. A small blob fits into the first answers: its takers form a flat tree instead.
//! Bookkeeping only; no I/O.

mod blob;

use std::collections::HashMap;
use std::sync::Arc;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use parking_lot::Mutex;

use blob::{Blob, SMALL_BYTES};

/// The takers of this node's blobs; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Takers {
    blobs: Arc<Mutex<HashMap<Digest, Blob>>>,
}

/// Someone who takes a blob; dropping it is leaving.
#[derive(Debug)]
pub(super) struct Place {
    takers: Takers,
    digest: Digest,
    ticket: u64,
    /// It is one of a chain, in which nobody has all before who came earlier, but where that one is slow.
    is_link: bool,
    /// It took all from here and was told that the whole is here: when it leaves, it most likely has it.
    has_whole: bool,
}

/// Someone who reads chunks of a blob; dropping it frees the slot.
#[derive(Debug)]
pub(super) struct Slot {
    takers: Takers,
    digest: Digest,
    node: NodeId,
    is_copy: bool,
}

impl Takers {
    /// Enters a taker and returns whom it should read from before it reads from this node.
    pub(super) fn enter(
        &self,
        digest: &Digest,
        node: NodeId,
        zone: &str,
        size: u64,
    ) -> (Place, Vec<NodeId>) {
        let mut blobs = self.blobs.lock();
        let blob = blobs.entry(*digest).or_default();
        let sources = blob.sources(node, zone, size);
        let ticket = blob.enter(node, zone);
        let place = Place {
            takers: self.clone(),
            digest: *digest,
            ticket,
            is_link: size > SMALL_BYTES,
            has_whole: false,
        };
        (place, sources)
    }

    /// Returns whom a node should read from that makes a copy. It is no taker: whoever was sent to it
    /// would be as slow as it may be.
    pub(super) fn sources(
        &self,
        digest: &Digest,
        node: NodeId,
        zone: &str,
        size: u64,
    ) -> Vec<NodeId> {
        let blobs = self.blobs.lock();
        let blob = blobs.get(digest);
        blob.map_or_else(Vec::new, |blob| blob.sources(node, zone, size))
    }

    /// Takes a slot for reading, for a copy or for what somebody waits for.
    ///
    /// # Errors
    /// All are taken: these nodes may have what is wanted.
    pub(super) fn read(
        &self,
        digest: &Digest,
        node: NodeId,
        size: u64,
        is_copy: bool,
    ) -> Result<Slot, Vec<NodeId>> {
        let mut blobs = self.blobs.lock();
        let blob = blobs.entry(*digest).or_default();
        if !blob.has_slot(node, size, is_copy) {
            return Err(blob.before(node));
        }
        match is_copy {
            true => blob.copiers += 1,
            false => blob.readers.push(node),
        }
        Ok(Slot {
            takers: self.clone(),
            digest: *digest,
            node,
            is_copy,
        })
    }

    /// Returns who may have what a node wants of a blob and cannot have here now: may be nobody.
    pub(super) fn before(&self, digest: &Digest, node: NodeId) -> Vec<NodeId> {
        let blobs = self.blobs.lock();
        let blob = blobs.get(digest);
        blob.map_or_else(Vec::new, |blob| blob.before(node))
    }

    fn leave(&self, digest: &Digest, change: impl FnOnce(&mut Blob)) {
        let mut blobs = self.blobs.lock();
        if let Some(blob) = blobs.get_mut(digest) {
            change(blob);
            if blob.is_deserted() {
                blobs.remove(digest);
            }
        }
    }
}

impl Place {
    /// Records that a taker which had nothing knows all that there is to know of the blob.
    pub(super) fn told_whole(&mut self) {
        self.has_whole = self.is_link;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (ticket, has_whole) = (self.ticket, self.has_whole);
        self.takers
            .leave(&self.digest, |blob| blob.leave(ticket, has_whole));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (node, is_copy) = (self.node, self.is_copy);
        self.takers.leave(&self.digest, |blob| {
            if is_copy {
                blob.copiers -= 1;
            } else if let Some(slot) = blob.readers.iter().position(|it| *it == node) {
                blob.readers.swap_remove(slot);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_protocol::chunk::CHUNK_BYTES;
    use millrace_protocol::oci::Algorithm;

    const LARGE: u64 = 64 * CHUNK_BYTES;

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha256, b"blob")
    }

    #[test]
    fn takers_of_a_large_blob_form_a_chain() {
        let takers = Takers::default();
        let (_first, sources) = takers.enter(&digest(), node(1), "a", LARGE);
        assert_eq!(sources, []);
        let (second, sources) = takers.enter(&digest(), node(2), "a", LARGE);
        assert_eq!(sources, [node(1)]);
        let (_third, sources) = takers.enter(&digest(), node(3), "a", LARGE);
        assert_eq!(sources, [node(2), node(1)]);
        drop(second);
        let (_fourth, sources) = takers.enter(&digest(), node(4), "a", LARGE);
        assert_eq!(sources, [node(3), node(1)]);
    }

    #[test]
    fn who_comes_again_is_sent_to_nobody_that_was_sent_to_it() {
        let takers = Takers::default();
        let enter = |number| takers.enter(&digest(), node(number), "a", LARGE);
        let (_first, _) = enter(1);
        let (second, _) = enter(2);
        let (_third, sources) = enter(3);
        assert_eq!(sources, [node(2), node(1)]);
        drop(second);
        let (second, sources) = enter(2);
        assert_eq!(sources, [node(1)]);
        assert_eq!(takers.before(&digest(), node(3)), [node(2), node(1)]);
        // It may come again before it was seen to leave.
        let (_again, sources) = enter(2);
        drop(second);
        assert_eq!(sources, [node(1)]);
        assert_eq!(takers.before(&digest(), node(3)), [node(2), node(1)]);
    }

    #[test]
    fn a_place_is_kept_only_while_somebody_is_behind_it() {
        let takers = Takers::default();
        let enter = |number| takers.enter(&digest(), node(number), "a", LARGE);
        let (_first, _) = enter(1);
        let (second, _) = enter(2);
        let (third, _) = enter(3);
        drop((second, third));
        let (_fourth, sources) = enter(4);
        assert_eq!(sources, [node(1)]);
        let (_second, sources) = enter(2);
        assert_eq!(sources, [node(4), node(1)]);
    }

    #[test]
    fn who_has_left_reads_beside_the_others_no_more() {
        let takers = Takers::default();
        let enter = |number| takers.enter(&digest(), node(number), "a", LARGE);
        let (first, _) = enter(1);
        let (mut second, _) = enter(2);
        let (_third, _) = enter(3);
        second.told_whole();
        drop(second);
        drop(first);
        let read = |number| takers.read(&digest(), node(number), LARGE, false);
        let _readers = [read(3).expect("a slot"), read(4).expect("a slot")];
        assert!(read(1).is_err(), "as slow it had a slot of its own");
    }

    #[test]
    fn nobody_is_sent_to_another_zone() {
        let takers = Takers::default();
        let (_far, _) = takers.enter(&digest(), node(1), "a", LARGE);
        let (_near, sources) = takers.enter(&digest(), node(2), "b", LARGE);
        assert_eq!(sources, []);
    }

    #[test]
    fn takers_of_a_small_blob_form_a_flat_tree() {
        let takers = Takers::default();
        let places: Vec<_> = (1..=20)
            .map(|number| takers.enter(&digest(), node(number), "a", 10))
            .collect();
        let sources: Vec<_> = places.iter().map(|(_, sources)| sources.clone()).collect();
        assert!(sources[..8].iter().all(Vec::is_empty));
        assert_eq!(sources[8], [node(1)]);
        assert_eq!(sources[15], [node(1)]);
        assert_eq!(sources[16], [node(2)]);
    }

    #[test]
    fn nobody_is_sent_to_who_lets_a_later_one_overtake() {
        let takers = Takers::default();
        let (_slow, _) = takers.enter(&digest(), node(1), "a", LARGE);
        let (mut second, _) = takers.enter(&digest(), node(2), "a", LARGE);
        let (third, sources) = takers.enter(&digest(), node(3), "a", LARGE);
        assert_eq!(sources, [node(2), node(1)]);
        // It may have died in the middle.
        drop(third);
        let (_fourth, sources) = takers.enter(&digest(), node(4), "a", LARGE);
        assert_eq!(sources, [node(2), node(1)]);
        second.told_whole();
        drop(second);
        let (_fifth, sources) = takers.enter(&digest(), node(5), "a", LARGE);
        assert_eq!(sources, [node(4)]);
        assert_eq!(takers.before(&digest(), node(4)), []);
    }

    #[test]
    fn who_is_slow_takes_no_slot_from_others() {
        let takers = Takers::default();
        let (_slow, _) = takers.enter(&digest(), node(1), "a", LARGE);
        let (mut second, _) = takers.enter(&digest(), node(2), "a", LARGE);
        let read = |number| takers.read(&digest(), node(number), LARGE, false);
        let _one = read(1).expect("free");
        let two = read(2).expect("free");
        read(3).expect_err("taken");
        second.told_whole();
        drop((second, two));
        let _three = read(3).expect("free");
        let _four = read(4).expect("free");
        read(5).expect_err("taken");
        let _again = read(1).expect("its own");
    }

    #[test]
    fn slots_are_few_and_name_who_came_before() {
        let takers = Takers::default();
        let (_first, _) = takers.enter(&digest(), node(1), "a", LARGE);
        let (_second, _) = takers.enter(&digest(), node(2), "a", LARGE);
        let (_third, _) = takers.enter(&digest(), node(3), "a", LARGE);
        let slot = takers.read(&digest(), node(1), LARGE, false).expect("free");
        let _other = takers.read(&digest(), node(2), LARGE, false).expect("free");
        let busy = takers
            .read(&digest(), node(3), LARGE, false)
            .expect_err("taken");
        assert_eq!(busy, [node(2), node(1)]);
        assert_eq!(
            takers
                .read(&digest(), node(1), LARGE, false)
                .expect_err("taken"),
            []
        );
        drop(slot);
        takers
            .read(&digest(), node(3), LARGE, false)
            .expect("free again");
    }

    #[test]
    fn a_copy_takes_no_slot_and_no_place_in_the_chain() {
        let takers = Takers::default();
        let (_first, _) = takers.enter(&digest(), node(1), "a", LARGE);
        let named = takers.sources(&digest(), node(2), "a", LARGE);
        assert_eq!(named, [node(1)]);
        let (_third, named) = takers.enter(&digest(), node(3), "a", LARGE);
        assert_eq!(named, [node(1)], "nobody is sent to who makes a copy");
        let copy = takers.read(&digest(), node(2), LARGE, true).expect("free");
        takers
            .read(&digest(), node(4), LARGE, true)
            .expect_err("one at a time");
        let _one = takers.read(&digest(), node(1), LARGE, false).expect("free");
        let _two = takers.read(&digest(), node(3), LARGE, false).expect("free");
        drop(copy);
        takers
            .read(&digest(), node(3), LARGE, false)
            .expect_err("its slot is no other");
        takers
            .read(&digest(), node(4), LARGE, true)
            .expect("free again");
    }

    #[test]
    fn nothing_is_kept_of_who_has_left() {
        let takers = Takers::default();
        let (place, _) = takers.enter(&digest(), node(1), "a", LARGE);
        let slot = takers.read(&digest(), node(1), LARGE, false).expect("free");
        drop(place);
        drop(slot);
        assert!(takers.blobs.lock().is_empty());
    }
}
