//! What proves that an end of a connection knows a secret, without telling it.
//!
//! A proof covers both identities and both random numbers, so it is worth nothing on another
//! connection; it covers its side, so it cannot be sent back. Nothing is read or written here.

use millrace_protocol::node_id::NodeId;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::super::secrets::Secret;
use super::Refusal;

/// What a proof of the dialling end begins with.
pub(super) const DIALLER: &[u8] = b"millrace admission 1: dialler";

/// What a proof of the listening end begins with.
pub(super) const LISTENER: &[u8] = b"millrace admission 1: listener";

pub(super) const NONCE_BYTES: usize = 32;
pub(super) const PROOF_BYTES: usize = 32;

pub(super) type Nonce = [u8; NONCE_BYTES];
pub(super) type Proof = [u8; PROOF_BYTES];

/// What both ends know of one exchange.
pub(super) struct Talk {
    pub(super) dialler: (NodeId, Nonce),
    pub(super) listener: (NodeId, Nonce),
}

impl Talk {
    /// Makes the proof of one end, which runs as `instance`.
    pub(super) fn prove(&self, side: &[u8], secret: &Secret, instance: u64) -> Proof {
        let tag = hmac::sign(&secret.key, &self.statement(side, instance));
        let mut proof = [0; PROOF_BYTES];
        proof.copy_from_slice(tag.as_ref());
        proof
    }

    /// Compares a proof with what it should be, in constant time.
    pub(super) fn check(
        &self,
        side: &[u8],
        secret: &Secret,
        instance: u64,
        proof: &Proof,
    ) -> Result<(), Refusal> {
        let statement = self.statement(side, instance);
        hmac::verify(&secret.key, &statement, proof).map_err(|_| Refusal::Secret)
    }

    /// All parts have fixed lengths, apart from the first, which no other begins with.
    fn statement(&self, side: &[u8], instance: u64) -> Vec<u8> {
        let mut statement = side.to_vec();
        for (id, nonce) in [&self.dialler, &self.listener] {
            statement.extend(id.as_bytes());
            statement.extend(nonce);
        }
        statement.extend(instance.to_be_bytes());
        statement
    }
}

pub(super) fn nonce() -> Result<Nonce, Refusal> {
    let mut nonce = [0; NONCE_BYTES];
    let filled = SystemRandom::new().fill(&mut nonce);
    filled.map_err(|_| Refusal::Random).map(|()| nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Talk {
        Talk {
            dialler: (NodeId::new([1; 32]), [11; NONCE_BYTES]),
            listener: (NodeId::new([2; 32]), [22; NONCE_BYTES]),
        }
    }

    #[test]
    fn a_proof_fits_one_side_of_one_talk_under_one_secret() {
        let right = Secret::new("0123456789abcdef0123456789abcdef");
        let wrong = Secret::new("0123456789abcdef0123456789abcdeg");
        let proof = talk().prove(DIALLER, &right, 7);
        let fits = |talk: &Talk, side, secret, instance| {
            talk.check(side, secret, instance, &proof).is_ok()
        };
        assert!(fits(&talk(), DIALLER, &right, 7));
        assert!(!fits(&talk(), DIALLER, &wrong, 7));
        assert!(!fits(&talk(), LISTENER, &right, 7), "reflected");
        assert!(!fits(&talk(), DIALLER, &right, 8), "another process");
        let (mut replayed, mut passed_on) = (talk(), talk());
        replayed.listener.1 = [23; NONCE_BYTES];
        passed_on.listener.0 = NodeId::new([3; 32]);
        assert!(!fits(&replayed, DIALLER, &right, 7));
        assert!(!fits(&passed_on, DIALLER, &right, 7));
    }
}
