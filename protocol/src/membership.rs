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
//! - A node that was stopped itself blames nobody for the silence.
//! - One that was dead and comes back as the same run was cut off: a split has healed, and what
//!   either side believed meanwhile may contradict the other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::node_id::NodeId;

mod acquaintance;
mod announcement;
mod budgets;

use acquaintance::{Acquaintance, Link};
pub use announcement::{
    Announcement, Contact, DecodeError, FORMAT, Greeting, InvalidAnnouncement, MAX_ADDRESSES,
    MAX_ANNOUNCEMENT_BYTES, MAX_CONTACTS_TOLD, MAX_DENIED, MAX_GREETING_BYTES, Presence,
    are_addresses, decode, encode, is_zone,
};
pub use budgets::{
    AllowanceWord, BudgetWord, Budgets, InvalidBudgets, MAX_BUDGET_WORDS, MAX_BUDGETS_BYTES,
    MAX_SOURCE_BYTES,
};

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

/// How old a process may be that takes a greater generation because others know one: later it is
/// another node that uses the same identity.
const YOUNG: Duration = Duration::from_secs(10);

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

/// Somebody who belongs to the cluster.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it last said of itself.
    pub announcement: Announcement,
    /// Whether it may be asked.
    pub standing: Standing,
    /// When it was last heard.
    heard: Instant,
}

/// Whether a member may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Alive,
    /// It may not, for this reason and since then.
    Suspect(Suspicion, Instant),
}

/// Why a member is suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing was heard of it.
    Silent,
    /// Its connection broke and did not come back.
    Unreachable,
}

/// What became of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is news.
    Fresh,
    /// Something newer is known, or it is an echo of this node's own words.
    Stale,
    /// It comes from somebody who is kept out.
    Denied,
    /// No healthy node says such a thing.
    Invalid(InvalidAnnouncement),
    /// Too many nodes are known already.
    Full,
    /// Another node uses the identity of this one.
    Duplicate,
}

/// What a node learns from how others know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// They know this process, an older one, or none.
    Fine,
    /// They know a later process: this one has taken a generation above it, which is to be kept.
    Raised(u64),
    /// Another node uses the identity of this one.
    Duplicate,
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

    /// Whether everybody whom this node has heard of was either heard or tried in vain.
    pub fn is_settled(&self) -> bool {
        let known = self.acquaintances.iter();
        known
            .filter(|(id, _)| !self.denied.contains(id))
            .all(|(_, known)| known.is_tried())
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
            return self.judge_own(&announcement, now);
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
            return Heard::Stale;
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
            let stranger = contact.id != self.me
                && !self.denied.contains(&contact.id)
                && !self.acquaintances.contains_key(&contact.id);
            if stranger
                && are_addresses(&contact.addresses)
                && let Some(known) = self.acquaint(contact.id, now)
            {
                known.addresses = contact.addresses;
            }
        }
    }

    /// Takes in how somebody else knows this node: the generation and the instance.
    pub fn handle_known_as(&mut self, known: Option<(u64, u64)>, now: Instant) -> Recognised {
        let mine = (self.generation, self.instance);
        match known {
            Some((generation, _)) if generation < self.generation => Recognised::Fine,
            Some(known) if known != mine => {
                if now.saturating_duration_since(self.started) >= YOUNG {
                    return Recognised::Duplicate;
                }
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
        let member = self.members.contains_key(&id);
        let Some(known) = self.acquaintances.get_mut(&id) else {
            return;
        };
        known.dial_failed(member, now);
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

    /// Decides whether words in this node's name are its own.
    fn judge_own(&self, announcement: &Announcement, now: Instant) -> Heard {
        let former = announcement.generation < self.generation;
        let young = now.saturating_duration_since(self.started) < YOUNG;
        if announcement.instance == self.instance || former || young {
            Heard::Stale
        } else {
            Heard::Duplicate
        }
    }

    /// Finds an acquaintance or makes one; none if there are too many, all of them members.
    fn acquaint(&mut self, id: NodeId, now: Instant) -> Option<&mut Acquaintance> {
        let full = self.acquaintances.len() >= MAX_ACQUAINTANCES;
        if full && !self.acquaintances.contains_key(&id) {
            let idle = self.acquaintances.iter().filter(|(id, known)| {
                !self.members.contains_key(id) && known.link != Link::Connected
            });
            let (oldest, _) = idle.min_by_key(|(_, known)| known.seen)?;
            let oldest = *oldest;
            self.acquaintances.remove(&oldest);
        }
        let first = self.me < id;
        let known = self.acquaintances.entry(id);
        Some(known.or_insert_with(|| Acquaintance::new(first, now)))
    }

    /// Makes a member of somebody who says that it is here, or notes that it still is.
    fn admit(&mut self, id: NodeId, announcement: Announcement, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else {
            let standing = Standing::Alive;
            let heard = now;
            self.members.insert(
                id,
                Member {
                    announcement,
                    standing,
                    heard,
                },
            );
            self.changed = true;
            return;
        };
        self.changed |= !is_same(&member.announcement, &announcement);
        member.announcement = announcement;
        member.heard = now;
        let believed = match member.standing {
            Standing::Alive => return,
            Standing::Suspect(Suspicion::Silent, _) => true,
            Standing::Suspect(Suspicion::Unreachable, since) => {
                now.saturating_duration_since(since) >= RECONNECT_WITHIN
            }
        };
        if believed {
            member.standing = Standing::Alive;
            self.changed = true;
            // Others reach it: that this node does not is no news any more.
            if let Some(known) = self.acquaintances.get_mut(&id) {
                known.lost = None;
            }
        }
    }

    /// Decides what the silence of a member means.
    fn judge(&mut self, id: NodeId, now: Instant) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        let silence = now.saturating_duration_since(member.heard);
        let lost = self.acquaintances.get(&id).and_then(|known| known.lost);
        let lost_for = lost.map(|at| now.saturating_duration_since(at));
        if silence >= DEAD_AFTER {
            self.bury(id, now);
        } else if silence >= SUSPECT_AFTER {
            self.suspect(id, Suspicion::Silent, now);
        } else if lost_for.is_some_and(|lost_for| lost_for >= RECONNECT_WITHIN) {
            self.suspect(id, Suspicion::Unreachable, now);
        }
    }

    fn suspect(&mut self, id: NodeId, why: Suspicion, now: Instant) {
        if let Some(member) = self.members.get_mut(&id)
            && member.standing == Standing::Alive
        {
            member.standing = Standing::Suspect(why, now);
            self.changed = true;
        }
    }

    /// Takes the seat of a dead member; what is left of its connection only delays its return.
    fn bury(&mut self, id: NodeId, now: Instant) {
        self.members.remove(&id);
        self.changed = true;
        if let Some(known) = self.acquaintances.get_mut(&id) {
            if known.link == Link::Connected {
                self.cuts.insert(id);
            }
            known.bury(now);
        }
    }

    /// Works out anew who is kept out: by this node, or by anybody whom it does not keep out.
    fn collect_denied(&mut self) {
        let mut denied = self.own_denied.clone();
        for (id, known) in &self.acquaintances {
            if !self.own_denied.contains(id) {
                denied.extend(&known.denies);
            }
        }
        denied.remove(&self.me);
        for id in &denied {
            self.changed |= self.members.remove(id).is_some();
            if self.is_connected(id) {
                self.cuts.insert(*id);
            }
        }
        self.denied = denied;
    }
}

impl Member {
    /// Returns how long ago it was heard.
    pub fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }
}

/// Whether two announcements of one node say the same of what others decide by.
fn is_same(before: &Announcement, after: &Announcement) -> bool {
    let steady = |announcement: &Announcement| {
        let Announcement {
            generation,
            zone,
            addresses,
            weight,
            version,
            wire_version,
            ..
        } = announcement.clone();
        (generation, zone, addresses, weight, version, wire_version)
    };
    steady(before) == steady(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId::new([1; 32]);
    const OTHER: NodeId = NodeId::new([2; 32]);

    #[expect(clippy::disallowed_methods, reason = "some origin for the test's time")]
    fn start() -> (Membership, Instant) {
        let now = Instant::now();
        (Membership::new(ME, 5, 55, now), now)
    }

    fn announcement(generation: u64, sequence: u64) -> Announcement {
        Announcement {
            generation,
            sequence,
            instance: 66,
            presence: Presence::Here,
            zone: "fra1".to_owned(),
            addresses: vec!["10.0.0.1:5050".parse().expect("an address")],
            weight: 1,
            version: "0.1.0".to_owned(),
            wire_version: 1,
            load: 0,
            placement: 0,
            denied: Vec::new(),
        }
    }

    fn leaving(generation: u64, sequence: u64) -> Announcement {
        Announcement {
            presence: Presence::Leaving,
            ..announcement(generation, sequence)
        }
    }

    #[test]
    fn order_is_by_generation_then_sequence() {
        let (mut membership, now) = start();
        let mut hear = |announcement| membership.handle_announcement(OTHER, announcement, now);
        assert_eq!(hear(announcement(2, 9)), Heard::Fresh);
        assert_eq!(hear(announcement(2, 9)), Heard::Stale);
        assert_eq!(hear(announcement(1, 10)), Heard::Stale);
        assert_eq!(hear(announcement(3, 0)), Heard::Fresh);
    }

    #[test]
    fn only_a_later_start_takes_back_a_leave() {
        let (mut membership, now) = start();
        membership.handle_announcement(OTHER, announcement(2, 9), now);
        membership.handle_announcement(OTHER, leaving(2, 10), now);
        assert_eq!(membership.members().count(), 0);
        assert!(
            membership.poll_dials(now + YOUNG).is_empty(),
            "nobody looks for it"
        );
        membership.handle_announcement(OTHER, announcement(2, 8), now);
        assert_eq!(membership.members().count(), 0);
        membership.handle_announcement(OTHER, announcement(3, 0), now);
        assert_eq!(membership.members().count(), 1);
    }

    /// Lets `membership` hear nothing until whoever was a member is dead.
    fn silence(membership: &mut Membership, now: &mut Instant) {
        let end = *now + DEAD_AFTER;
        while *now < end {
            *now += TICK_EVERY;
            membership.handle_tick(*now);
        }
        assert_eq!(membership.members().count(), 0);
    }

    #[test]
    fn who_comes_back_from_the_dead_as_the_same_run_was_cut_off() {
        let (mut membership, mut now) = start();
        membership.handle_announcement(OTHER, announcement(2, 1), now);
        assert_eq!(membership.healed(), None, "a new member");
        silence(&mut membership, &mut now);
        membership.handle_announcement(OTHER, announcement(2, 9), now);
        assert_eq!(membership.healed(), Some(now));
        let healed = now;
        now += TICK_EVERY;
        membership.handle_announcement(OTHER, announcement(2, 10), now);
        assert_eq!(membership.healed(), Some(healed), "once");
        silence(&mut membership, &mut now);
        membership.handle_announcement(OTHER, announcement(3, 1), now);
        assert_eq!(membership.healed(), Some(healed), "it was started anew");
    }

    #[test]
    fn who_was_stopped_for_long_was_cut_off_itself() {
        let (mut membership, now) = start();
        let stopped = now + DEAD_AFTER * 2;
        membership.handle_tick(stopped);
        assert_eq!(membership.healed(), None, "it was alone");
        membership.handle_announcement(OTHER, announcement(2, 1), stopped);
        membership.handle_tick(stopped + SUSPECT_AFTER);
        assert_eq!(membership.healed(), None, "nobody gave it up so soon");
        let awake = stopped + DEAD_AFTER * 2;
        membership.handle_tick(awake);
        assert_eq!(membership.healed(), Some(awake));
    }

    #[test]
    fn nonsense_makes_no_member_and_leaves_what_is_known() {
        let (mut membership, now) = start();
        let mut nonsense = announcement(1, 1);
        nonsense.addresses.clear();
        let heard = membership.handle_announcement(OTHER, nonsense, now);
        assert_eq!(heard, Heard::Invalid(InvalidAnnouncement::Addresses));
        assert_eq!(membership.members().count(), 0);
        assert!(membership.poll_dials(now).is_empty());
    }

    #[test]
    fn a_copied_identity_is_noticed_by_the_older_node_and_by_equal_ones() {
        let (mut membership, now) = start();
        let mut hear = |generation, instance, after| {
            let mut announcement = announcement(generation, 1);
            announcement.instance = instance;
            membership.handle_announcement(ME, announcement, now + after)
        };
        let old = YOUNG;
        assert_eq!(hear(5, 55, old), Heard::Stale, "an echo");
        assert_eq!(hear(4, 44, old), Heard::Stale, "a former life");
        assert_eq!(
            hear(6, 66, Duration::ZERO),
            Heard::Stale,
            "perhaps a former life"
        );
        assert_eq!(hear(6, 66, old), Heard::Duplicate);
        assert_eq!(hear(5, 66, old), Heard::Duplicate);
    }

    #[test]
    fn a_node_that_lost_its_counter_takes_up_where_others_saw_it() {
        let (mut membership, now) = start();
        assert_eq!(membership.handle_known_as(None, now), Recognised::Fine);
        assert_eq!(
            membership.handle_known_as(Some((4, 1)), now),
            Recognised::Fine
        );
        assert_eq!(
            membership.handle_known_as(Some((5, 55)), now),
            Recognised::Fine
        );
        assert_eq!(
            membership.handle_known_as(Some((9, 1)), now),
            Recognised::Raised(10)
        );
        assert_eq!(membership.generation(), 10);
        let old = now + YOUNG;
        assert_eq!(
            membership.handle_known_as(Some((10, 55)), old),
            Recognised::Fine
        );
        assert_eq!(
            membership.handle_known_as(Some((10, 1)), old),
            Recognised::Duplicate
        );
    }

    #[test]
    fn what_is_remembered_is_bounded_and_members_stay() {
        let (mut membership, now) = start();
        membership.handle_announcement(OTHER, announcement(1, 1), now);
        for number in 0..3 * MAX_ACQUAINTANCES as u64 {
            let mut bytes = [9; 32];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            let id = NodeId::new(bytes);
            let addresses = announcement(1, 1).addresses;
            membership.handle_contacts(vec![Contact { id, addresses }], now);
        }
        assert_eq!(membership.acquaintances.len(), MAX_ACQUAINTANCES);
        assert!(membership.acquaintances.contains_key(&OTHER));
        assert!(membership.contacts().len() <= MAX_CONTACTS_TOLD);
        assert_eq!(membership.contacts()[0].id, OTHER, "members come first");
        assert!(membership.poll_dials(now + POLITE).len() <= MAX_DIALS);
    }

    /// After this nobody waits for the other end to dial first.
    const POLITE: Duration = Duration::from_secs(1);

    #[test]
    fn a_node_that_was_stopped_itself_blames_nobody_for_the_silence() {
        let (mut membership, now) = start();
        membership.handle_announcement(OTHER, announcement(1, 1), now);
        membership.handle_tick(now);
        let standing = |membership: &Membership| membership.member(&OTHER).map(|m| m.standing);
        let mut later = now + Duration::from_secs(60);
        membership.handle_tick(later);
        assert_eq!(standing(&membership), Some(Standing::Alive));
        while later < now + Duration::from_secs(60) + SUSPECT_AFTER {
            later += TICK_EVERY;
            membership.handle_tick(later);
        }
        let suspect = Standing::Suspect(Suspicion::Silent, later);
        assert_eq!(
            standing(&membership),
            Some(suspect),
            "what comes after counts"
        );
    }

    #[test]
    fn only_what_others_decide_by_counts_as_change() {
        let (mut membership, now) = start();
        membership.handle_announcement(OTHER, announcement(1, 1), now);
        assert!(membership.poll_changed());
        let mut busy = announcement(1, 2);
        busy.load = 7;
        membership.handle_announcement(OTHER, busy, now);
        assert!(!membership.poll_changed());
        let mut heavier = announcement(1, 3);
        heavier.weight = 2;
        membership.handle_announcement(OTHER, heavier, now);
        assert!(membership.poll_changed());
    }
}
