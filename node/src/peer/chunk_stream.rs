//! The chunks that a peer was asked for.

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::message::{Answer, Question, ReadChunks};
use tokio::time::Instant;

use super::ask::{self, Asked};
use super::error::PeerError;
use super::handler::ChunkEvent;
use super::links::Links;

/// Chunks in order, each whole; their bytes are still to be checked. Dropping it tells the peer.
#[derive(Debug)]
pub struct ChunkStream {
    asked: Asked,
    /// The chunk that comes next.
    next: u32,
    /// The one behind the last that was asked for.
    end: u32,
    /// Whether chunks may come ahead of the chain.
    far: bool,
    /// The chunk whose bytes are being waited for.
    begun: Option<Begun>,
    took: Duration,
}

/// What was said of a chunk before its bytes.
#[derive(Clone, Copy, Debug)]
struct Begun {
    length: u32,
    /// Of a chunk ahead of the chain.
    digest: Option<Digest>,
    at: Instant,
}

impl ChunkStream {
    /// Asks `peer` for chunks.
    pub(super) async fn read(
        links: &Arc<Links>,
        peer: NodeId,
        question: ReadChunks,
    ) -> Result<Self, PeerError> {
        let asked = ask::ask(links, peer, &Question::Read(question)).await?;
        Ok(Self {
            asked,
            next: question.first,
            // The bounds were checked when the question was encoded.
            end: question.first.saturating_add(question.count),
            far: question.far,
            begun: None,
            took: Duration::ZERO,
        })
    }

    /// Returns the peer.
    pub fn peer(&self) -> NodeId {
        self.asked.link.peer
    }

    /// Returns how long the bytes of the last chunk were on their way, behind what was said of it
    /// before: little if the peer waited for it itself.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Returns the next chunk, or how the answer ends; nothing comes after an end.
    ///
    /// # Errors
    /// `Silent` after three seconds without a byte, `Refused`, `Disordered` when a chunk comes out
    /// of order; the stream is then of no further use.
    /// # Cancel safety
    /// No chunk is lost when dropped.
    pub async fn next(&mut self) -> Result<ChunkEvent, PeerError> {
        let begun = match self.begun {
            Some(begun) => begun,
            None => match self.asked.next().await? {
                Some(Answer::Chunk { index, length }) => self.begin(index, length, None)?,
                Some(Answer::FarChunk {
                    index,
                    length,
                    digest,
                }) if self.far => self.begin(index, length, Some(digest))?,
                Some(Answer::Done) if self.next == self.end => return Ok(ChunkEvent::Done),
                Some(Answer::NotYet) => return Ok(ChunkEvent::NotYet),
                Some(Answer::Busy { ask }) => return Ok(ChunkEvent::Busy { ask }),
                Some(Answer::Absent) => return Ok(ChunkEvent::Absent),
                Some(_) => return Err(self.asked.disordered("something that is no chunk")),
                None => return Err(self.asked.broken_off()),
            },
        };
        let bytes = self.asked.bytes(begun.length).await?;
        self.begun = None;
        self.took = begun.at.elapsed();
        let index = self.next;
        self.next += 1;
        Ok(match begun.digest {
            None => ChunkEvent::Chunk { index, bytes },
            Some(digest) => ChunkEvent::Far {
                index,
                bytes,
                digest,
            },
        })
    }

    fn begin(
        &mut self,
        index: u32,
        length: u32,
        digest: Option<Digest>,
    ) -> Result<Begun, PeerError> {
        if index != self.next || index >= self.end {
            return Err(self.asked.disordered("a chunk out of order"));
        }
        let begun = Begun {
            length,
            digest,
            at: Instant::now(),
        };
        self.begun = Some(begun);
        Ok(begun)
    }
}
