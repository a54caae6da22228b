//! Many memberships, and a network between them, in virtual time.
//!
//! Words are passed on as gossip does: each node gives what is news to a few of those it is
//! connected to. Delays are random; the seed decides all of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use millrace_protocol::membership::{
    ANNOUNCE_EVERY, Announcement, Contact, Heard, Membership, Presence, Standing, TICK_EVERY,
};
use millrace_protocol::node_id::NodeId;

/// To how many each node passes on what is news to it.
const FAN_OUT: usize = 8;

/// How long a dial of somebody who does not answer takes.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// What a node believes: whom it counts as a member, and whom of these it may ask.
pub(crate) type Belief = BTreeMap<usize, bool>;

pub(crate) struct Fleet {
    pub(crate) now: Instant,
    nodes: Vec<Node>,
    /// The side of a split that each node is on.
    sides: Vec<u8>,
    queue: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    events: u64,
    random: u64,
    /// Messages that were delivered.
    pub(crate) delivered: u64,
}

struct Node {
    membership: Membership,
    generation: u64,
    sequence: u64,
    up: bool,
    /// A stopped node keeps its connections and does nothing.
    stopped: bool,
    connected: BTreeSet<usize>,
    missed: Vec<Event>,
    /// What it heard last of each author; gossip drops what it has passed on already.
    heard: Vec<(u64, u64)>,
    /// Whom it knew when it last ended.
    remembered: Vec<Contact>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick(usize, u64),
    Announce(usize, u64),
    /// To, author, and its words; from whom it came does not matter.
    Words(usize, usize, Rc<Words>),
    Connected(usize, usize),
    Disconnected(usize, usize),
    Dial(usize, usize),
    DialFailed(usize, usize),
}

/// What of an announcement differs from one to the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Words {
    generation: u64,
    sequence: u64,
    leaving: bool,
    denied: Vec<NodeId>,
}

impl Fleet {
    /// Starts `size` nodes that know nobody but the first one.
    pub(crate) fn new(size: usize, seed: u64) -> Self {
        #[expect(clippy::disallowed_methods, reason = "some origin for virtual time")]
        let now = Instant::now();
        let mut fleet = Self {
            now,
            nodes: Vec::new(),
            sides: vec![0; size],
            queue: BinaryHeap::new(),
            events: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            delivered: 0,
        };
        for index in 0..size {
            fleet.nodes.push(Node {
                membership: Membership::new(id(index), 1, 1, now),
                generation: 0,
                sequence: 0,
                up: false,
                stopped: false,
                connected: BTreeSet::new(),
                missed: Vec::new(),
                heard: vec![(0, 0); size],
                remembered: Vec::new(),
            });
        }
        for index in 0..size {
            fleet.start(index);
        }
        fleet
    }

    /// Starts a node, or starts it again with the next generation.
    pub(crate) fn start(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.nodes[index];
        assert!(!node.up, "it runs already");
        node.generation += 1;
        node.sequence = 0;
        node.heard.fill((0, 0));
        node.up = true;
        node.membership = Membership::new(id(index), node.generation, node.generation, now);
        let remembered = std::mem::take(&mut node.remembered);
        node.membership.handle_remembered(remembered, now);
        if index != 0 {
            node.membership.handle_contacts(vec![contact(0)], now);
        }
        let generation = node.generation;
        let (tick, announce) = (self.below(TICK_EVERY), self.below(ANNOUNCE_EVERY));
        self.after(tick, Event::Tick(index, generation));
        self.after(announce, Event::Announce(index, generation));
    }

    /// Ends a node without a word; the system closes its connections.
    pub(crate) fn crash(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.up = false;
        node.stopped = false;
        node.missed.clear();
        node.remembered = node.membership.contacts();
        for other in std::mem::take(&mut node.connected) {
            self.soon(Event::Disconnected(other, index));
        }
    }

    /// Ends a node as a drain does.
    pub(crate) fn leave(&mut self, index: usize) {
        self.announce(index, true);
        self.crash(index);
    }

    /// Stops a node as SIGSTOP does.
    pub(crate) fn stop(&mut self, index: usize) {
        self.nodes[index].stopped = true;
    }

    /// Lets it go on; what it was sent in the meantime has waited.
    pub(crate) fn resume(&mut self, index: usize) {
        self.nodes[index].stopped = false;
        for event in std::mem::take(&mut self.nodes[index].missed) {
            self.after(Duration::ZERO, event);
        }
    }

    /// Lets nothing pass between nodes on different sides.
    pub(crate) fn split(&mut self, side: impl Fn(usize) -> u8) {
        self.sides = (0..self.nodes.len()).map(side).collect();
    }

    pub(crate) fn deny(&mut self, index: usize, denied: usize) {
        self.nodes[index].membership.handle_denied([id(denied)]);
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(Reverse((at, ..))) = self.queue.peek()
            && *at <= end
        {
            let Some(Reverse((at, _, event))) = self.queue.pop() else {
                break;
            };
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    /// Lets time pass until `done`, and returns how much it was.
    ///
    /// # Panics
    /// When that takes longer than `patience`.
    pub(crate) fn until(&mut self, patience: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            let passed = self.now - start;
            assert!(
                passed < patience,
                "not within {patience:?}: {:?}",
                self.beliefs()
            );
            self.run(Duration::from_millis(50));
        }
        self.now - start
    }

    fn runs(&self, index: usize) -> bool {
        self.nodes[index].up && !self.nodes[index].stopped
    }

    /// What the nodes that run believe, without repetitions; each counts itself as a member.
    pub(crate) fn beliefs(&self) -> BTreeSet<Belief> {
        let running = (0..self.nodes.len()).filter(|&index| self.runs(index));
        running.map(|index| self.belief(index)).collect()
    }

    pub(crate) fn belief(&self, index: usize) -> Belief {
        let members = self.nodes[index].membership.members();
        let others = members.map(|(id, member)| (index_of(id), member.standing == Standing::Alive));
        others.chain([(index, true)]).collect()
    }

    /// Whether all that run believe the same: these are the members, and all of them are alive.
    pub(crate) fn agrees_on(&self, members: impl IntoIterator<Item = usize>) -> bool {
        let expected: Belief = members.into_iter().map(|index| (index, true)).collect();
        self.beliefs() == BTreeSet::from([expected])
    }

    /// Whether this node takes those whom it knows for all.
    pub(crate) fn is_settled(&self, index: usize) -> bool {
        self.runs(index) && self.nodes[index].membership.is_settled(self.now)
    }

    /// Whether anybody else who runs would still ask this node.
    pub(crate) fn is_asked(&self, index: usize) -> bool {
        let asks = |belief: &Belief| belief.get(&index) == Some(&true);
        let others = (0..self.nodes.len()).filter(|&other| other != index && self.runs(other));
        others
            .map(|other| self.belief(other))
            .any(|belief| asks(&belief))
    }

    /// Whether anybody else who runs counts this node as a member.
    pub(crate) fn is_seated(&self, index: usize) -> bool {
        let others = (0..self.nodes.len()).filter(|&other| other != index && self.runs(other));
        others
            .map(|other| self.belief(other))
            .any(|belief| belief.contains_key(&index))
    }

    fn happen(&mut self, event: Event) {
        let (Event::Tick(index, _)
        | Event::Announce(index, _)
        | Event::Words(index, ..)
        | Event::Connected(index, _)
        | Event::Disconnected(index, _)
        | Event::Dial(index, _)
        | Event::DialFailed(index, _)) = event;
        if !self.nodes[index].up {
            return;
        }
        if self.nodes[index].stopped {
            self.nodes[index].missed.push(event);
            return;
        }
        let now = self.now;
        match event {
            Event::Tick(index, generation) => self.tick(index, generation),
            Event::Announce(index, generation) => {
                if self.nodes[index].generation == generation {
                    self.announce(index, false);
                    self.after(ANNOUNCE_EVERY, Event::Announce(index, generation));
                }
            }
            Event::Words(index, author, words) => self.hear(index, author, &words),
            Event::Connected(index, other) => self.connect(index, other),
            Event::Disconnected(index, other) => {
                if self.nodes[index].connected.remove(&other) {
                    self.nodes[index]
                        .membership
                        .handle_disconnected(id(other), now);
                }
            }
            Event::Dial(index, from) => {
                let denied = self.nodes[index].membership.is_denied(&id(from));
                if denied {
                    return self.soon(Event::DialFailed(from, index));
                }
                self.connect(index, from);
                self.soon(Event::Connected(from, index));
            }
            Event::DialFailed(index, other) => {
                self.nodes[index]
                    .membership
                    .handle_dial_failed(id(other), now);
            }
        }
    }

    fn tick(&mut self, index: usize, generation: u64) {
        if self.nodes[index].generation != generation {
            return;
        }
        let now = self.now;
        self.nodes[index].membership.handle_tick(now);
        self.after(TICK_EVERY, Event::Tick(index, generation));
        for contact in self.nodes[index].membership.poll_dials(now) {
            self.dial(index, index_of(contact.id));
        }
        let cuts: Vec<NodeId> = self.nodes[index].membership.poll_cuts().collect();
        for cut in cuts.into_iter().map(index_of) {
            if self.nodes[index].connected.remove(&cut) {
                self.nodes[index]
                    .membership
                    .handle_disconnected(id(cut), now);
                self.soon(Event::Disconnected(cut, index));
            }
        }
    }

    fn dial(&mut self, from: usize, to: usize) {
        let reachable = self.sides[from] == self.sides[to];
        if reachable && self.nodes[to].up && !self.nodes[to].stopped {
            self.soon(Event::Dial(to, from));
        } else if reachable && !self.nodes[to].up {
            self.soon(Event::DialFailed(from, to));
        } else {
            self.after(DIAL_TIMEOUT, Event::DialFailed(from, to));
        }
    }

    /// A connection begins at this end: both tell whom they know, and what they last heard.
    fn connect(&mut self, index: usize, other: usize) {
        let now = self.now;
        if !self.nodes[other].up || !self.nodes[index].connected.insert(other) {
            return;
        }
        self.nodes[index]
            .membership
            .handle_connected(id(other), now);
        let contacts = self.nodes[other].membership.contacts();
        self.nodes[index].membership.handle_contacts(contacts, now);
        let words = self.words(index, false);
        self.soon(Event::Words(other, index, Rc::new(words)));
    }

    fn words(&mut self, index: usize, leaving: bool) -> Words {
        let node = &mut self.nodes[index];
        node.sequence += 1;
        let denied = (0..self.sides.len()).map(id);
        Words {
            generation: node.generation,
            sequence: node.sequence,
            leaving,
            denied: denied.filter(|id| node.membership.is_denied(id)).collect(),
        }
    }

    fn announce(&mut self, index: usize, leaving: bool) {
        let words = Rc::new(self.words(index, leaving));
        self.pass_on(index, index, &words);
    }

    fn hear(&mut self, index: usize, author: usize, words: &Rc<Words>) {
        self.delivered += 1;
        let said = (words.generation, words.sequence);
        let heard = &mut self.nodes[index].heard[author];
        if *heard >= said {
            return;
        }
        *heard = said;
        let announcement = announcement(author, words);
        let membership = &mut self.nodes[index].membership;
        let heard = membership.handle_announcement(id(author), announcement, self.now);
        if heard == Heard::Fresh {
            self.pass_on(index, author, words);
        }
    }

    fn pass_on(&mut self, index: usize, author: usize, words: &Rc<Words>) {
        let mut others: Vec<usize> = self.nodes[index].connected.iter().copied().collect();
        for _ in 0..FAN_OUT.min(others.len()) {
            let at = usize::try_from(self.random()).expect("64 bits") % others.len();
            let other = others.swap_remove(at);
            if self.sides[other] == self.sides[index] {
                self.soon(Event::Words(other, author, Rc::clone(words)));
            }
        }
    }

    fn soon(&mut self, event: Event) {
        let delay = Duration::from_millis(1) + self.below(Duration::from_millis(80));
        self.after(delay, event);
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.events += 1;
        self.queue
            .push(Reverse((self.now + delay, self.events, event)));
    }

    fn below(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).expect("short");
        Duration::from_micros(self.random() % most)
    }

    /// xorshift64.
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

pub(crate) fn id(index: usize) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(index as u64).to_be_bytes());
    NodeId::new(bytes)
}

fn index_of(id: NodeId) -> usize {
    let bytes = id.as_bytes()[..8].try_into().expect("8 bytes");
    usize::try_from(u64::from_be_bytes(bytes)).expect("small")
}

fn address(index: usize) -> SocketAddr {
    let port = 1 + u16::try_from(index).expect("small");
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn contact(index: usize) -> Contact {
    Contact {
        id: id(index),
        addresses: vec![address(index)],
    }
}

fn announcement(author: usize, words: &Words) -> Announcement {
    Announcement {
        generation: words.generation,
        sequence: words.sequence,
        instance: words.generation,
        presence: if words.leaving {
            Presence::Leaving
        } else {
            Presence::Here
        },
        zone: "fra1".to_owned(),
        addresses: vec![address(author)],
        weight: 1,
        version: "0.1.0".to_owned(),
        wire_version: 1,
        load: 0,
        placement: 0,
        denied: words.denied.clone(),
    }
}
