//! The bodies of answers, counted as they go out.
//!
//! A body that fails ends its connection: the error goes to the HTTP library, which then closes
//! without completing the answer (CLIENT-CONTRACT B7). This file also writes the access log,
//! because only here it is known how an answer ended.
//!
//! What lies in a file may go out without being read: the body then holds a place for it in what
//! the HTTP library sends, and `outlet` puts the bytes there.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::stream::{BoxStream, Stream};
use http::{Method, StatusCode};
use http_body::{Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use crate::pull::{BlobBody, Piece, PullError};

use super::activity::Activity;
use super::outlet::{Outgoing, Outlet};

/// Where the bytes of an answer come from.
pub(super) enum Content {
    Empty,
    /// Bytes in memory.
    Full(Bytes),
    /// A blob or one range of it.
    Blob(BlobBody),
    /// Several ranges of a blob with their headings.
    Parts(BoxStream<'static, Result<Piece, PullError>>),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Full(_) => "Full",
            Self::Blob(_) => "Blob",
            Self::Parts(_) => "Parts",
        })
    }
}

/// The body of an answer.
#[derive(Debug)]
pub struct Body {
    content: Content,
    /// Where files go out; there is none unless the content lends them.
    outlet: Option<Outlet>,
    counter: Counter,
    record: Record,
}

/// What is known of an exchange when its body ends; dropping it tells.
#[derive(Debug)]
struct Record {
    activity: Option<Arc<Activity>>,
    access: Option<Box<Access>>,
    sent_bytes: u64,
    failure: Option<PullError>,
}

/// A line of the access log.
#[derive(Debug)]
pub(super) struct Access {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) user_agent: String,
    /// The user whose password was right; no other name is written down.
    pub(super) user: Option<Arc<str>>,
    pub(super) status: StatusCode,
    pub(super) source: &'static str,
    pub(super) began: Instant,
    /// Time to the head of the answer.
    pub(super) first_byte: Duration,
    /// Why this node could not answer, for a line that is not of the ordinary.
    pub(super) trouble: Option<String>,
}

impl Body {
    /// Makes a body whose bytes are added to `counter` and whose end is told to `activity` and,
    /// if there is one, to the access log.
    pub(super) fn new(
        content: Content,
        counter: Counter,
        activity: Option<Arc<Activity>>,
        access: Option<Box<Access>>,
    ) -> Self {
        Self {
            content,
            outlet: None,
            counter,
            record: Record {
                activity,
                access,
                sent_bytes: 0,
                failure: None,
            },
        }
    }

    /// Lets files go out through `outlet`, which the connection of this answer writes to.
    pub(super) fn lend_files(&mut self, outlet: &Outlet) {
        if let Content::Blob(body) = &mut self.content {
            body.lend_files();
            self.outlet = Some(outlet.clone());
        }
    }

    fn outgoing(&self, piece: Piece) -> Outgoing {
        match piece {
            Piece::Memory(bytes) => bytes.into(),
            Piece::File(range) => {
                let outlet = self.outlet.as_ref();
                outlet.expect("a body lends only when told to").place(range)
            }
        }
    }

    fn poll_content(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Outgoing, PullError>>> {
        let piece = match &mut self.content {
            Content::Empty => None,
            Content::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.content = Content::Empty;
                Some(Ok(Piece::Memory(bytes)))
            }
            Content::Blob(body) => std::task::ready!(Pin::new(body).poll_next(context)),
            Content::Parts(parts) => std::task::ready!(parts.as_mut().poll_next(context)),
        };
        Poll::Ready(piece.map(|piece| piece.map(|piece| self.outgoing(piece))))
    }
}

impl http_body::Body for Body {
    type Data = Outgoing;
    type Error = PullError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Outgoing>, PullError>>> {
        let next = std::task::ready!(self.poll_content(context));
        match &next {
            Some(Ok(bytes)) => {
                let sent_bytes = bytes.remaining() as u64;
                self.counter.inc_by(sent_bytes);
                self.record.sent_bytes += sent_bytes;
            }
            Some(Err(error)) => self.record.failure = Some(error.clone()),
            None => {}
        }
        Poll::Ready(next.map(|next| next.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Blob(_) | Content::Parts(_) => SizeHint::default(),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(activity) = &self.activity {
            activity.note_answered();
        }
        if let Some(failure) = &self.failure {
            // The client has a short body and comes back by Range; someone should know why.
            tracing::info!(
                target: "millrace::access",
                sent_bytes = self.sent_bytes,
                error = failure as &dyn std::error::Error,
                "answer cut short"
            );
        }
        if let Some(access) = &self.access {
            access.log(self.sent_bytes);
        }
    }
}

/// Writes one event of the access log at a level that must be a constant.
macro_rules! access_event {
    ($level:ident, $access:expr, $sent_bytes:expr $(, $field:ident = $value:expr)?) => {
        tracing::$level!(
            target: "millrace::access",
            method = %$access.method,
            path = $access.path,
            status = $access.status.as_u16(),
            source = $access.source,
            sent_bytes = $sent_bytes,
            first_byte_ms = $access.first_byte.as_secs_f64() * 1e3,
            duration_ms = $access.began.elapsed().as_secs_f64() * 1e3,
            user_agent = $access.user_agent,
            user = $access.user.as_deref(),
            $($field = $value,)?
            "request"
        )
    };
}

impl Access {
    fn log(&self, sent_bytes: u64) {
        match &self.trouble {
            Some(trouble) => access_event!(info, self, sent_bytes, trouble = trouble),
            None => access_event!(debug, self, sent_bytes),
        }
    }
}
