//! How long the other nodes are waited for.
//!
//! A hop that lives may have to wait for others itself, so it is given time by its role, and left
//! alone when it gets nowhere in that. Which hop comes next is not decided here.

use std::time::Duration;

use millrace_protocol::wire::message::{BlobNews, Cause, Role};
use tokio::time::{Instant, sleep_until, timeout};

use crate::peer::{BlobStream, PeerError};

use super::{Hop, Neighbours};

/// How long hops are tried, since one last brought a byte, before this node goes on alone. One that
/// says that it is working is waited for; this bounds how long dead ones can hold up a pull.
pub(in crate::pull) const HOPS_PATIENCE: Duration = Duration::from_secs(8);

impl Neighbours {
    /// Returns how long a hop that lives may bring nothing: it may wait for others, and those for
    /// others still, so that who is next to the cause leaves it first.
    pub(in crate::pull) fn hop_patience(&self, role: Role) -> Duration {
        let in_turn = match role {
            Role::Holder => 1,
            Role::Home => 2,
            Role::Owner => 3,
        };
        self.hop_patience * in_turn
    }

    /// Waits for the first that a hop has to say, as long as it may take; one that gets nowhere is
    /// then left alone.
    ///
    /// # Errors
    /// `Stuck` when it says that, or says nothing but that it lives; else those of `asking`.
    /// # Cancel safety
    /// That of `asking`.
    pub(in crate::pull) async fn in_time<T>(
        &self,
        hop: Hop,
        asking: impl Future<Output = Result<T, PeerError>>,
    ) -> Result<T, PeerError> {
        let peer = hop.peer;
        let asked = timeout(self.hop_patience(hop.role), asking).await;
        let answer = asked.unwrap_or(Err(PeerError::Stuck { peer }));
        if matches!(answer, Err(PeerError::Stuck { .. })) {
            self.trust.leave_alone(peer);
        }
        answer
    }

    /// Waits for the next that a hop says of a blob, as long as it may take; one that gets nowhere is
    /// then left alone.
    ///
    /// # Errors
    /// As [`Neighbours::news_of_copy`].
    /// # Cancel safety
    /// No news are lost when dropped.
    pub(in crate::pull) async fn news_in_time(
        &self,
        hop: Hop,
        news: &mut BlobStream,
    ) -> Result<Option<BlobNews>, PeerError> {
        let answer = self.news_of_copy(hop, news).await;
        if matches!(answer, Err(PeerError::Stuck { .. })) {
            self.trust.leave_alone(hop.peer);
        }
        answer
    }

    /// As [`Neighbours::news_in_time`], of a copy: a hop may get nowhere with that because others go
    /// first, here or there, and is asked again for what somebody waits for. While it says that it
    /// waits for its turn, it is not stuck.
    ///
    /// # Errors
    /// `Stuck` when it says nothing else but that it lives; else those of the stream.
    /// # Cancel safety
    /// No news are lost when dropped.
    pub(in crate::pull) async fn news_of_copy(
        &self,
        hop: Hop,
        news: &mut BlobStream,
    ) -> Result<Option<BlobNews>, PeerError> {
        let Hop { peer, role } = hop;
        let mut delays = news.delays();
        let next = news.next();
        tokio::pin!(next);
        let mut since = Instant::now();
        loop {
            tokio::select! {
                news = &mut next => break news,
                Ok(()) = delays.changed() => {
                    if *delays.borrow_and_update() == Cause::Turn {
                        since = Instant::now();
                    }
                }
                () = sleep_until(since + self.hop_patience(role)) => {
                    break Err(PeerError::Stuck { peer });
                }
            }
        }
    }
}
