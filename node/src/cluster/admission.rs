//! The gate of the control plane: who comes in has proved that it knows a secret of the cluster.
//!
//! It stands between noise, which proves who the other end is, and the multiplexer, so nothing of
//! this node sees a stranger. The dialling end proves first; the listening end says nothing but a
//! random number before that. A proof covers both identities and both random numbers, so it is
//! worth nothing on another connection. Source: SPEC.md, "Admission".

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::iter;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libp2p::PeerId;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use libp2p::futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::yamux;
use millrace_protocol::node_id::NodeId;
use parking_lot::Mutex;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::metrics::{Metrics, Refused};
use super::names::node_id;
use super::secrets::{MAX_SECRETS, Secret, Secrets};

/// Name and version of the exchange.
const PROTOCOL: &str = "/millrace/admission/1";

/// What a proof of the dialling and of the listening end begins with.
const DIALLER: &[u8] = b"millrace admission 1: dialler";
const LISTENER: &[u8] = b"millrace admission 1: listener";

const NONCE_BYTES: usize = 32;
const PROOF_BYTES: usize = 32;

type Nonce = [u8; NONCE_BYTES];
type Proof = [u8; PROOF_BYTES];

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
    metrics: Metrics,
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
    pub(super) fn new(me: NodeId, instance: u64, secrets: Secrets, metrics: Metrics) -> Self {
        Self {
            me,
            instance,
            secrets: Mutex::new(Arc::new(secrets)),
            denied: Mutex::default(),
            admitted: Mutex::default(),
            duplicate: AtomicBool::new(false),
            metrics,
        }
    }

    /// Returns the gate for a connection whose other end has proved to be `peer`.
    pub(super) fn gate(self: &Arc<Self>, peer: &PeerId) -> Gate {
        Gate {
            admission: Arc::clone(self),
            peer: *peer,
        }
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

    async fn dial<C: AsyncRead + AsyncWrite + Unpin>(
        &self,
        peer: &PeerId,
        io: &mut C,
    ) -> Result<(), Refusal> {
        let peer = self.known(peer)?;
        let mine = nonce()?;
        io.write_all(&mine).await?;
        io.flush().await?;
        let mut theirs = [0; NONCE_BYTES];
        io.read_exact(&mut theirs).await?;
        let talk = Talk {
            dialler: (self.me, mine),
            listener: (peer, theirs),
        };
        let secrets = Arc::clone(&self.secrets.lock());
        let count = u8::try_from(secrets.iter().len()).expect("at most four");
        let mut message = self.instance.to_be_bytes().to_vec();
        message.push(count);
        for secret in secrets.iter() {
            message.extend(talk.prove(DIALLER, secret, self.instance));
        }
        io.write_all(&message).await?;
        io.flush().await?;
        let answer = Answer::read(io).await.map_err(refused_by_silence)?;
        let secret = secrets.iter().nth(answer.index.into());
        let secret = secret.ok_or(Refusal::Secret)?;
        talk.check(LISTENER, secret, answer.instance, &answer.proof)?;
        self.enter(peer, answer.instance, secret)
    }

    async fn listen<C: AsyncRead + AsyncWrite + Unpin>(
        &self,
        peer: &PeerId,
        io: &mut C,
    ) -> Result<(), Refusal> {
        let peer = self.known(peer)?;
        let mine = nonce()?;
        io.write_all(&mine).await?;
        io.flush().await?;
        let mut theirs = [0; NONCE_BYTES];
        io.read_exact(&mut theirs).await?;
        let talk = Talk {
            dialler: (peer, theirs),
            listener: (self.me, mine),
        };
        let (instance, proofs) = read_proofs(io).await?;
        let secrets = Arc::clone(&self.secrets.lock());
        let known = proofs.iter().zip(0_u8..).find_map(|(proof, index)| {
            let fits = |secret: &&Secret| talk.check(DIALLER, secret, instance, proof).is_ok();
            secrets.iter().find(fits).map(|secret| (secret, index))
        });
        let (secret, index) = known.ok_or(Refusal::Secret)?;
        let mut message = vec![index];
        message.extend(self.instance.to_be_bytes());
        message.extend(talk.prove(LISTENER, secret, self.instance));
        io.write_all(&message).await?;
        io.flush().await?;
        self.enter(peer, instance, secret)
    }

    fn count(&self, refusal: &Refusal) {
        let reason = match refusal {
            Refusal::Secret => Refused::Secret,
            Refusal::Denied => Refused::Denied,
            Refusal::Identity | Refusal::Duplicate => Refused::Identity,
            Refusal::Broken(_) | Refusal::Myself | Refusal::Random => return,
        };
        self.metrics.refused(reason);
    }
}

/// A listener that does not accept the proofs closes without a word.
fn refused_by_silence(error: io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Refusal::Secret,
        _ => Refusal::Broken(error),
    }
}

/// What the listening end answers.
struct Answer {
    /// Which of the proofs it accepted.
    index: u8,
    instance: u64,
    proof: Proof,
}

impl Answer {
    async fn read<C: AsyncRead + Unpin>(io: &mut C) -> io::Result<Self> {
        let (mut index, mut instance, mut proof) = ([0; 1], [0; 8], [0; PROOF_BYTES]);
        io.read_exact(&mut index).await?;
        io.read_exact(&mut instance).await?;
        io.read_exact(&mut proof).await?;
        Ok(Self {
            index: index[0],
            instance: u64::from_be_bytes(instance),
            proof,
        })
    }
}

/// Reads the dialling end's instance and its proofs, one for each secret that it knows.
async fn read_proofs<C: AsyncRead + Unpin>(io: &mut C) -> Result<(u64, Vec<Proof>), Refusal> {
    let (mut instance, mut count) = ([0; 8], [0; 1]);
    io.read_exact(&mut instance).await?;
    io.read_exact(&mut count).await?;
    let count = usize::from(count[0]);
    if !(1..=MAX_SECRETS).contains(&count) {
        return Err(Refusal::Secret);
    }
    let mut proofs = vec![[0; PROOF_BYTES]; count];
    for proof in &mut proofs {
        io.read_exact(proof).await?;
    }
    Ok((u64::from_be_bytes(instance), proofs))
}

/// What both ends know of one exchange.
struct Talk {
    dialler: (NodeId, Nonce),
    listener: (NodeId, Nonce),
}

impl Talk {
    fn prove(&self, side: &[u8], secret: &Secret, instance: u64) -> Proof {
        let tag = hmac::sign(&secret.key, &self.statement(side, instance));
        let mut proof = [0; PROOF_BYTES];
        proof.copy_from_slice(tag.as_ref());
        proof
    }

    /// Compares in constant time.
    fn check(
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

fn nonce() -> Result<Nonce, Refusal> {
    let mut nonce = [0; NONCE_BYTES];
    let filled = SystemRandom::new().fill(&mut nonce);
    filled.map_err(|_| Refusal::Random).map(|()| nonce)
}

/// The gate of one connection; behind it lies the multiplexer.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    admission: Arc<Admission>,
    peer: PeerId,
}

type Opening<M> = Pin<Box<dyn Future<Output = Result<M, Refusal>> + Send>>;

impl UpgradeInfo for Gate {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(PROTOCOL)
    }
}

impl<C> InboundConnectionUpgrade<C> for Gate
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = yamux::Muxer<C>;
    type Error = Refusal;
    type Future = Opening<Self::Output>;

    fn upgrade_inbound(self, mut io: C, info: Self::Info) -> Self::Future {
        Box::pin(async move {
            let Self { admission, peer } = self;
            let outcome = admission.listen(&peer, &mut io).await;
            outcome.inspect_err(|refusal| admission.count(refusal))?;
            Ok(yamux::Config::default().upgrade_inbound(io, info).await?)
        })
    }
}

impl<C> OutboundConnectionUpgrade<C> for Gate
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = yamux::Muxer<C>;
    type Error = Refusal;
    type Future = Opening<Self::Output>;

    fn upgrade_outbound(self, mut io: C, info: Self::Info) -> Self::Future {
        Box::pin(async move {
            let Self { admission, peer } = self;
            admission.dial(&peer, &mut io).await?;
            Ok(yamux::Config::default().upgrade_outbound(io, info).await?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::secrets::{SecretSource, SecretText};
    use super::*;

    fn secret(text: &str) -> Secret {
        let secrets = SecretSource::Text(SecretText::new(text)).read();
        let secrets = secrets.expect("strong");
        secrets.iter().next().expect("one").clone()
    }

    fn talk() -> Talk {
        Talk {
            dialler: (NodeId::new([1; 32]), [11; NONCE_BYTES]),
            listener: (NodeId::new([2; 32]), [22; NONCE_BYTES]),
        }
    }

    #[test]
    fn a_proof_fits_one_side_of_one_talk_under_one_secret() {
        let right = secret("0123456789abcdef0123456789abcdef");
        let wrong = secret("0123456789abcdef0123456789abcdeg");
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
        let admission = Admission::new(me, 1, both, Metrics::default());
        let (early, late) = (NodeId::new([2; 32]), NodeId::new([3; 32]));
        admission.enter(early, 5, &secret(new)).expect("let in");
        admission.enter(late, 5, &secret(old)).expect("let in");
        assert_eq!(admission.set_secrets(text(new)), [late]);
        admission
            .enter(late, 5, &secret(old))
            .expect_err("its secret is gone");
        admission.enter(me, 1, &secret(new)).expect_err("itself");
        assert!(!admission.has_duplicate());
        admission.enter(me, 2, &secret(new)).expect_err("another");
        assert!(admission.has_duplicate());
    }
}
