//! One connection: requests in, answers out, at a rate and only as far as the script says.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, sleep_until};

use super::State;
use super::answer::{Reply, reply};
use super::record::{Ended, Entry};
use super::request::{MAX_HEAD_BYTES, Request};
use super::script::{Break, Then};
use super::wire::Wire;

/// Bytes that are written at once when nothing limits the rate.
const PIECE_BYTES: usize = 64 * 1024;

/// Pieces a second when something does: smooth, and few enough to cost nothing.
const PIECES_PER_SECOND: u64 = 50;

/// Serves a connection until either side ends it.
pub(super) async fn serve(wire: Box<dyn Wire>, state: &Arc<State>) {
    let mut connection = Connection {
        wire,
        buffer: BytesMut::new(),
        resets: false,
    };
    while let Some(request) = connection.next_request().await {
        let entry = state.log.begin(request.record());
        let then = state.script.lock().treat(&request);
        match connection.answer(state, &request, &then, &entry).await {
            Ok(next) => {
                entry.handle_end(Ended::Sent);
                if !next {
                    break;
                }
            }
            Err(end) => {
                entry.handle_end(end);
                break;
            }
        }
    }
    if !connection.resets {
        // Fails only when the other side is gone.
        let _ = connection.wire.shutdown().await;
    }
}

struct Connection {
    wire: Box<dyn Wire>,
    buffer: BytesMut,
    /// Whether it ends by reset instead of FIN.
    resets: bool,
}

impl Connection {
    /// Reads the next head; `None` when there is none or it cannot be understood.
    async fn next_request(&mut self) -> Option<Request> {
        loop {
            let end = self
                .buffer
                .windows(4)
                .position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                return Request::parse(&self.buffer.split_to(end + 4));
            }
            let read = self.wire.read_buf(&mut self.buffer).await.ok()?;
            if read == 0 || self.buffer.len() > MAX_HEAD_BYTES {
                return None;
            }
        }
    }

    /// Answers one request; returns whether another may follow on this connection.
    async fn answer(
        &mut self,
        state: &State,
        request: &Request,
        then: &Then,
        entry: &Entry,
    ) -> Result<bool, Ended> {
        if let Some(gate) = &then.hold {
            self.unless_left(gate.wait()).await?;
        }
        if let Some(delay) = then.delay {
            self.unless_left(sleep(delay)).await?;
        }
        let reply = reply(state, request, then);
        entry.handle_status(reply.status);
        let framed = then
            .headers
            .iter()
            .all(|(name, _)| !name.eq_ignore_ascii_case("content-length"));
        self.write(head(&reply, framed), then.head_rate, None)
            .await?;
        if request.method == "HEAD" {
            return Ok(framed);
        }
        self.body(reply.body, then, entry).await?;
        Ok(framed)
    }

    async fn body(&mut self, mut body: Bytes, then: &Then, entry: &Entry) -> Result<(), Ended> {
        if let Some((after, how)) = &then.breaks {
            let after = usize::try_from(*after).unwrap_or(usize::MAX);
            let before = body.split_to(after.min(body.len()));
            self.write(before, then.rate, Some(entry)).await?;
            match how {
                Break::Fin => return Err(Ended::Broken),
                Break::Reset => {
                    self.wire.end_by_reset();
                    self.resets = true;
                    return Err(Ended::Broken);
                }
                Break::Stall(gate) => self.unless_left(gate.wait()).await?,
            }
        }
        self.write(body, then.rate, Some(entry)).await
    }

    /// Writes `bytes` at `rate` bytes a second.
    async fn write(
        &mut self,
        mut bytes: Bytes,
        rate: Option<u64>,
        entry: Option<&Entry>,
    ) -> Result<(), Ended> {
        let begin = Instant::now();
        let mut sent = 0_u64;
        let piece = rate.map_or(PIECE_BYTES, |rate| {
            usize::try_from(rate / PIECES_PER_SECOND)
                .unwrap_or(PIECE_BYTES)
                .clamp(1, PIECE_BYTES)
        });
        while bytes.has_remaining() {
            if let Some(rate) = rate {
                let due = begin + Duration::from_micros(sent * 1_000_000 / rate);
                self.unless_left(sleep_until(due)).await?;
            }
            let piece = bytes.split_to(piece.min(bytes.len()));
            let written = self.wire.write_all(&piece).await;
            written.map_err(|_| Ended::Left)?;
            sent += piece.len() as u64;
            if let Some(entry) = entry {
                entry.handle_sent(piece.len());
            }
        }
        // Plain TCP has nothing to flush; TLS may hold a record.
        self.wire.flush().await.map_err(|_| Ended::Left)
    }

    /// Waits for `event`, or for the other side to leave.
    async fn unless_left(&mut self, event: impl Future<Output = ()>) -> Result<(), Ended> {
        tokio::pin!(event);
        loop {
            tokio::select! {
                () = &mut event => return Ok(()),
                read = self.wire.read_buf(&mut self.buffer) => {
                    if !read.is_ok_and(|read| read > 0) {
                        return Err(Ended::Left);
                    }
                }
            }
        }
    }
}

/// Renders status line and headers; `Content-Length` unless the script has its own idea of it.
fn head(reply: &Reply, framed: bool) -> Bytes {
    let mut text = format!("HTTP/1.1 {} Whatever\r\n", reply.status);
    if framed {
        text.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    for (name, value) in &reply.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into()
}
