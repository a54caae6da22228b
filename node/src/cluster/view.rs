//! What a node believes of the cluster at one moment; never changed, replaced as a whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::placement::{Key, Placement, Seat};

/// Homes, and owners of a zone, that are asked for one key before a node goes on by itself.
const MAX_ASKED: usize = 2;

/// Members and placement, as one node sees them.
#[derive(Clone, Debug)]
pub struct View {
    number: u64,
    me: NodeId,
    zone: String,
    members: Vec<Member>,
    /// Shared by all views with the same seats.
    placement: Arc<Placement>,
    healed: Option<Instant>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub id: NodeId,
    /// How often it was started.
    pub generation: u64,
    /// Nodes of one zone are near each other.
    pub zone: String,
    /// Where it listens, best first: TCP for control, UDP for content.
    pub addresses: Vec<SocketAddr>,
    /// Its share of the ring; 0 for none.
    pub weight: u32,
    /// Version of its program.
    pub version: String,
    /// Version of the peer protocol that it speaks.
    pub wire_version: u8,
    /// Blobs on their way to it or from it.
    pub load: u32,
    /// Whether it may be asked.
    pub standing: Standing,
}

/// Whether a member may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It was heard of lately.
    Alive,
    /// It has been silent, or its connection broke: it keeps its seat but is asked nothing.
    Suspect,
}

impl View {
    /// Returns what a node believes that knows these members, itself among them or not.
    ///
    /// Builds the placement, which takes tens of milliseconds for a hundred members.
    pub fn of(me: NodeId, zone: &str, members: Vec<Member>) -> Self {
        let placement = Arc::new(Placement::new(seats(&members)));
        Self::with_placement(0, (me, zone), members, placement)
    }

    /// Returns the view with this number; `placement` is that of the members.
    pub(super) fn with_placement(
        number: u64,
        (me, zone): (NodeId, &str),
        mut members: Vec<Member>,
        placement: Arc<Placement>,
    ) -> Self {
        members.sort_by_key(|member| member.id);
        members.dedup_by_key(|member| member.id);
        Self {
            number,
            me,
            zone: zone.to_owned(),
            members,
            placement,
            healed: None,
        }
    }

    /// Returns the view of a node that came together again with others at this time.
    pub fn healed_at(self, healed: Option<Instant>) -> Self {
        Self { healed, ..self }
    }

    /// Returns when this node last came together again with others that had gone on without it.
    pub fn healed(&self) -> Option<Instant> {
        self.healed
    }

    /// Returns the number of the view; later ones have greater numbers.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns this node's name.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Returns this node's zone.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Returns everybody who belongs to the cluster, in order of ids, suspects and this node too.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the member of this name.
    pub fn member(&self, id: &NodeId) -> Option<&Member> {
        let found = self.members.binary_search_by_key(id, |member| member.id);
        found.ok().map(|index| &self.members[index])
    }

    /// Returns who is responsible for what.
    pub fn placement(&self) -> &Arc<Placement> {
        &self.placement
    }

    /// Returns the homes of `key`, first the one to ask first: at most two, no suspects; this node
    /// may be one of them.
    pub fn homes(&self, key: Key) -> impl Iterator<Item = NodeId> {
        let walk = self.placement.walk(key);
        walk.filter(|id| self.is_alive(id)).take(MAX_ASKED)
    }

    /// Returns the owners of `key` in this node's zone; otherwise as [`View::homes`].
    pub fn owners(&self, key: Key) -> impl Iterator<Item = NodeId> {
        let owners = self.placement.owners(&self.zone, key);
        owners.filter(|id| self.is_alive(id)).take(MAX_ASKED)
    }

    /// Returns everybody but this node who is not suspect, in order of ids.
    pub fn live(&self) -> impl Iterator<Item = &Member> {
        let others = self.members.iter().filter(|member| member.id != self.me);
        others.filter(|member| member.standing == Standing::Alive)
    }

    /// Whether a member may be asked; a node never suspects itself.
    fn is_alive(&self, id: &NodeId) -> bool {
        let standing = self.member(id).map(|member| member.standing);
        *id == self.me || standing == Some(Standing::Alive)
    }
}

/// Returns the places on the ring that members take.
pub(super) fn seats(members: &[Member]) -> impl Iterator<Item = Seat> {
    members.iter().map(|member| Seat {
        id: member.id,
        zone: member.zone.clone(),
        weight: member.weight,
    })
}

#[cfg(test)]
mod tests {
    use millrace_protocol::oci::{Algorithm, Digest};

    use super::*;

    fn member(number: u8, zone: &str) -> Member {
        Member {
            id: NodeId::new([number; 32]),
            generation: 1,
            zone: zone.to_owned(),
            addresses: vec![SocketAddr::from(([127, 0, 0, number], 5050))],
            weight: 1,
            version: "0.1.0".to_owned(),
            wire_version: millrace_protocol::wire::frame::VERSION,
            load: 0,
            standing: Standing::Alive,
        }
    }

    fn key(content: &[u8]) -> Key {
        Key::of_digest(&Digest::of(Algorithm::Sha256, content))
    }

    fn view(members: Vec<Member>) -> View {
        View::of(NodeId::new([1; 32]), "a", members)
    }

    #[test]
    fn a_suspect_is_passed_over_and_moves_nothing_else() {
        let mut members: Vec<Member> = (1..=5).map(|number| member(number, "a")).collect();
        let before = view(members.clone());
        let homes: Vec<NodeId> = before.homes(key(b"x")).collect();
        assert_eq!(homes.len(), 2);
        let first = members.iter_mut().find(|member| member.id == homes[0]);
        first.expect("a member").standing = Standing::Suspect;
        // The home of this key may be the node itself, which is never suspect to itself.
        let me = *[1, 2, 3, 4, 5]
            .map(|n| NodeId::new([n; 32]))
            .iter()
            .find(|id| **id != homes[0])
            .expect("another");
        let after = View::of(me, "a", members);
        assert_eq!(after.homes(key(b"x")).next(), Some(homes[1]));
        assert_eq!(
            after.placement().fingerprint(),
            before.placement().fingerprint()
        );
        assert!(
            after
                .live()
                .all(|member| member.id != homes[0] && member.id != me)
        );
    }

    #[test]
    fn owners_are_of_my_zone() {
        let members = vec![
            member(1, "a"),
            member(2, "b"),
            member(3, "b"),
            member(4, "a"),
        ];
        let view = view(members);
        for number in 0..64_u8 {
            let owners: Vec<NodeId> = view.owners(key(&[number])).collect();
            assert_eq!(owners.len(), 2);
            assert!(
                owners
                    .iter()
                    .all(|id| view.member(id).expect("known").zone == "a")
            );
        }
    }

    #[test]
    fn who_weighs_nothing_is_a_member_and_owns_nothing() {
        let mut light = member(2, "a");
        light.weight = 0;
        let view = view(vec![light.clone(), member(1, "a")]);
        assert_eq!(view.member(&light.id), Some(&light));
        assert_eq!(view.live().count(), 1);
        let homes: Vec<NodeId> = view.homes(key(b"x")).collect();
        assert_eq!(homes, [NodeId::new([1; 32])]);
    }
}
