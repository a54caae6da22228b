//! What follows from what was heard: who is let in, suspected, buried and kept out.

use std::time::Instant;

use super::acquaintance::{Acquaintance, Link};
use super::{
    Announcement, Contact, DEAD_AFTER, EXPECTED_FOR, MAX_ACQUAINTANCES, Member, Membership,
    RECONNECT_WITHIN, SUSPECT_AFTER, Standing, Suspicion, are_addresses,
};
use crate::node_id::NodeId;

impl Membership {
    /// Finds an acquaintance or makes one; none if there are too many, all of them members.
    pub(super) fn acquaint(&mut self, id: NodeId, now: Instant) -> Option<&mut Acquaintance> {
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

    /// Takes in where somebody may be found; returns what is remembered of whom this node had not
    /// heard of.
    pub(super) fn handle_contact(
        &mut self,
        contact: Contact,
        now: Instant,
    ) -> Option<&mut Acquaintance> {
        let Contact { id, addresses } = contact;
        let is_stranger = id != self.me
            && !self.denied.contains(&id)
            && !self.acquaintances.contains_key(&id)
            && are_addresses(&addresses);
        let known = is_stranger.then(|| self.acquaint(id, now)).flatten()?;
        known.addresses = addresses;
        Some(known)
    }

    /// Whether somebody whom this node remembers may still be starting, as this node is.
    pub(super) fn is_expected(&self, known: &Acquaintance, now: Instant) -> bool {
        let running = now.saturating_duration_since(self.started);
        known.remembered && known.last.is_none() && running < EXPECTED_FOR
    }

    /// Makes a member of somebody who says that it is here, or notes that it still is.
    pub(super) fn admit(&mut self, id: NodeId, announcement: Announcement, now: Instant) {
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
            self.met = now;
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
    pub(super) fn judge(&mut self, id: NodeId, now: Instant) {
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

    pub(super) fn suspect(&mut self, id: NodeId, why: Suspicion, now: Instant) {
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
    pub(super) fn collect_denied(&mut self) {
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
