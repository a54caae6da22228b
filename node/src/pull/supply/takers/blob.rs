//! In which order one blob's takers came, which of them keep up, and how many read it here.
//!
//! Whose places and slots end when is `takers`' to say.

use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::node_id::NodeId;

/// Up to this size a blob has no chain: the chain's delay would be all of its transfer.
pub(super) const SMALL_BYTES: u64 = 4 * CHUNK_BYTES;

/// How many takers of a small blob are sent to the same source.
const SMALL_FAN_OUT: usize = 8;

/// Most readers of one large blob at a time: the first of the chain, and one that lost its place.
const MAX_READERS: usize = 2;

/// Most slow ones besides, of which each takes little of the link.
const MAX_SLOW_READERS: usize = 4;

/// Most readers of one small blob at a time.
const MAX_SMALL_READERS: usize = 32;

/// Most readers of one blob at a time for whom nobody waits.
const MAX_COPIERS: usize = 1;

/// Most other takers that one is sent to, the best first.
const MAX_NAMED: usize = 3;

/// Who takes one blob, and who reads it.
#[derive(Debug, Default)]
pub(super) struct Blob {
    /// In the order in which they first came. Who has left stays for as long as somebody is there that
    /// came later, and was perhaps sent to it.
    takers: Vec<Taker>,
    /// How often it was opened.
    openings: u64,
    pub(super) readers: Vec<NodeId>,
    /// Readers of what nobody waits for: beside the others, so that they take no place from them.
    pub(super) copiers: usize,
}

#[derive(Debug)]
struct Taker {
    node: NodeId,
    zone: String,
    /// Tells two openings by the same node apart.
    ticket: u64,
    /// One that came later has all of the blob.
    is_slow: bool,
    has_left: bool,
}

impl Blob {
    /// Enters a taker; one that comes again has its former place. Returns its ticket.
    pub(super) fn enter(&mut self, node: NodeId, zone: &str) -> u64 {
        let ticket = self.openings;
        self.openings += 1;
        let taker = Taker {
            node,
            zone: zone.to_owned(),
            ticket,
            is_slow: false,
            has_left: false,
        };
        match self.place(node) {
            Some(former) if self.takers[former].has_left => self.takers[former] = taker,
            Some(former) => self.takers.insert(former, taker),
            None => self.takers.push(taker),
        }
        ticket
    }

    /// Returns where a node is among the takers.
    fn place(&self, node: NodeId) -> Option<usize> {
        self.takers.iter().position(|taker| taker.node == node)
    }

    /// Lets a taker leave; `has_whole` says whether it most likely has the blob.
    pub(super) fn leave(&mut self, ticket: u64, has_whole: bool) {
        let place = self.takers.iter().position(|taker| taker.ticket == ticket);
        let Some(place) = place else {
            return;
        };
        let (before, rest) = self.takers.split_at_mut(place);
        let Taker { node, ref zone, .. } = rest[0];
        let before = before.iter_mut();
        let before = before.filter(|taker| taker.zone == *zone && taker.node != node);
        before.for_each(|taker| taker.is_slow |= has_whole);
        if self.place(node) == Some(place) {
            self.takers[place].has_left = true;
        } else {
            // It has come again.
            self.takers.remove(place);
        }
        while self.takers.pop_if(|last| last.has_left).is_some() {}
    }

    /// Whether a node may read one time more than now.
    pub(super) fn has_slot(&self, node: NodeId, size: u64, is_copy: bool) -> bool {
        if is_copy {
            return self.copiers < MAX_COPIERS;
        }
        let is_slow = self.is_slow(node);
        let limit = match is_slow {
            true => MAX_SLOW_READERS,
            false if size <= SMALL_BYTES => MAX_SMALL_READERS,
            false => MAX_READERS,
        };
        let readers = self.readers.iter();
        let readers = readers.filter(|reader| self.is_slow(**reader) == is_slow);
        readers.count() < limit
    }

    fn is_slow(&self, node: NodeId) -> bool {
        let mut openings = self.takers.iter().filter(|taker| taker.node == node);
        openings.any(|taker| taker.is_slow && !taker.has_left)
    }

    /// Returns whom a node should read from before it reads from this one.
    pub(super) fn sources(&self, node: NodeId, zone: &str, size: u64) -> Vec<NodeId> {
        let others = self.came_before(node);
        let others = others.filter(|taker| taker.zone == zone);
        let others: Vec<NodeId> = others.map(|taker| taker.node).collect();
        if size <= SMALL_BYTES {
            let parent = others.len().checked_sub(SMALL_FAN_OUT);
            return parent
                .map(|behind| others[behind / SMALL_FAN_OUT])
                .into_iter()
                .collect();
        }
        others.into_iter().rev().take(MAX_NAMED).collect()
    }

    /// Returns the takers that came before a node, the latest first.
    pub(super) fn before(&self, node: NodeId) -> Vec<NodeId> {
        let before = self.came_before(node).rev();
        before.take(MAX_NAMED).map(|taker| taker.node).collect()
    }

    /// Returns the takers that came before a node and keep up, in that order: reading only from them, no
    /// two takers ever wait for each other.
    fn came_before(&self, node: NodeId) -> impl DoubleEndedIterator<Item = &Taker> {
        let end = self.place(node).unwrap_or(self.takers.len());
        let before = self.takers[..end].iter();
        before.filter(|taker| !taker.has_left && !taker.is_slow)
    }

    /// Whether nobody takes or reads it.
    pub(super) fn is_deserted(&self) -> bool {
        self.takers.is_empty() && self.readers.is_empty() && self.copiers == 0
    }
}
