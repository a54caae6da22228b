//! Who comes in to the control plane: whoever has proved that it knows a secret of the cluster.
//!
//! Here is what is decided, and what is remembered of who came in by which secret. `gate` carries the
//! exchange on a connection, `proof` says what a proof is, `refused` why somebody was not let in.
//! Source: SPEC.md, "Admission".

mod gate;
mod proof;
mod refused;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libp2p::PeerId;
use millrace_protocol::node_id::NodeId;
use parking_lot::Mutex;

pub(super) use gate::Gate;
pub(super) use refused::{causes, refused};

use super::names::node_id;
use super::secrets::{Secret, Secrets};

/// Decides who comes in; shared by the gates of all connections.
#[derive(Debug)]
pub(super) struct Admission {
    me: NodeId,
    /// Random number of this process.
    instance: u64,
    secrets: Mutex<Arc<Secrets>>,
    denied: Mutex<BTreeSet<NodeId>>,
    /// By which secret each node came in last.
    admitted: Mutex<BTreeMap<NodeId, [u8; 32]>>,
    duplicate: AtomicBool,
}

/// Why the other end is not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    #[error("its identity is not an ed25519 key")]
    Identity,
    #[error("it is kept out by cluster.deny")]
    Denied,
    #[error("it does not know a secret of this cluster")]
    Secret,
    #[error("it is this node itself")]
    Myself,
    #[error("another node uses the identity of this one")]
    Duplicate,
    #[error("no random numbers")]
    Random,
}

impl Admission {
    pub(super) fn new(me: NodeId, instance: u64, secrets: Secrets) -> Self {
        Self {
            me,
            instance,
            secrets: Mutex::new(Arc::new(secrets)),
            denied: Mutex::default(),
            admitted: Mutex::default(),
            duplicate: AtomicBool::new(false),
        }
    }

    /// Returns the gate for a connection whose other end has proved to be `peer`.
    pub(super) fn gate(self: &Arc<Self>, peer: &PeerId) -> Gate {
        Gate::new(Arc::clone(self), *peer)
    }

    /// Replaces the secrets; returns who came in by one that is none any more.
    pub(super) fn set_secrets(&self, secrets: Secrets) -> Vec<NodeId> {
        let valid = secrets.names();
        *self.secrets.lock() = Arc::new(secrets);
        let mut gone = Vec::new();
        self.admitted.lock().retain(|id, secret| {
            let stays = valid.contains(secret);
            if !stays {
                gone.push(*id);
            }
            stays
        });
        gone
    }

    /// Returns the names of the secrets that admit.
    pub(super) fn secret_names(&self) -> BTreeSet<[u8; 32]> {
        self.secrets.lock().names()
    }

    /// Replaces whom the gate keeps out whatever they prove.
    pub(super) fn set_denied(&self, denied: BTreeSet<NodeId>) {
        *self.denied.lock() = denied;
    }

    /// Whether another node with this node's identity was at the gate.
    pub(super) fn has_duplicate(&self) -> bool {
        self.duplicate.load(Ordering::Relaxed)
    }

    /// Notes that another node uses this node's identity.
    pub(super) fn report_duplicate(&self) {
        self.duplicate.store(true, Ordering::Relaxed);
    }

    /// Forgets by what a node came in that is not connected any more.
    pub(super) fn forget(&self, id: &NodeId) {
        self.admitted.lock().remove(id);
    }

    fn known(&self, peer: &PeerId) -> Result<NodeId, Refusal> {
        let id = node_id(peer).ok_or(Refusal::Identity)?;
        match self.denied.lock().contains(&id) {
            true => Err(Refusal::Denied),
            false => Ok(id),
        }
    }

    /// Lets the other end in, unless it is this node, or another with the same identity.
    fn enter(&self, peer: NodeId, instance: u64, secret: &Secret) -> Result<(), Refusal> {
        if peer != self.me {
            self.admitted.lock().insert(peer, secret.name);
            // The secrets may have been replaced while the proof was on its way.
            let valid = self.secret_names().contains(&secret.name);
            return valid.then_some(()).ok_or(Refusal::Secret);
        }
        if instance == self.instance {
            return Err(Refusal::Myself);
        }
        self.report_duplicate();
        Err(Refusal::Duplicate)
    }
}

#[cfg(test)]
mod tests {
    use super::super::secrets::{SecretSource, SecretText};
    use super::*;

    #[test]
    fn who_came_in_by_a_secret_that_is_gone_is_named() {
        let text = |text: &str| {
            SecretSource::Text(SecretText::new(text))
                .read()
                .expect("strong")
        };
        let (old, new) = (
            "0123456789abcdef0123456789abcdef",
            "fedcba9876543210fedcba9876543210",
        );
        let me = NodeId::new([1; 32]);
        let both = text(&format!("{new} {old}"));
        let admission = Admission::new(me, 1, both);
        let (early, late) = (NodeId::new([2; 32]), NodeId::new([3; 32]));
        admission
            .enter(early, 5, &Secret::new(new))
            .expect("let in");
        admission.enter(late, 5, &Secret::new(old)).expect("let in");
        assert_eq!(admission.set_secrets(text(new)), [late]);
        admission
            .enter(late, 5, &Secret::new(old))
            .expect_err("its secret is gone");
        admission
            .enter(me, 1, &Secret::new(new))
            .expect_err("itself");
        assert!(!admission.has_duplicate());
        admission
            .enter(me, 2, &Secret::new(new))
            .expect_err("another");
        assert!(admission.has_duplicate());
    }
}
