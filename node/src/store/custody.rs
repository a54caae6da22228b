//! Making room ahead of need, where other nodes may hold the same: a copy that another has as well
//! goes before one that may be the last.
//!
//! A fill must not wait for questions to other nodes, so this runs behind the fills and keeps a
//! little room free. What is about to go is *withdrawn* first: from then on nobody who means to drop
//! its own copy may count on it. Of two nodes that mean to drop the same, at least one hears that of
//! the other, and keeps its copy. Who the others are is not known here: a room above answers for
//! them. The bound itself is kept in `eviction`, which waits for nobody.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use millrace_protocol::oci::Digest;
use tokio::time::Instant;

use super::error::StoreError;
use super::space::Disk;
use super::{Inner, Store, blocking, log_failure};
use crate::task::Tasks;

/// Part of the store that is kept free for fills: one sixteenth.
const AHEAD_DIVISOR: u64 = 16;

/// Most bytes that are kept free for fills: a few large layers.
const MAX_AHEAD_BYTES: u64 = 8 * 1024 * 1024 * 1024;

/// Part of the store that last copies may keep from others: one half.
const SPARED_DIVISOR: u64 = 2;

/// Most contents that are judged at a time: one question of some 20 KB to each member.
const MAX_JUDGED: usize = 256;

/// Most rounds of judging in a row: whatever is in use comes up again and again.
const MAX_ROUNDS: usize = 64;

/// Most last copies that are spared, of about 100 bytes each; more than that are not told apart.
const MAX_SPARED: usize = 65_536;

/// How long a last copy is spared before it is judged again.
const SPARED_FOR: Duration = Duration::from_secs(600);

/// How often the room is looked at although no fill has asked for any: others fill the disk, too.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// Knows what other nodes hold.
pub trait Custody: Debug + Send + Sync + 'static {
    /// Returns those of `digests` that another node has now, by its own word.
    fn elsewhere(&self, digests: Vec<Digest>) -> BoxFuture<'static, HashSet<Digest>>;
}

/// A copy that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    digest: Digest,
    size: u64,
}

/// Copies that may be the last, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Spared {
    copies: HashMap<Digest, LastCopy>,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct LastCopy {
    size: u64,
    until: Instant,
}

impl Spared {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn add(&mut self, candidate: Candidate, now: Instant) {
        self.remove(&candidate.digest);
        if self.copies.len() < MAX_SPARED {
            let Candidate { digest, size } = candidate;
            let until = now + SPARED_FOR;
            self.copies.insert(digest, LastCopy { size, until });
            self.bytes += size;
        }
    }

    pub(super) fn remove(&mut self, digest: &Digest) {
        if let Some(copy) = self.copies.remove(digest) {
            self.bytes -= copy.size;
        }
    }

    /// Whether a copy goes after those that are not the last.
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.copies.contains_key(digest)
    }

    /// Whether a copy was found to be the last not long ago.
    fn is_judged(&self, digest: &Digest, now: Instant) -> bool {
        let copy = self.copies.get(digest);
        copy.is_some_and(|copy| now < copy.until)
    }
}

/// Keeps copies withdrawn for as long as they are judged.
#[derive(Debug)]
struct Withdrawn {
    inner: Arc<Inner>,
    candidates: Vec<Candidate>,
}

impl Withdrawn {
    fn new(inner: Arc<Inner>, candidates: Vec<Candidate>) -> Self {
        let digests = candidates.iter().map(|candidate| candidate.digest);
        inner.withdrawn.lock().extend(digests);
        Self { inner, candidates }
    }
}

impl Drop for Withdrawn {
    fn drop(&mut self) {
        let mut withdrawn = self.inner.withdrawn.lock();
        for candidate in &self.candidates {
            withdrawn.remove(&candidate.digest);
        }
    }
}

impl Store {
    /// Keeps room free ahead of need until the node stops, dropping what `custody` says others have.
    pub fn keep_room(&self, custody: Arc<dyn Custody>, tasks: &Tasks) {
        let store = self.clone();
        let stopping = tasks.stopping();
        tasks.spawn(tracing::info_span!("keep room"), async move {
            tokio::select! {
                () = store.keep_room_forever(&*custody) => {}
                () = stopping => {}
            }
        });
    }

    /// Whether content is about to go, so that nobody who drops its own copy may count on it.
    pub fn is_withdrawn(&self, digest: &Digest) -> bool {
        self.inner.withdrawn.lock().contains(digest)
    }

    async fn keep_room_forever(&self, custody: &dyn Custody) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.inner.scarce.notified() => {}
                _ = ticks.tick() => {}
            }
            log_failure(self.make_room_ahead(custody).await, "make room");
        }
    }

    /// Judges copies, the least recently used first, until there is room or none is left.
    async fn make_room_ahead(&self, custody: &dyn Custody) -> Result<(), StoreError> {
        for _ in 0..MAX_ROUNDS {
            let inner = Arc::clone(&self.inner);
            let withdrawn = blocking(move || {
                let candidates = inner.candidates()?;
                Ok(Withdrawn::new(inner, candidates))
            })
            .await?;
            let digests: Vec<Digest> = withdrawn.candidates.iter().map(|c| c.digest).collect();
            if digests.is_empty() {
                return Ok(());
            }
            let elsewhere = custody.elsewhere(digests).await;
            blocking(move || withdrawn.inner.settle(&withdrawn.candidates, &elsewhere)).await?;
        }
        Ok(())
    }
}

impl Inner {
    /// Returns how many bytes are missing to the room that is kept for fills.
    fn lacking(&self) -> Result<u64, StoreError> {
        let ahead = (self.space.limits().max_size / AHEAD_DIVISOR).min(MAX_AHEAD_BYTES);
        let free = Disk::of(self.layout.root())?.free;
        Ok(self.space.lacking(ahead, free))
    }

    /// Returns what goes next if others have it; nothing while there is room.
    fn candidates(&self) -> Result<Vec<Candidate>, StoreError> {
        let lacking = self.lacking()?;
        if lacking == 0 {
            return Ok(Vec::new());
        }
        self.flush_touched()?;
        let (mut candidates, mut bytes) = (Vec::new(), 0);
        let now = Instant::now();
        for digest in self.index.least_recent() {
            if bytes >= lacking || candidates.len() == MAX_JUDGED {
                break;
            }
            let is_judged = self.spared.lock().is_judged(&digest, now);
            if is_judged || self.pins.lock().contains_key(&digest) {
                continue;
            }
            let Some(record) = self.index.blob(&digest)? else {
                continue;
            };
            let size = record.size;
            bytes += size;
            candidates.push(Candidate { digest, size });
        }
        Ok(candidates)
    }

    /// Drops what others have, as far as room is lacking, and spares what they have not.
    fn settle(
        &self,
        candidates: &[Candidate],
        elsewhere: &HashSet<Digest>,
    ) -> Result<(), StoreError> {
        let _one_at_a_time = self.eviction.lock();
        let now = Instant::now();
        for candidate in candidates {
            let digest = &candidate.digest;
            if self.touched.lock().contains_key(digest) || self.lacking()? == 0 {
                continue;
            }
            if !elsewhere.contains(digest) {
                self.spared.lock().add(*candidate, now);
            } else if self.evict(digest) {
                self.metrics.evicted_elsewhere.inc();
            }
        }
        self.bound_spared()
    }

    /// Drops last copies, the least recently used first, while they take more than their share.
    fn bound_spared(&self) -> Result<(), StoreError> {
        let most = self.space.limits().max_size / SPARED_DIVISOR;
        let exceeds = || self.spared.lock().bytes() > most;
        if !exceeds() {
            return Ok(());
        }
        for digest in self.index.least_recent() {
            if !exceeds() || self.lacking()? == 0 {
                break;
            }
            if self.spared.lock().contains(&digest) {
                self.evict(&digest);
            }
        }
        Ok(())
    }
}
