//! Taking a blob from other nodes: open it at one, read chunks from those it names, check each.
//!
//! The node that was opened states size and chain; the chunks may come from others. A chunk is
//! checked before it is written or shown, and one that is wrong is taken from somebody else. Whom
//! to read from next is `protocol::transfer`'s decision, which node to open is `neighbours`'. What
//! happens behind the opening is `session`'s.

mod lanes;
mod session;
mod writes;

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use millrace_protocol::chunk::{self, CHUNK_BYTES, ChainValue};
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::{BlobNews, Cause, OpenBlob, Role};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::peer::{BlobStream, PeerError};
use crate::store::Provenance;
use crate::upstream::Subject;

use super::fill::Halt;
use super::neighbours::{Hop, Neighbours};
use super::pending::sleep_until;
use super::rank::Rank;
use super::refusal::{final_for, provenance_of};
use super::sink::{Check, Sink};
use super::transfer::{State, Supply, Transfer};

use session::Session;

/// What a blob is taken with.
#[derive(Clone, Copy)]
pub(super) struct Take<'a> {
    pub(super) transfer: &'a Arc<Transfer>,
    pub(super) sink: &'a Sink,
    pub(super) neighbours: &'a Neighbours,
    /// As what this node takes it; when the transfer is raised above, the hop is let go.
    pub(super) rank: Rank,
    /// Whether it is for a copy alone; when somebody waits for it, the hop is asked anew.
    pub(super) is_copy: bool,
    /// Until when the hop has to say anything at all, if not for as long as any peer may be silent.
    pub(super) heard_by: Option<Instant>,
}

/// How taking from one hop ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Every chunk is here and checked.
    Complete,
    /// The hop could not help, or not to the end; another may.
    PassedOver,
    /// This node has to act in a greater rank and may not wait for the hop any more, or somebody waits
    /// for what was taken for a copy.
    Raised,
}

impl Take<'_> {
    /// Takes what is missing through one hop.
    ///
    /// # Errors
    /// [`Halt::Transfer`] when nobody can, or what is here turned out to be wrong.
    /// # Cancel safety
    /// Dropping the future loses the chunks that were not written yet.
    pub(super) async fn through(
        self,
        hop: Hop,
        far: &mut mpsc::Receiver<u64>,
    ) -> Result<Ended, Halt> {
        if hop.role != Role::Holder {
            self.transfer.change(|state| state.waiting.begin(hop.peer));
        }
        let ended = tokio::select! {
            ended = self.open(hop, far) => ended?,
            () = self.transfer.raised_above(self.rank) => Ended::Raised,
            () = self.transfer.awaited(), if self.is_copy => Ended::Raised,
        };
        if !matches!(ended, Ended::Complete) {
            self.transfer.change(State::leave_hop);
        }
        Ok(ended)
    }

    async fn open(self, hop: Hop, far: &mut mpsc::Receiver<u64>) -> Result<Ended, Halt> {
        self.sink.settled().await;
        let question = OpenBlob {
            digest: self.transfer.digest,
            role: hop.role,
            origins: self.transfer.candidates().origin_names(),
            zone: self.neighbours.view().zone().to_owned(),
            have: self.transfer.state().checked_chunks(),
            copy: self.is_copy,
        };
        let asked = tokio::select! {
            asked = self.neighbours.peers.open(hop.peer, question) => asked,
            () = sleep_until(self.heard_by) => Err(PeerError::Silent { peer: hop.peer }),
        };
        let news = match asked {
            Ok(news) => news,
            Err(error) => return Ok(self.passed_over(hop, &error)),
        };
        let waiting = self.pass_on(news.delays());
        tokio::select! {
            ended = self.hear(hop, news, far) => ended,
            never = waiting => match never {},
        }
    }

    /// Takes what is missing through a hop that was asked, as soon as it says that it has it.
    async fn hear(
        self,
        hop: Hop,
        mut news: BlobStream,
        far: &mut mpsc::Receiver<u64>,
    ) -> Result<Ended, Halt> {
        let silence = self.silence(news.delays());
        let opened = async {
            match self.is_copy {
                true => self.neighbours.news_of_copy(hop, &mut news).await,
                false => self.neighbours.news_in_time(hop, &mut news).await,
            }
        };
        let opened = tokio::select! {
            opened = opened => opened,
            () = silence => Err(PeerError::Silent { peer: hop.peer }),
        };
        match opened {
            Ok(Some(BlobNews::Opened {
                size,
                provenance,
                sources,
            })) => {
                let provenance = provenance.iter().map(provenance_of).collect();
                if !self.learn(size, provenance) {
                    return Ok(Ended::PassedOver);
                }
                let session = Session::new(self, hop, news, size, sources);
                session.run(far).await
            }
            // Anything else before that is not how the protocol goes.
            Ok(_) => Ok(Ended::PassedOver),
            Err(error) => Ok(self.passed_over(hop, &error)),
        }
    }

    /// Resolves when the hop ought to have said something, and has not even said that it works.
    async fn silence(self, mut delays: watch::Receiver<Cause>) {
        tokio::select! {
            biased;
            _ = delays.changed() => std::future::pending().await,
            () = sleep_until(self.heard_by) => {}
        }
    }

    /// Says of this transfer what its hop says of its own: that it waits for its turn.
    async fn pass_on(self, mut delays: watch::Receiver<Cause>) -> Infallible {
        let mut queued = None;
        while delays.changed().await.is_ok() {
            let is_queued = *delays.borrow_and_update() == Cause::Turn;
            queued = is_queued.then(|| queued.unwrap_or_else(|| self.transfer.queue()));
        }
        drop(queued);
        std::future::pending().await
    }

    /// Takes over what a hop states. Returns whether that can be.
    fn learn(self, size: u64, provenance: Vec<Provenance>) -> bool {
        self.transfer.change(|state| {
            if state.size.is_some_and(|known| known != size) {
                return false;
            }
            state.learn_size(size);
            if !provenance.is_empty() {
                state.provenance = provenance;
            }
            state.supply = Supply::Peers;
            true
        })
    }

    /// Notes why a hop did not help; a refusal may be final for some of those who wait.
    fn passed_over(self, hop: Hop, error: &PeerError) -> Ended {
        self.neighbours.passed_over(hop, error);
        if !error.is_broken_answer() {
            self.transfer.change(|state| state.waiting.lose_hop());
        }
        if let PeerError::Refused { refusal, .. } = error {
            let digest = self.transfer.digest;
            let failed = self.transfer.candidates().refuse(|origin| {
                let subject = Subject::Blob(origin.repository.clone(), digest);
                final_for(origin, refusal, subject)
            });
            if failed {
                self.transfer.change(|_| ());
            }
        }
        Ended::PassedOver
    }
}

/// Returns the bytes of a chunk in the blob, half-open.
fn range(index: u32, size: u64) -> Range<u64> {
    let start = u64::from(index) * CHUNK_BYTES;
    start..(start + CHUNK_BYTES).min(size)
}

/// Returns what a chunk is checked by; `None` while the chain has not come there.
fn check(digest: &Digest, chain: &[ChainValue], index: u32, size: u64) -> Option<Check> {
    let before = match index.checked_sub(1) {
        None => ChainValue::start(digest.algorithm()),
        Some(last) => chain.get(last as usize)?.clone(),
    };
    let after = if u64::from(index) + 1 == chunk::count(size) {
        None
    } else {
        Some(chain.get(index as usize)?.clone())
    };
    Some(Check { before, after })
}
