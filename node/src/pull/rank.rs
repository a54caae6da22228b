//! Who may wait for whom, so that nodes with different views never wait in a circle.
//!
//! A fetch waits only for fetches of a greater rank on other nodes. Asked by a peer to act as
//! owner or home, a node raises its own fetch first; a fetch that waits for an owner then lets go
//! of it. Source: SPEC.md "Roles".

use millrace_protocol::wire::message::Role;

/// As what a fetch runs on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Rank {
    /// For clients of this node: may wait for an owner.
    Node,
    /// For the nodes of its zone: may wait for a home.
    Owner,
    /// For all nodes: waits for nobody but the upstream, and takes what others have.
    Home,
}

impl Rank {
    /// Returns the rank in which a question of this role is worked on; a holder does no work.
    pub(super) fn of(role: Role) -> Option<Self> {
        match role {
            Role::Holder => None,
            Role::Owner => Some(Self::Owner),
            Role::Home => Some(Self::Home),
        }
    }
}
