//! The gate of one connection, an upgrade between noise and the multiplexer.
//!
//! Noise proves who the other end is; behind the gate lies everything else, so nothing of this node
//! sees a stranger. The dialling end proves first; the listening end says nothing but a random
//! number before that. Who may come in is `admission`'s to decide.

use std::io;
use std::iter;
use std::pin::Pin;
use std::sync::Arc;

use libp2p::PeerId;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use libp2p::futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::yamux;

use super::super::secrets::{MAX_SECRETS, Secret};
use super::proof::{DIALLER, LISTENER, NONCE_BYTES, Nonce, PROOF_BYTES, Proof, Talk, nonce};
use super::{Admission, Refusal};

/// Name and version of the exchange.
const PROTOCOL: &str = "/millrace/admission/1";

/// The gate of one connection; behind it lies the multiplexer.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Gate {
    admission: Arc<Admission>,
    peer: PeerId,
}

impl Gate {
    pub(super) fn new(admission: Arc<Admission>, peer: PeerId) -> Self {
        Self { admission, peer }
    }
}

/// What a gate is in: a connection behind noise.
pub(in crate::cluster) trait Wire:
    AsyncRead + AsyncWrite + Send + Unpin + 'static
{
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> Wire for C {}

type Opening<M> = Pin<Box<dyn Future<Output = Result<M, Refusal>> + Send>>;

impl UpgradeInfo for Gate {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(PROTOCOL)
    }
}

impl<C: Wire> InboundConnectionUpgrade<C> for Gate {
    type Output = yamux::Muxer<C>;
    type Error = Refusal;
    type Future = Opening<Self::Output>;

    fn upgrade_inbound(self, mut io: C, info: Self::Info) -> Self::Future {
        Box::pin(async move {
            let Self { admission, peer } = self;
            admission.listen(&peer, &mut io).await?;
            Ok(yamux::Config::default().upgrade_inbound(io, info).await?)
        })
    }
}

impl<C: Wire> OutboundConnectionUpgrade<C> for Gate {
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

impl Admission {
    /// Proves, then has the other end prove.
    async fn dial<C: Wire>(&self, peer: &PeerId, io: &mut C) -> Result<(), Refusal> {
        let peer = self.known(peer)?;
        let (mine, theirs) = exchange_nonces(io).await?;
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

    /// Has the other end prove, and proves only then.
    async fn listen<C: Wire>(&self, peer: &PeerId, io: &mut C) -> Result<(), Refusal> {
        let peer = self.known(peer)?;
        let (mine, theirs) = exchange_nonces(io).await?;
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
}

/// Exchanges random numbers; returns this end's and the other's.
async fn exchange_nonces<C: Wire>(io: &mut C) -> Result<(Nonce, Nonce), Refusal> {
    let mine = nonce()?;
    io.write_all(&mine).await?;
    io.flush().await?;
    let mut theirs = [0; NONCE_BYTES];
    io.read_exact(&mut theirs).await?;
    Ok((mine, theirs))
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
    async fn read<C: Wire>(io: &mut C) -> io::Result<Self> {
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
async fn read_proofs<C: Wire>(io: &mut C) -> Result<(u64, Vec<Proof>), Refusal> {
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
