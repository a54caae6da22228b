//! Chains of takers in virtual time: each decides by a `Taking` whom it reads from, links have rates, and
//! a source serves two readers. No byte is moved.

use std::time::Duration;

use millrace_protocol::chunk::CHUNK_BYTES;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::transfer::{Step, Taking};

const TICK: Duration = Duration::from_millis(5);

/// As `node` has them.
const READERS: usize = 2;
const NAMED: usize = 3;
const PATIENCE: Duration = Duration::from_secs(8);
const FIRST_PATIENCE: Duration = Duration::from_secs(3);

/// Longer than any chain here takes.
const LIMIT: Duration = Duration::from_secs(3600);

/// What a link carries, in chunks per second each way.
#[derive(Clone, Copy, Debug)]
struct Link {
    up: f64,
    down: f64,
}

/// Returns a link that carries so many Mbit/s each way.
fn link(megabits: f64) -> Link {
    let chunks = megabits * 1e6 / 8.0 / CHUNK_BYTES as f64;
    Link {
        up: chunks,
        down: chunks,
    }
}

fn id(number: usize) -> NodeId {
    NodeId::new([u8::try_from(number).expect("few nodes"); 32])
}

/// A taker.
struct Taker {
    link: Link,
    taking: Taking,
    /// Chunks that are here, from the first on.
    have: u32,
    flow: Option<Flow>,
    done: Option<Duration>,
}

/// A read that is going on.
struct Flow {
    source: usize,
    next: u32,
    end: u32,
    /// How much of the next chunk has come.
    share: f64,
    /// Since when it is waited for, or comes.
    since: Duration,
    is_coming: bool,
}

/// The node that all have opened, at number 0, and those who take a blob through it, in order.
struct Chain {
    chunks: u32,
    home: Link,
    /// How many chunks a second the home gets itself; without end if it has them all.
    pace: f64,
    /// How many it has.
    got: f64,
    takers: Vec<Taker>,
    now: Duration,
    /// Whether links carry nothing for a moment now and then.
    is_rough: bool,
    /// Chunks that each has sent.
    sent: Vec<f64>,
}

impl Chain {
    fn new(chunks: u32, home: Link, pace: f64, links: &[Link]) -> Self {
        let taker = |(before, link): (usize, &Link)| {
            let mut taking = Taking::new(chunks);
            let named = (1..=before).rev().take(NAMED).chain([0]);
            taking.handle_sources(named.map(id).collect());
            Taker {
                link: *link,
                taking,
                have: 0,
                flow: None,
                done: None,
            }
        };
        Self {
            chunks,
            home,
            pace,
            got: 0.0,
            takers: links.iter().enumerate().map(taker).collect(),
            now: Duration::ZERO,
            is_rough: false,
            sent: vec![0.0; links.len() + 1],
        }
    }

    /// Runs until all but those that are named are done. Returns when each was.
    fn run(&mut self, but: &[usize]) -> Vec<f64> {
        let is_wanted = |number: usize| !but.contains(&number);
        while (1..=self.takers.len())
            .any(|number| is_wanted(number) && self.takers[number - 1].done.is_none())
        {
            assert!(self.now < LIMIT, "{:?} are here", self.haves());
            self.tick();
        }
        let done = self.takers.iter().map(|taker| taker.done);
        done.map(|done| done.map_or(f64::INFINITY, |done| done.as_secs_f64()))
            .collect()
    }

    fn haves(&self) -> Vec<u32> {
        (0..=self.takers.len())
            .map(|node| self.have(node))
            .collect()
    }

    fn have(&self, node: usize) -> u32 {
        match node.checked_sub(1) {
            Some(taker) => self.takers[taker].have,
            None => (self.got as u32).min(self.chunks),
        }
    }

    fn up(&self, node: usize) -> f64 {
        if self.is_rough && is_troubled(node, self.now) {
            return 0.0;
        }
        let taker = node.checked_sub(1).map(|taker| self.takers[taker].link);
        taker.unwrap_or(self.home).up
    }

    fn readers(&self, node: usize) -> usize {
        let flows = self.takers.iter().filter_map(|taker| taker.flow.as_ref());
        flows.filter(|flow| flow.source == node).count()
    }

    fn tick(&mut self) {
        self.now += TICK;
        self.got += self.pace * TICK.as_secs_f64();
        for taker in 0..self.takers.len() {
            let told = self.have(0).min(self.chunks - 1);
            self.takers[taker].taking.handle_told(self.now, told);
            self.begin(taker);
        }
        let haves = self.haves();
        for taker in &mut self.takers {
            if let Some(flow) = &mut taker.flow
                && flow.next < haves[flow.source]
                && !flow.is_coming
            {
                flow.is_coming = true;
                flow.since = self.now;
            }
        }
        for taker in 0..self.takers.len() {
            let rate = self.rate(taker);
            self.advance(taker, &haves, rate);
        }
    }

    /// Returns how fast the chunk comes that a taker waits for: what its link carries, or its part of what the
    /// source's does. Who takes less than its part leaves the rest to the other reader.
    fn rate(&self, taker: usize) -> f64 {
        let Some(flow) = &self.takers[taker].flow else {
            return 0.0;
        };
        let up = self.up(flow.source);
        let others = (0..self.takers.len()).filter(|other| *other != taker);
        let others = others.filter(|other| {
            let other = self.takers[*other].flow.as_ref();
            other.is_some_and(|other| other.source == flow.source && other.is_coming)
        });
        let others: Vec<f64> = others.map(|other| self.takers[other].link.down).collect();
        let part = up / (others.len() + 1) as f64;
        let left: f64 = others.iter().map(|down| down.min(part)).sum();
        (up - left).min(self.takers[taker].link.down)
    }

    /// Lets a taker ask whom it wants to.
    fn begin(&mut self, taker: usize) {
        let taking = &mut self.takers[taker].taking;
        let step = taking.poll(self.now);
        if taking.reading().is_none() {
            self.takers[taker].flow = None;
        }
        let Step::Read {
            source,
            first,
            count,
        } = step
        else {
            return;
        };
        let all = 0..=self.takers.len();
        let source = all.into_iter().find(|node| id(*node) == source);
        let source = source.expect("a node of the chain");
        if self.readers(source) == READERS {
            return self.takers[taker].taking.handle_not_yet(self.now);
        }
        self.takers[taker].flow = Some(Flow {
            source,
            next: first,
            end: first + count,
            share: 0.0,
            since: self.now,
            is_coming: false,
        });
    }

    /// Lets the read of a taker go on for a tick.
    fn advance(&mut self, taker: usize, haves: &[u32], rate: f64) {
        let Self { now, sent, .. } = self;
        let taker = &mut self.takers[taker];
        let Some(flow) = &mut taker.flow else {
            return;
        };
        if !flow.is_coming {
            let patience = match haves[flow.source] {
                0 => FIRST_PATIENCE,
                _ => PATIENCE,
            };
            if *now - flow.since >= patience {
                taker.flow = None;
                taker.taking.handle_not_yet(*now);
            }
            return;
        }
        let share = rate * TICK.as_secs_f64();
        sent[flow.source] += share;
        flow.share += share;
        if flow.share < 1.0 {
            return;
        }
        flow.share -= 1.0;
        let took = *now - flow.since;
        taker.taking.handle_arrived(*now, flow.next, took);
        taker.taking.handle_chunk(flow.next);
        taker.have += 1;
        flow.next += 1;
        flow.is_coming = false;
        flow.since = *now;
        if flow.next == flow.end {
            taker.taking.handle_done();
        }
        if taker.taking.reading().is_none() {
            taker.flow = None;
        }
        if taker.taking.is_complete() {
            taker.flow = None;
            taker.done = Some(*now);
        }
    }

    /// Returns how many times the blob a node has sent.
    fn copies(&self, node: usize) -> f64 {
        self.sent[node] / f64::from(self.chunks)
    }
}

/// Whether a link carries nothing just now: for most of one second of twenty, in no order but the same
/// in each run (Fibonacci hashing).
fn is_troubled(node: usize, now: Duration) -> bool {
    let second = now.as_secs() * 64 + node as u64;
    let scattered = second.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    scattered.is_multiple_of(20) && now.subsec_millis() < 800
}

/// What everybody sends of a blob in a chain that flows, with the last link's rounding.
const ONE_COPY: f64 = 1.01;

/// Asserts that every link has carried the blob once.
fn assert_one_copy(chain: &Chain) {
    let all = (0..chain.sent.len()).all(|node| chain.copies(node) < ONE_COPY);
    assert!(all, "{:?}", chain.sent);
}

#[test]
fn in_a_chain_that_flows_each_link_carries_one_copy() {
    // As measured: the home's own download has 17 of its 20 Mbit/s.
    for megabits in [5.0, 17.0] {
        let mut chain = Chain::new(256, link(20.0), link(megabits).down, &[link(20.0); 15]);
        let done = chain.run(&[]);
        let home = 256.0 / link(megabits).down;
        assert!(done[14] < home + 3.0, "{done:?}");
        assert_one_copy(&chain);
    }
}

#[test]
fn a_moment_of_trouble_on_a_link_now_and_then_changes_nothing() {
    let mut chain = Chain::new(512, link(20.0), link(14.0).down, &[link(20.0); 15]);
    chain.is_rough = true;
    chain.run(&[]);
    assert_one_copy(&chain);
}

#[test]
fn a_long_chain_behind_a_home_that_becomes_faster_flows() {
    let mut chain = Chain::new(512, link(20.0), link(4.0).down, &[link(20.0); 60]);
    while chain.have(0) < 40 {
        chain.tick();
    }
    chain.pace = link(18.0).down;
    chain.run(&[]);
    assert_one_copy(&chain);
}

#[test]
fn takers_of_a_blob_that_the_home_has_hardly_ask_it() {
    let mut chain = Chain::new(256, link(20.0), f64::INFINITY, &[link(20.0); 15]);
    let done = chain.run(&[]);
    let alone = 256.0 / link(20.0).down;
    assert!(done[14] < alone * 1.15, "{done:?}, {alone} alone");
    assert!(chain.copies(0) < 1.1, "{:?}", chain.sent);
}

/// Runs a chain of quick links with slow ones among them, and asserts that the others get on.
#[track_caller]
fn assert_left(pace: f64, slow: &[(usize, Link)], seconds: f64) {
    let quick = link(100.0);
    let mut links = [quick; 8];
    for (taker, link) in slow {
        links[taker - 1] = *link;
    }
    let mut chain = Chain::new(512, quick, pace, &links);
    let but: Vec<usize> = slow.iter().map(|(taker, _)| *taker).collect();
    let done = chain.run(&but);
    let alone = 512.0 / quick.down;
    let last = (1..=8).filter(|taker| !but.contains(taker));
    let last = last.map(|taker| done[taker - 1]).fold(0.0, f64::max);
    assert!(last < alone + seconds, "{slow:?}: {done:?}, {alone} alone");
    assert!(chain.copies(0) < 1.3, "{slow:?}: {:?}", chain.sent);
}

#[test]
fn who_sends_slowly_is_left_wherever_it_is() {
    for pace in [link(90.0).down, f64::INFINITY] {
        for taker in 1..8 {
            assert_left(pace, &[(taker, link(2.0))], 6.0);
        }
    }
}

#[test]
fn who_gets_little_is_left_wherever_it_is() {
    let slow = Link {
        up: link(100.0).up,
        down: link(2.0).down,
    };
    for pace in [link(90.0).down, f64::INFINITY] {
        for taker in 1..8 {
            assert_left(pace, &[(taker, slow)], 30.0);
        }
    }
}

#[test]
fn two_slow_ones_behind_each_other_are_left() {
    for pace in [link(90.0).down, f64::INFINITY] {
        for first in [1, 3] {
            assert_left(pace, &[(first, link(2.0)), (first + 1, link(2.0))], 16.0);
        }
    }
}
