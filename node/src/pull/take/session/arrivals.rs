//! Chunks that have come, were checked or were wrong, and whose fault that was.
//!
//! Whom to read from next is not decided here; news of the hop are `news`'.

use std::time::Duration;

use futures_util::FutureExt;
use millrace_protocol::oci::Digest;
use tokio::time::Instant;

use crate::peer::{ChunkEvent, ChunkStream, PeerError};
use crate::pull::claimed::Claimed;
use crate::pull::fill::Halt;
use crate::pull::relay::relay;
use crate::pull::sink::{Checked, Taken};
use crate::pull::take::lanes::LaneEvent;
use crate::pull::take::writes::{Chunk, Written};
use crate::pull::take::{Ended, Take, range};
use crate::pull::transfer::State;

use super::{Session, next_event};

impl Session<'_> {
    /// Takes over what came of the source that is read. Returns how the session ends if it does.
    pub(super) fn handle_event(
        &mut self,
        stream: Option<ChunkStream>,
        event: Result<ChunkEvent, PeerError>,
    ) -> Option<Ended> {
        let source = self.taking.reading()?;
        let room = self.room.take()?;
        let now = self.began.elapsed();
        self.take.neighbours.metrics.count_retry(&event);
        match event {
            // Sent before the hop had said that it tells no more values.
            Ok(ChunkEvent::Chunk { index, .. }) if index >= self.end => self.taking.handle_done(),
            Ok(ChunkEvent::Chunk { index, bytes }) => {
                self.heard = Instant::now();
                self.got_on = self.heard;
                let took = stream.as_ref().map_or(Duration::ZERO, ChunkStream::took);
                self.taking.handle_arrived(now, index, took);
                if self.taking.reading().is_none() {
                    tracing::debug!(peer.id = %source.short(), "a source is slow: another is tried");
                }
                self.writes.push(Chunk {
                    source,
                    index,
                    bytes,
                    _room: room,
                });
                let stream = stream.filter(|_| self.taking.reading().is_some());
                self.reading = stream.map(|stream| next_event(stream).boxed());
            }
            Ok(ChunkEvent::Done) => self.taking.handle_done(),
            Ok(ChunkEvent::NotYet) => self.taking.handle_not_yet(now),
            Ok(ChunkEvent::Busy { ask }) => {
                let others = self.usable(ask);
                self.taking.handle_hint(&others);
                self.taking.handle_not_yet(now);
            }
            // A far chunk was not asked for.
            Ok(ChunkEvent::Absent | ChunkEvent::Far { .. }) => self.taking.handle_wrong(source),
            // Other takes of this node have all the streams.
            Err(PeerError::Crowded { .. }) => self.taking.handle_not_yet(now),
            Err(error) => {
                tracing::debug!(peer.id = %source.short(), %error, "a source failed");
                if error.is_broken_answer() {
                    return self.handle_broken_off(source);
                }
                self.taking.handle_failed(now);
            }
        }
        None
    }

    /// Takes over what came of a batch. Returns how the session ends if it does.
    ///
    /// # Errors
    /// It could not be stored, or those of [`Session::confirm`].
    pub(super) async fn handle_written(&mut self, written: Written) -> Result<Option<Ended>, Halt> {
        for (chunk, checked) in written.map_err(Halt::Transfer)? {
            match checked {
                Checked::Right(taken) => self.handle_right(&chunk, taken).await?,
                Checked::Wrong(whole) => self.handle_wrong(&chunk, whole),
            }
        }
        self.listen_anew();
        Ok(self.hop_is_wrong().then_some(Ended::PassedOver))
    }

    /// Takes over a chunk that fits the chain.
    async fn handle_right(&mut self, chunk: &Chunk, taken: Taken) -> Result<(), Halt> {
        let index = chunk.index;
        let range = range(index, self.size);
        let (length, end) = (range.end - range.start, range.end);
        let Take { transfer, sink, .. } = self.take;
        let stretch = self.stretch.as_ref().map(Claimed::id);
        let advance = move |state: &mut State| {
            if let Some(stretch) = stretch {
                state.advance(stretch, end);
            }
        };
        match taken {
            Taken::Relayed(passing) => {
                let relayed = relay(transfer, sink, range.start, passing, advance).await;
                if !relayed.map_err(Halt::Transfer)? {
                    self.begin_in_order();
                    return Ok(());
                }
            }
            Taken::Written => transfer.change(|state| {
                state.written.insert(range.clone());
                advance(state);
            }),
        }
        self.confirm()?;
        let metrics = &self.take.neighbours.metrics;
        metrics.received_bytes.inc_by(length);
        self.taking.handle_chunk(index);
        self.end_read_at_stretch();
        // Somebody else's chunk fits the chain, so it was the sender's fault.
        for (_, sender) in self.wrong.extract_if(.., |(wrong, _)| *wrong == index) {
            self.take.neighbours.trust.distrust(sender);
        }
        Ok(())
    }

    /// Leaves who sent a chunk that does not fit the chain. Whether it is that which is wrong shows
    /// when somebody else's fits, or none does.
    fn handle_wrong(&mut self, chunk: &Chunk, whole: Option<Digest>) {
        let Chunk { source, index, .. } = *chunk;
        tracing::warn!(peer.id = %source.short(), index, "a peer sent a wrong chunk");
        self.take.neighbours.metrics.wrong_chunks.inc();
        self.wrong.push((index, source));
        self.wrong_whole = whole.or(self.wrong_whole);
        self.reading = None;
        self.writes.clear_waiting();
        self.taking.handle_wrong(source);
        if source == self.hop.peer {
            // Chain and chunk are both its own.
            self.take.neighbours.trust.distrust(source);
        }
    }

    /// Turns to the first chunk that is not here: what is relayed comes in order only.
    fn begin_in_order(&mut self) {
        self.lanes.bar();
        self.stretch = None;
        self.reading = None;
        self.writes.clear_waiting();
        self.taking.handle_done();
    }

    /// Whether the hop has sent a chunk that does not fit the chain that it states. Those whom it
    /// has named take from it as well and may wait for this node, so they are not turned to. Of a
    /// last chunk only the digest can tell, and whoever else has it may be right.
    fn hop_is_wrong(&self) -> bool {
        let hop = self.hop.peer;
        self.wrong_whole.is_none() && self.wrong.iter().any(|(_, sender)| *sender == hop)
    }

    /// Takes over what a far lane has done.
    ///
    /// # Errors
    /// As [`Session::confirm`].
    pub(super) fn handle_lane(&mut self, event: LaneEvent) -> Result<(), Halt> {
        let neighbours = self.take.neighbours;
        match event {
            LaneEvent::Here(index) => {
                self.got_on = Instant::now();
                self.taking.handle_chunk_of_lane(index);
                return self.confirm();
            }
            LaneEvent::Ended => {}
            LaneEvent::Wrong(index) => {
                // Chunk and check are both its own.
                tracing::warn!(peer.id = %self.hop.peer.short(), index, "a far chunk is wrong");
                neighbours.metrics.wrong_chunks.inc();
                neighbours.trust.distrust(self.hop.peer);
                self.lanes.bar();
            }
        }
        Ok(())
    }
}
