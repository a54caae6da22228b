//! The news of a blob that a peer was asked to open.

use std::sync::Arc;

use millrace_protocol::chunk;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Algorithm;
use millrace_protocol::wire::message::{Answer, BlobNews, Cause, OpenBlob, Question};
use tokio::sync::watch;

use super::ask::{self, Asked};
use super::error::PeerError;
use super::links::Links;

/// News in the order of SPEC.md "Open", which is checked; dropping it tells the peer.
#[derive(Debug)]
pub struct BlobStream {
    asked: Asked,
    algorithm: Algorithm,
    /// Chunks of the blob; known once it was opened.
    chunks: Option<u64>,
    /// Values of the chain so far.
    chained: u64,
}

impl BlobStream {
    /// Asks `peer` for a blob.
    pub(super) async fn open(
        links: &Arc<Links>,
        peer: NodeId,
        question: OpenBlob,
    ) -> Result<Self, PeerError> {
        let algorithm = question.digest.algorithm();
        let asked = ask::ask(links, peer, &Question::Open(question)).await?;
        Ok(Self {
            asked,
            algorithm,
            chunks: None,
            chained: 0,
        })
    }

    /// Returns the peer.
    pub fn peer(&self) -> NodeId {
        self.asked.link.peer
    }

    /// Tells each time that the peer says what it waits for; while that is a turn, it is not stuck.
    pub fn delays(&self) -> watch::Receiver<Cause> {
        self.asked.delays()
    }

    /// Returns the next news: first `Opened`, and the values of the chain without gaps; `None`
    /// when the peer has no more to say.
    ///
    /// # Errors
    /// `Refused` with the peer's reason, `Silent` after three seconds without a sign of life,
    /// `Disordered` when the news do not fit together; the stream is then of no further use.
    /// # Cancel safety
    /// No news are lost when dropped.
    pub async fn next(&mut self) -> Result<Option<BlobNews>, PeerError> {
        match self.asked.next().await? {
            None if self.chunks.is_none() => Err(self.asked.broken_off()),
            None => Ok(None),
            Some(Answer::Blob(news)) => match self.misfit(&news) {
                None => Ok(Some(news)),
                Some(what) => Err(self.asked.disordered(what)),
            },
            Some(_) => Err(self.asked.disordered("something that is no news of a blob")),
        }
    }

    /// Takes note of news, or says what is wrong with them.
    fn misfit(&mut self, news: &BlobNews) -> Option<&'static str> {
        match (news, self.chunks) {
            (BlobNews::Opened { size, .. }, None) => {
                self.chunks = Some(chunk::count(*size));
                None
            }
            (BlobNews::Opened { .. }, Some(_)) => Some("a second beginning of a blob"),
            (_, None) => Some("news of a blob before its beginning"),
            (BlobNews::Chain { first, values }, Some(chunks)) => {
                let end = u64::from(*first) + values.len() as u64;
                if u64::from(*first) != self.chained || end > chunks {
                    return Some("a chain with a gap or beyond the end");
                }
                if values.iter().any(|v| v.algorithm() != self.algorithm) {
                    return Some("a chain of another algorithm");
                }
                self.chained = end;
                None
            }
            (BlobNews::Sources(_) | BlobNews::Whole, Some(_)) => None,
        }
    }
}
