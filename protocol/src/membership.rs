//! The rules of who belongs to the cluster: who is suspect, dead, back, gone or kept out.
//!
//! A state machine without I/O. The cluster room feeds it what it hears and asks it what to do:
//! `handle_*` takes something in, `poll_*` hands something out, and `now` is an argument.
//!
//! # Rules
//! - A member says that it is there every [`ANNOUNCE_EVERY`]. One that was silent for
//!   [`SUSPECT_AFTER`] is suspect: it is asked nothing, and keeps its seat. One that was silent for
//!   [`DEAD_AFTER`] is dead and loses its seat. Removing is slow on purpose: it moves content.
//! - A connection that breaks makes its other end suspect unless it is there again at once.
//! - What counts is the order in which a node said things, by its generation and sequence, and how
//!   long ago this node heard them. No clock is compared with another.
//! - One that leaves is gone at once; what it said before is then stale, what its next generation
//!   says is not.
//! - Who was known is dialled for a day, so that a split heals from either side.
//! - A node that starts expects for 3 s whom it knew when it last ran: where all are started at once,
//!   the first to meet must not take each other for the whole cluster. For the same reason it is settled
//!   only when nobody new has come for 0.5 s.
//! - One whose older run is still heard is told of the newer one: the two may share an identity, and
//!   neither hears the other by gossip.
//! - A node that was stopped itself blames nobody for the silence.
//! - One that was dead and comes back as the same run was cut off: a split has healed, and what
//!   either side believed meanwhile may contradict the other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::node_id::NodeId;

mod acquaintance;
mod announcement;
mod budgets;
mod decisions;
mod member;
#[cfg(test)]
mod tests;

use acquaintance::{Acquaintance, Link};
pub use announcement::{
    Announcement, Contact, DecodeError, FORMAT, Greeting, InvalidAnnouncement, MAX_ADDRESSES,
    MAX_ANNOUNCEMENT_BYTES, MAX_CONTACTS_TOLD, MAX_DENIED, MAX_GENERATION, MAX_GREETING_BYTES,
    Presence, are_addresses, decode, encode, is_zone,
};
pub use budgets::{
    AllowanceWord, BudgetWord, Budgets, InvalidBudgets, MAX_BUDGET_WORDS, MAX_BUDGETS_BYTES,
    MAX_SOURCE_BYTES,
};
pub use member::{Heard, Member, Recognised, Standing, Suspicion};

/// How often a member says that it is there.
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);

/// How often [`Membership::handle_tick`] is to be called.
pub const TICK_EVERY: Duration = Duration::from_millis(250);

/// Silence that makes a member suspect: two announcements were lost and the third is late.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(3);

/// Silence that ends a membership: long enough for a restart, short of the 15 s that are promised.
pub const DEAD_AFTER: Duration = Duration::from_secs(12);

/// How long a broken connection may take to come back, and for as long after that, words of a
/// member that others pass on may be older than the break.
const RECONNECT_WITHIN: Duration = Duration::from_secs(1);

/// Time between two ticks that says that this node itself was stopped.
const OWN_PAUSE: Duration = Duration::from_secs(1);

/// How long a node that starts expects whom it knew when it last ran, though nobody answers there:
/// that one may be starting as well.
const EXPECTED_FOR: Duration = SUSPECT_AFTER;

/// How long nobody new must have come until a node takes those whom it met for all: within two ticks
/// each of them has been asked whom it knows, and these have been dialled.
const QUIET_FOR: Duration = Duration::from_millis(500);

/// How often a node that is heard as two runs at once is told what is known of it.
const TELL_AGAIN: Duration = Duration::from_secs(3);

/// How long somebody who is no member is remembered and dialled.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Most nodes that are remembered, members or not. The documented limit of a cluster is 150; this
/// only bounds memory.
const MAX_ACQUAINTANCES: usize = 1024;

/// Most dials at a time: each costs a handshake.
const MAX_DIALS: usize = 32;

/// Who belongs to the cluster, as one node believes.
#[derive(Clone, Debug)]
pub struct Membership {
    me: NodeId,
    generation: u64,
    instance: u64,
    started: Instant,
    /// When somebody last came who was no member, or else this node started.
    met: Instant,
    last_tick: Instant,
    members: BTreeMap<NodeId, Member>,
    acquaintances: BTreeMap<NodeId, Acquaintance>,
    /// Whom this node's own configuration keeps out.
    own_denied: BTreeSet<NodeId>,
    denied: BTreeSet<NodeId>,
    cuts: BTreeSet<NodeId>,
    changed: bool,
    healed: Option<Instant>,
}

impl Membership {
    /// Knows nobody yet.
    ///
    /// `generation` is greater than in every earlier start of the node `me`; `instance` is random.
    pub fn new(me: NodeId, generation: u64, instance: u64, now: Instant) -> Self {
        Self {
            me,
            generation,
            instance,
            started: now,
            met: now,
            last_tick: now,
            members: BTreeMap::new(),
            acquaintances: BTreeMap::new(),
            own_denied: BTreeSet::new(),
            denied: BTreeSet::new(),
            cuts: BTreeSet::new(),
            changed: false,
            healed: None,
        }
    }

    /// Returns the generation under which this node announces itself.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns everybody who belongs to the cluster, except for this node, in order of ids.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members.iter().map(|(id, member)| (*id, member))
    }

    /// Returns the member of this name; never this node.
    pub fn member(&self, id: &NodeId) -> Option<&Member> {
        self.members.get(id)
    }

    /// Returns whom to tell others about: members first, at most [`MAX_CONTACTS_TOLD`].
    pub fn contacts(&self) -> Vec<Contact> {
        let member = |id: &NodeId| self.members.contains_key(id);
        let known = self.acquaintances.iter().filter(|(id, known)| {
            are_addresses(&known.addresses) && !known.left && !self.denied.contains(id)
        });
        let (mut contacts, others): (Vec<_>, Vec<_>) = known.partition(|(id, _)| member(id));
        contacts.extend(others);
        contacts.truncate(MAX_CONTACTS_TOLD);
        let contact = |(id, known): (&NodeId, &Acquaintance)| Contact {
            id: *id,
            addresses: known.addresses.clone(),
        };
        contacts.into_iter().map(contact).collect()
    }

    /// Returns what was last heard of a node, to greet it with.
    pub fn last_heard(&self, id: &NodeId) -> Option<(u64, u64)> {
        let known = self.acquaintances.get(id)?;
        known
            .last
            .map(|(generation, _)| (generation, known.instance))
    }

    /// Returns everybody who is kept out, by this node or by another.
    pub fn denied(&self) -> &BTreeSet<NodeId> {
        &self.denied
    }

    /// Returns when this node last came together again with others that had gone on without it.
    pub fn healed(&self) -> Option<Instant> {
        self.healed
    }

    /// Whether those whom this node knows are likely to be all: everybody of whom it has heard was
    /// either heard or tried in vain, whom it remembers had time to start, and nobody new has come
    /// for a while.
    pub fn is_settled(&self, now: Instant) -> bool {
        let is_quiet = now.saturating_duration_since(self.met) >= QUIET_FOR;
        let mut known = self.acquaintances.iter();
        is_quiet
            && known.all(|(id, known)| {
                self.denied.contains(id) || (known.is_tried() && !self.is_expected(known, now))
            })
    }

    /// Whether a node is kept out.
    pub fn is_denied(&self, id: &NodeId) -> bool {
        self.denied.contains(id)
    }

    /// Whether there is a connection to a node.
    pub fn is_connected(&self, id: &NodeId) -> bool {
        let known = self.acquaintances.get(id);
        known.is_some_and(|known| known.link == Link::Connected)
    }

    /// Takes in what `from` said of itself, heard directly or passed on.
    pub fn handle_announcement(
        &mut self,
        from: NodeId,
        announcement: Announcement,
        now: Instant,
    ) -> Heard {
        if from == self.me {
            return Heard::Stale;
        }
        if self.denied.contains(&from) {
            return Heard::Denied;
        }
        if let Err(error) = announcement.check() {
            return Heard::Invalid(error);
        }
        let Some(known) = self.acquaint(from, now) else {
            return Heard::Full;
        };
        if known
            .last
            .is_some_and(|last| !announcement.is_newer_than(last))
        {
            return match known.is_to_be_told(&announcement, now) {
                true => Heard::Former,
                false => Heard::Stale,
            };
        }
        let was_cut_off = known.is_cut_off(&announcement);
        let denials_changed = known.hear(&announcement, now);
        match announcement.presence {
            Presence::Here => {
                self.admit(from, announcement, now);
                if was_cut_off {
                    self.healed = Some(now);
                }
            }
            Presence::Leaving => self.changed |= self.members.remove(&from).is_some(),
        }
        if denials_changed {
            self.collect_denied();
        }
        Heard::Fresh
    }

    /// Takes in whom others know.
    pub fn handle_contacts(&mut self, contacts: Vec<Contact>, now: Instant) {
        for contact in contacts.into_iter().take(MAX_CONTACTS_TOLD) {
            self.handle_contact(contact, now);
        }
    }

    /// Takes in whom this node knew when it last ran; to be called when it starts.
    pub fn handle_remembered(&mut self, contacts: Vec<Contact>, now: Instant) {
        for contact in contacts.into_iter().take(MAX_CONTACTS_TOLD) {
            if let Some(known) = self.handle_contact(contact, now) {
                known.remembered = true;
            }
        }
    }

    /// Takes in how somebody else knows this node: the generation and the instance.
    ///
    /// Whoever knows a later start hears nothing of what this one says, so it is counted on from
    /// there. A generation that leaves no later one is not believed.
    pub fn handle_known_as(&mut self, known: Option<(u64, u64)>) -> Recognised {
        let mine = (self.generation, self.instance);
        match known {
            Some((generation, _)) if generation < self.generation => Recognised::Fine,
            Some((generation, _)) if generation >= MAX_GENERATION => Recognised::Implausible,
            Some(known) if known != mine => {
                self.generation = known.0.saturating_add(1);
                Recognised::Raised(self.generation)
            }
            _ => Recognised::Fine,
        }
    }

    /// Takes in that there is a connection to `id`, the first one.
    pub fn handle_connected(&mut self, id: NodeId, now: Instant) {
        if let Some(known) = self.acquaint(id, now) {
            known.connect();
        }
        if let Some(member) = self.members.get_mut(&id)
            && let Standing::Suspect(Suspicion::Unreachable, _) = member.standing
        {
            member.standing = Standing::Alive;
            self.changed = true;
        }
    }

    /// Takes in that the last connection to `id` has ended.
    pub fn handle_disconnected(&mut self, id: NodeId, now: Instant) {
        let me = self.me;
        if let Some(known) = self.acquaintances.get_mut(&id) {
            known.disconnect(me < id, now);
        }
    }

    /// Takes in that a dial from [`Membership::poll_dials`] has failed.
    pub fn handle_dial_failed(&mut self, id: NodeId, now: Instant) {
        let known = self.acquaintances.get(&id);
        let is_expected = known.is_some_and(|known| self.is_expected(known, now));
        let is_awaited = is_expected || self.members.contains_key(&id);
        let Some(known) = self.acquaintances.get_mut(&id) else {
            return;
        };
        known.dial_failed(is_awaited, now);
        if known.lost.is_some() {
            self.suspect(id, Suspicion::Unreachable, now);
        }
    }

    /// Takes in whom this node's own configuration keeps out, instead of what it said before.
    pub fn handle_denied(&mut self, denied: impl IntoIterator<Item = NodeId>) {
        self.own_denied = denied.into_iter().take(MAX_DENIED).collect();
        self.collect_denied();
    }

    /// Takes in that time has passed; to be called every [`TICK_EVERY`].
    pub fn handle_tick(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.last_tick);
        self.last_tick = now;
        if gap > OWN_PAUSE {
            for member in self.members.values_mut() {
                member.heard += gap;
            }
        }
        // Meanwhile the others have gone on without this node.
        if gap > DEAD_AFTER && !self.members.is_empty() {
            self.healed = Some(now);
            self.changed = true;
        }
        let ids: Vec<NodeId> = self.members.keys().copied().collect();
        for id in ids {
            self.judge(id, now);
        }
        let members = &self.members;
        self.acquaintances.retain(|id, known| {
            members.contains_key(id) || known.link == Link::Connected || !known.is_forgotten(now)
        });
    }

    /// Hands out whom to dial now; each ends in [`Membership::handle_connected`] or
    /// [`Membership::handle_dial_failed`].
    pub fn poll_dials(&mut self, now: Instant) -> Vec<Contact> {
        let dialling = |known: &&Acquaintance| known.link == Link::Dialling;
        let under_way = self.acquaintances.values().filter(dialling).count();
        let denied = &self.denied;
        let due = self.acquaintances.iter_mut().filter(|(id, known)| {
            known.is_due(now) && !denied.contains(id) && !known.addresses.is_empty()
        });
        let free = MAX_DIALS.saturating_sub(under_way);
        due.take(free)
            .map(|(id, known)| {
                known.link = Link::Dialling;
                let (id, addresses) = (*id, known.addresses.clone());
                Contact { id, addresses }
            })
            .collect()
    }

    /// Hands out whose connections are to be closed.
    pub fn poll_cuts(&mut self) -> impl Iterator<Item = NodeId> + use<> {
        std::mem::take(&mut self.cuts).into_iter()
    }

    /// Hands out whether the members, or what matters of them, have changed since the last time.
    pub fn poll_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}
