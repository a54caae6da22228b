//! Answering: one task for each stream that a peer opens, from its question to the last answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, once};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::wire::frame::FrameError;
use millrace_protocol::wire::message::{
    Answer, BlobNews, Cause, HoldingsNews, Question, ReadChunks, Refusal,
};
use quinn::{RecvStream, SendStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{Span, debug};

use super::ask::kind;
use super::handler::{ChunkEvent, Handler, PeerManifest, PeerTag};
use super::inbox::{Inbox, ReadFailure};
use super::link::Link;
use super::links::Links;
use super::metrics::Reject;
use super::outbox::{Code, Outbox, WriteFailure};
use super::uploads::{Upload, Uploads};

/// An answer and the bytes behind it.
type Reply = (Answer, Vec<Bytes>);

/// Answers the questions of all peers.
#[derive(Debug)]
pub(super) struct Answerer {
    handler: Arc<dyn Handler>,
    uploads: Uploads,
}

impl Answerer {
    pub(super) fn new(handler: Arc<dyn Handler>, uploads: usize) -> Self {
        Self {
            handler,
            uploads: Uploads::new(uploads),
        }
    }

    /// Returns how many upload slots are taken.
    pub(super) fn uploads_taken(&self) -> usize {
        self.uploads.taken()
    }

    /// Answers on one stream, in a task of its own; QUIC bounds how many there are. `reading` is given
    /// back when the question was read.
    pub(super) fn answer(
        &self,
        links: &Arc<Links>,
        link: &Arc<Link>,
        (send, receive): (SendStream, RecvStream),
        reading: OwnedSemaphorePermit,
    ) {
        let exchange = Exchange {
            inbox: Inbox::new(receive, links.config.question_patience),
            outbox: Outbox::new(send, links.config.stall),
            handler: self.handler.clone(),
            uploads: self.uploads.clone(),
            links: links.clone(),
            link: link.clone(),
        };
        links.tasks.spawn(Span::current(), exchange.run(reading));
    }
}

/// One stream of a peer.
struct Exchange {
    inbox: Inbox,
    outbox: Outbox,
    handler: Arc<dyn Handler>,
    uploads: Uploads,
    links: Arc<Links>,
    link: Arc<Link>,
}

impl Exchange {
    async fn run(mut self, reading: OwnedSemaphorePermit) {
        let patience = self.links.config.question_patience;
        let question = timeout(patience, read_question(&mut self.inbox)).await;
        drop(reading);
        match question.unwrap_or(Err(ReadFailure::Silent)) {
            Ok(question) => {
                self.links.metrics.answering(kind(&question));
                let bounded = has_bounded_work(&question).then(|| question.clone());
                let (replies, slot) = self.replies(question);
                let all_said = self.send(bounded.as_ref(), replies).await;
                drop(slot);
                if all_said {
                    self.outbox.heard().await;
                }
            }
            Err(failure) => self.turn_away(&failure),
        }
    }

    /// Gives up a stream without a question.
    fn turn_away(&mut self, failure: &ReadFailure) {
        let (code, reject) = match failure {
            ReadFailure::Silent => (Code::Late, Reject::Late),
            ReadFailure::Frame(FrameError::Version { .. }) => (Code::Version, Reject::Version),
            ReadFailure::Frame(_) | ReadFailure::Truncated => (Code::Malformed, Reject::Malformed),
            // The peer has thought better of it.
            ReadFailure::Reset(_) | ReadFailure::Lost(_) => return,
        };
        debug!(?failure, "turned away a stream");
        self.links.metrics.rejected(reject);
        self.outbox.reset(code);
        self.inbox.stop(code.number());
    }

    /// Lets the handler answer; a slot, where one is needed, is held until all is sent.
    fn replies(&self, question: Question) -> (BoxStream<'static, Reply>, Option<Upload>) {
        let (handler, from) = (&self.handler, self.link.peer);
        if !matches!(question, Question::Read(_)) {
            self.outbox.hurry();
        }
        let replies = match question {
            Question::Open(question) => {
                let news = handler.open(from, question);
                news.map(|news| (news_answer(news), Vec::new())).boxed()
            }
            Question::Read(question) => return self.read(from, question),
            Question::Manifest(question) => {
                single(handler.manifest(from, question), manifest_reply)
            }
            Question::Resolve(question) => single(handler.resolve(from, question), |tag| {
                plain(tag.map_or_else(Answer::Refused, tag_answer))
            }),
            Question::Recall(question) => single(handler.recall(from, question), |tag| {
                plain(tag.map_or(Answer::Absent, tag_answer))
            }),
            Question::Holds(question) => single(handler.holds(from, question), |holdings| {
                plain(Answer::Holds(holdings))
            }),
            Question::Vouch(question) => single(handler.vouch(from, question), |age| {
                let vouched = |age| Answer::Vouched {
                    age_ms: millis(age),
                };
                plain(age.map_or_else(Answer::Refused, vouched))
            }),
            Question::Follow => {
                let changes = handler.follow(from).enumerate();
                changes
                    .map(|(number, change)| {
                        let sequence = number as u64;
                        plain(Answer::Holdings(HoldingsNews { sequence, change }))
                    })
                    .boxed()
            }
        };
        (replies, None)
    }

    fn read(
        &self,
        from: NodeId,
        question: ReadChunks,
    ) -> (BoxStream<'static, Reply>, Option<Upload>) {
        let Some(slot) = self.uploads.try_take(question.copy) else {
            self.links.metrics.rejected(Reject::Busy);
            let ask = self.handler.others(from, question);
            let busy = async { plain(Answer::Busy { ask }) };
            return (once(busy).boxed(), None);
        };
        let events = self.handler.read(from, question);
        (events.map(chunk_reply).boxed(), Some(slot))
    }

    /// Sends replies as they come, and *pending* in between, until the peer has heard enough; or
    /// until it is clear that nothing comes of the first: of `bounded`, a question on whose first answer
    /// this node may not work for long. Returns whether all was said.
    async fn send(
        &mut self,
        bounded: Option<&Question>,
        mut replies: BoxStream<'static, Reply>,
    ) -> bool {
        let unheard = self.outbox.unheard();
        tokio::pin!(unheard);
        let mut pending = interval(self.links.config.pending);
        pending.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Since when this node's own work is all that there is; `None` behind the first reply.
        let mut working = Some(Instant::now());
        loop {
            let reply = tokio::select! {
                biased;
                () = &mut unheard => return false,
                reply = replies.next() => {
                    working = None;
                    reply
                }
                // The first tick is at once: what takes any time is pending.
                _ = pending.tick() => {
                    let waits_for = |question| self.handler.waits_for(question);
                    let cause = bounded.map_or(Cause::Others, waits_for);
                    if cause != Cause::Work {
                        working = working.map(|_| Instant::now());
                    }
                    if working.is_some_and(|since| since.elapsed() > self.links.config.own_work) {
                        self.give_up_own_work();
                        return false;
                    }
                    Some(plain(Answer::Pending(cause)))
                }
            };
            let Some(reply) = reply else {
                self.outbox.finish();
                return true;
            };
            if let Err(failure) = self.send_one(reply).await {
                self.give_up(&failure);
                return false;
            }
            pending.reset();
        }
    }

    fn give_up_own_work(&mut self) {
        let peer = self.link.peer.short();
        tracing::warn!(peer.id = %peer, "this node does not get on with an answer to a peer");
        self.links.metrics.rejected(Reject::Stuck);
        self.outbox.reset(Code::Stuck);
    }

    async fn send_one(&mut self, (answer, bytes): Reply) -> Result<(), WriteFailure> {
        let content: usize = bytes.iter().map(Bytes::len).sum();
        self.outbox.say_with(&answer, bytes).await?;
        self.link.count_sent(content as u64);
        self.links.metrics.sent_bytes.inc_by(content as u64);
        Ok(())
    }

    fn give_up(&mut self, failure: &WriteFailure) {
        match failure {
            WriteFailure::Gone => {}
            WriteFailure::Stalled => {
                debug!("peer takes in nothing");
                self.links.metrics.rejected(Reject::Stalled);
                self.outbox.reset(Code::Stalled);
            }
            WriteFailure::Unsayable(error) => {
                tracing::error!(%error, "an answer breaks the protocol's bounds");
                self.outbox.reset(Code::Cancelled);
            }
        }
    }
}

/// Whether the time is bounded for which a node may work on the first answer, as SPEC.md "Pending" has
/// it; the other questions are many digests long, or are answered from what is at hand.
fn has_bounded_work(question: &Question) -> bool {
    matches!(
        question,
        Question::Open(_) | Question::Manifest(_) | Question::Resolve(_)
    )
}

/// Reads the one question of a stream, behind which nothing may come.
async fn read_question(inbox: &mut Inbox) -> Result<Question, ReadFailure> {
    let question = inbox.message::<Question>().await?;
    let question = question.ok_or(ReadFailure::Truncated)?;
    match inbox.message::<Question>().await {
        Ok(None) => Ok(question),
        Ok(Some(_)) => Err(ReadFailure::Frame(FrameError::Trailing { bytes: 1 })),
        Err(failure) => Err(failure),
    }
}

/// Makes a stream of the one reply that a future comes to.
fn single<T: Send + 'static>(
    future: BoxFuture<'static, T>,
    reply: impl FnOnce(T) -> Reply + Send + 'static,
) -> BoxStream<'static, Reply> {
    once(async move { reply(future.await) }).boxed()
}

fn plain(answer: Answer) -> Reply {
    (answer, Vec::new())
}

fn news_answer(news: Result<BlobNews, Refusal>) -> Answer {
    news.map_or_else(Answer::Refused, Answer::Blob)
}

fn manifest_reply(manifest: Result<PeerManifest, Refusal>) -> Reply {
    match manifest {
        Err(refusal) => plain(Answer::Refused(refusal)),
        Ok(manifest) => {
            let answer = Answer::Manifest {
                media_type: manifest.media_type,
                length: length(manifest.bytes.len()),
                provenance: manifest.provenance,
            };
            (answer, vec![manifest.bytes])
        }
    }
}

fn tag_answer(tag: PeerTag) -> Answer {
    Answer::Tag {
        digest: tag.digest,
        age_ms: millis(tag.age),
        origin: tag.origin,
    }
}

fn chunk_reply(event: ChunkEvent) -> Reply {
    match event {
        ChunkEvent::Chunk { index, bytes } => {
            let length = length(bytes.iter().map(Bytes::len).sum());
            (Answer::Chunk { index, length }, bytes)
        }
        ChunkEvent::Far {
            index,
            bytes,
            digest,
        } => {
            let answer = Answer::FarChunk {
                index,
                length: length(bytes.iter().map(Bytes::len).sum()),
                digest,
            };
            (answer, bytes)
        }
        ChunkEvent::Done => plain(Answer::Done),
        ChunkEvent::NotYet => plain(Answer::NotYet),
        ChunkEvent::Busy { ask } => plain(Answer::Busy { ask }),
        ChunkEvent::Absent => plain(Answer::Absent),
    }
}

/// A length that does not fit breaks the bound that `frame::encode` checks.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Rounded up: nothing is told to be younger than it is.
fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_rounded_up() {
        for (nanos, told) in [(0, 0), (1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2)] {
            assert_eq!(millis(Duration::from_nanos(nanos)), told);
        }
        assert_eq!(millis(Duration::MAX), u64::MAX);
    }
}
