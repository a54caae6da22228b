//! Asking: one question on a stream of its own, and what comes back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::wire::frame;
use millrace_protocol::wire::message::{
    Answer, AskHolds, AskManifest, AskVouch, Cause, Holding, Question, RecallTag, Refusal,
    ResolveTag,
};
use quinn::ConnectionError;
use tokio::sync::watch;
use tokio::time::timeout;

use super::error::PeerError;
use super::handler::{PeerManifest, PeerTag};
use super::inbox::{Inbox, ReadFailure};
use super::link::Link;
use super::links::Links;
use super::metrics::Kind;
use super::outbox::{Code, Outbox, WriteFailure};

/// A question that was asked; dropping it tells the peer that the answer is not wanted any more.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) link: Arc<Link>,
    links: Arc<Links>,
    inbox: Inbox,
    /// What the peer has last said that it waits for.
    delay: watch::Sender<Cause>,
}

/// Asks `peer`; the answers are read from what is returned.
///
/// # Errors
/// [`PeerError`]; `Crowded` when no stream was free for as long as a peer may say nothing.
/// # Cancel safety
/// The peer may or may not have been asked when dropped; it is told that no answer is wanted.
pub(super) async fn ask(
    links: &Arc<Links>,
    peer: NodeId,
    question: &Question,
) -> Result<Asked, PeerError> {
    ask_soon(links, peer, question, links.config.silence).await
}

/// As [`ask`], and waits no longer than `turn` for a free stream.
async fn ask_soon(
    links: &Arc<Links>,
    peer: NodeId,
    question: &Question,
    turn: Duration,
) -> Result<Asked, PeerError> {
    // No message carries a secret; the tests search these lines for what one might.
    tracing::trace!(message = ?question, "said");
    let frame = frame::encode(question).map_err(|source| PeerError::Question { source })?;
    let link = links.link(peer)?;
    let connection = links.connect(&link).await?;
    // A peer that is gone ends the connection: nobody waits here but for what this node itself asks.
    let Ok(opened) = timeout(turn, connection.open_bi()).await else {
        return Err(PeerError::Crowded { peer });
    };
    let (send, receive) = opened.map_err(|source| PeerError::Lost { peer, source })?;
    let silence = links.config.silence;
    let mut outbox = Outbox::new(send, silence);
    match outbox.write(frame, Vec::new()).await {
        Ok(()) => outbox.finish(),
        Err(WriteFailure::Stalled) => return Err(PeerError::Silent { peer }),
        // The stream or the connection says why.
        Err(WriteFailure::Gone | WriteFailure::Unsayable(_)) => {}
    }
    links.metrics.asked(kind(question));
    Ok(Asked {
        link,
        links: links.clone(),
        inbox: Inbox::new(receive, silence),
        delay: watch::Sender::default(),
    })
}

pub(super) fn kind(question: &Question) -> Kind {
    match question {
        Question::Open(_) => Kind::Open,
        Question::Read(_) => Kind::Read,
        Question::Manifest(_) => Kind::Manifest,
        Question::Resolve(_) => Kind::Resolve,
        Question::Recall(_) => Kind::Recall,
        Question::Holds(_) => Kind::Holds,
        Question::Follow => Kind::Follow,
        Question::Vouch(_) => Kind::Vouch,
    }
}

impl Asked {
    /// Tells each time that the peer says what it waits for.
    pub(super) fn delays(&self) -> watch::Receiver<Cause> {
        self.delay.subscribe()
    }

    /// Returns the next answer, over any *pending*; `None` when the peer has ended the stream.
    ///
    /// # Errors
    /// `Silent` when nothing came for too long, `Refused`, or what is wrong with the peer.
    /// # Cancel safety
    /// Nothing is lost when dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Answer>, PeerError> {
        loop {
            let read = self.inbox.message::<Answer>().await;
            match read.map_err(|failure| self.failed(failure))? {
                Some(Answer::Pending(cause)) => {
                    self.delay.send_replace(cause);
                }
                Some(Answer::Refused(refusal)) => {
                    let peer = self.link.peer;
                    return Err(PeerError::Refused { peer, refusal });
                }
                other => {
                    let tell = |cause: &mut Cause| std::mem::take(cause) != Cause::default();
                    self.delay.send_if_modified(tell);
                    return Ok(other);
                }
            }
        }
    }

    /// Returns the one answer that there is to be.
    async fn only(&mut self) -> Result<Answer, PeerError> {
        let answer = self.next().await?;
        answer.ok_or_else(|| self.broken_off())
    }

    /// Returns the bytes behind an answer.
    ///
    /// # Cancel safety
    /// Nothing is lost when dropped.
    pub(super) async fn bytes(&mut self, length: u32) -> Result<Vec<Bytes>, PeerError> {
        let length = usize::try_from(length).expect("at most a manifest's or a chunk's length");
        let read = self.inbox.bytes(length).await;
        let bytes = read.map_err(|failure| self.failed(failure))?;
        self.link.count_received(length as u64);
        self.links.metrics.received_bytes.inc_by(length as u64);
        Ok(bytes)
    }

    /// Says that the peer sent something out of order, and tells the peer.
    pub(super) fn disordered(&mut self, what: &'static str) -> PeerError {
        self.inbox.stop(Code::Malformed.number());
        PeerError::Disordered {
            peer: self.link.peer,
            what,
        }
    }

    /// Says that the peer ended the stream too early.
    pub(super) fn broken_off(&self) -> PeerError {
        PeerError::BrokenOff {
            peer: self.link.peer,
            code: 0,
        }
    }

    fn failed(&mut self, failure: ReadFailure) -> PeerError {
        let peer = self.link.peer;
        match failure {
            ReadFailure::Silent => PeerError::Silent { peer },
            ReadFailure::Truncated => self.broken_off(),
            ReadFailure::Reset(code) if code == Code::Stuck.number() => PeerError::Stuck { peer },
            ReadFailure::Reset(code) => PeerError::BrokenOff {
                peer,
                code: code.into_inner(),
            },
            // Idle for longer than the silence that is allowed.
            ReadFailure::Lost(ConnectionError::TimedOut) => PeerError::Silent { peer },
            ReadFailure::Lost(source) => PeerError::Lost { peer, source },
            ReadFailure::Frame(source) => {
                self.inbox.stop(Code::Malformed.number());
                PeerError::Frame { peer, source }
            }
        }
    }
}

/// Asks for a manifest.
pub(super) async fn manifest(
    links: &Arc<Links>,
    peer: NodeId,
    question: AskManifest,
) -> Result<PeerManifest, PeerError> {
    let mut asked = ask(links, peer, &Question::Manifest(question)).await?;
    match asked.only().await? {
        Answer::Manifest {
            media_type,
            length,
            provenance,
        } => {
            let pieces = asked.bytes(length).await?;
            Ok(PeerManifest {
                media_type,
                bytes: pieces.concat().into(),
                provenance,
            })
        }
        _ => Err(asked.disordered("something that is no manifest")),
    }
}

/// Asks what a tag points to.
pub(super) async fn resolve(
    links: &Arc<Links>,
    peer: NodeId,
    question: ResolveTag,
) -> Result<PeerTag, PeerError> {
    let mut asked = ask(links, peer, &Question::Resolve(question)).await?;
    let answer = asked.only().await?;
    tag(answer).ok_or_else(|| asked.disordered("something that is no tag"))
}

/// Asks what a tag last pointed to.
pub(super) async fn recall(
    links: &Arc<Links>,
    peer: NodeId,
    question: RecallTag,
) -> Result<Option<PeerTag>, PeerError> {
    let mut asked = ask(links, peer, &Question::Recall(question)).await?;
    let answer = match asked.only().await {
        Ok(Answer::Absent) => return Ok(None),
        Err(PeerError::Refused {
            refusal: Refusal::Absent,
            ..
        }) => return Ok(None),
        answer => answer?,
    };
    let tag = tag(answer).ok_or_else(|| asked.disordered("something that is no tag"))?;
    Ok(Some(tag))
}

fn tag(answer: Answer) -> Option<PeerTag> {
    match answer {
        Answer::Tag {
            digest,
            age_ms,
            origin,
        } => Some(PeerTag {
            digest,
            age: Duration::from_millis(age_ms),
            origin,
        }),
        _ => None,
    }
}

/// How many times longer a connection may take than the answer on it: it is made once, with handshakes at
/// both ends, while each question needs an answer.
const DIAL_SHARE: u32 = 4;

/// Asks which contents a peer has, and waits no longer than `patience`; half of it for a free stream, whose
/// lack says nothing of the peer. Where there is no connection yet, four times as long for that before.
pub(super) async fn holds(
    links: &Arc<Links>,
    peer: NodeId,
    question: AskHolds,
    patience: Duration,
) -> Result<Vec<Holding>, PeerError> {
    let silent = || PeerError::Silent { peer };
    let link = links.link(peer)?;
    let connected = timeout(patience * DIAL_SHARE, links.connect(&link)).await;
    connected.map_err(|_| silent())??;
    let expected = question.digests.len();
    let asking = async {
        let question = Question::Holds(question);
        let mut asked = ask_soon(links, peer, &question, patience / 2).await?;
        match asked.only().await? {
            Answer::Holds(holdings) if holdings.len() == expected => Ok(holdings),
            _ => Err(asked.disordered("something that is no list of holdings")),
        }
    };
    let asked = timeout(patience, asking).await;
    asked.unwrap_or_else(|_| Err(silent()))
}

/// Asks how long ago the upstream answered out of a repository that has some content.
pub(super) async fn vouch(
    links: &Arc<Links>,
    peer: NodeId,
    question: AskVouch,
) -> Result<Duration, PeerError> {
    let mut asked = ask(links, peer, &Question::Vouch(question)).await?;
    match asked.only().await? {
        Answer::Vouched { age_ms } => Ok(Duration::from_millis(age_ms)),
        _ => Err(asked.disordered("something that vouches for nothing")),
    }
}
