//! One connection of a client, from its first byte to its end.
//!
//! However a connection ends, the client sees FIN and never a reset, which some clients take for
//! the end of the whole pull (CLIENT-CONTRACT B7). A reset is what the kernel sends when a socket
//! is closed with bytes unread, so what a client still sends is read for a moment and thrown away.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Registry;
use super::activity::Activity;
use super::body::Body;
use super::door::{Accepted, Terms};
use super::greet::{Guest, greet};
use super::outlet::Outlet;
use super::stream::Stream;

/// Bytes that the HTTP library reads ahead, and holds back of an answer before it writes them
/// out. Bounds a request's head and what a client that goes away has cost for nothing; pieces of
/// blobs are larger and pass through one at a time, without being copied.
const BUFFER_BYTES: usize = 64 * 1024;

/// Longest time in which an ended connection is rid of what is still to be sent and waits for the
/// client to end it too.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// Most bytes that are read from a client after its connection has ended.
const LINGER_BYTES: u64 = 1024 * 1024;

/// A connection at which requests may begin.
#[derive(Debug)]
pub(super) struct Connection {
    registry: Registry,
    stream: Stream,
    guest: Guest,
    open: Open,
}

/// Counts a connection for as long as it exists, however it ends.
#[derive(Debug)]
struct Open {
    gauge: Gauge,
    /// Its place among the connections that may be open.
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(gauge: Gauge, permit: OwnedSemaphorePermit) -> Self {
        gauge.inc();
        Self {
            gauge,
            _permit: permit,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Connection {
    /// Takes a connection from its first byte to its end.
    pub(super) async fn run(
        registry: Registry,
        terms: Arc<Terms>,
        (accepted, permit): (Accepted, OwnedSemaphorePermit),
        stopping: impl Future<Output = ()>,
    ) {
        let open = Open::new(registry.inner.metrics.open_connections.clone(), permit);
        let mut stopping = std::pin::pin!(stopping);
        let greeted = tokio::select! {
            biased;
            greeted = greet(accepted, &terms) => greeted,
            () = &mut stopping => None,
        };
        if let Some((stream, peer)) = greeted {
            let connection = Self {
                registry,
                stream,
                guest: Guest { terms, peer },
                open,
            };
            connection.serve(stopping).await;
        }
    }

    /// Serves requests until the client leaves, falls silent, or `stopping` has resolved and the
    /// running answer is out.
    async fn serve(self, stopping: impl Future<Output = ()>) {
        let Self {
            registry,
            stream,
            guest,
            open: _open,
        } = self;
        let activity = Arc::new(Activity::new(Instant::now()));
        let outlet = matches!(stream, Stream::Tcp(_)).then(Outlet::default);
        let stream = Watched {
            stream,
            outlet: outlet.clone(),
            activity: activity.clone(),
        };
        let service = service_fn(|request| {
            activity.note_request();
            let answer = registry.answer_on(request, &guest, Some(activity.clone()));
            async {
                let mut answer = answer.await;
                if let Some(outlet) = &outlet {
                    answer.body_mut().lend_files(outlet);
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let mut connection = http1::Builder::new()
            // `Activity` knows better.
            .header_read_timeout(None)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let drain_timeout = registry.inner.config.drain_timeout;
        drive(&mut connection, &activity, stopping, drain_timeout).await;
        let Watched { stream, .. } = connection.into_parts().io.into_inner();
        linger(stream).await;
    }
}

/// The HTTP library's half of a connection.
trait Serving: Future<Output = hyper::Result<()>> + Unpin {
    /// Lets the running answer be the last.
    fn drain(&mut self);
}

impl<S> Serving for http1::Connection<TokioIo<Watched>, S>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = Body>,
    S::Error: std::error::Error + Send + Sync + 'static,
{
    fn drain(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

/// Runs a connection to its end, whoever ends it.
async fn drive(
    connection: &mut impl Serving,
    activity: &Activity,
    stopping: impl Future<Output = ()>,
    drain_timeout: Duration,
) {
    let mut stopping = std::pin::pin!(stopping);
    let mut look = std::pin::pin!(tokio::time::sleep_until(Instant::now()));
    let mut drained_by: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            result = &mut *connection => {
                if let Err(error) = result {
                    // A client that goes away is nothing unusual (CLIENT-CONTRACT B2).
                    tracing::debug!(error = &error as &dyn std::error::Error, "connection ended");
                }
                return;
            }
            () = &mut stopping, if drained_by.is_none() => {
                connection.drain();
                let deadline = Instant::now() + drain_timeout;
                drained_by = Some(deadline);
                let next = deadline.min(look.deadline());
                look.as_mut().reset(next);
            }
            () = &mut look => {
                let now = Instant::now();
                if drained_by.is_some_and(|deadline| now >= deadline) {
                    tracing::info!("answer cut by drain");
                    return;
                }
                match activity.check(now) {
                    Ok(next) => {
                        let next = drained_by.map_or(next, |deadline| deadline.min(next));
                        look.as_mut().reset(next);
                    }
                    Err(expired) => {
                        tracing::debug!(?expired, "connection expired");
                        return;
                    }
                }
            }
        }
    }
}

/// Ends a connection so that the client gets to see all that was sent.
pub(super) async fn linger(mut stream: Stream) {
    let ending = async {
        // Over TLS it first sends what is held back, for which a client that reads nothing has no
        // room.
        stream.shutdown().await?;
        let mut unread = stream.take(LINGER_BYTES);
        tokio::io::copy(&mut unread, &mut tokio::io::sink()).await
    };
    // Whatever comes of it, the connection is over.
    let _ = tokio::time::timeout(LINGER, ending).await;
}

/// A stream that sends files where answers have a place for them, and tells its activity what
/// moves.
#[derive(Debug)]
struct Watched {
    stream: Stream,
    /// Only for a stream in the clear: what is encrypted must be read first.
    outlet: Option<Outlet>,
    activity: Arc<Activity>,
}

impl Watched {
    fn note<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &written {
            Poll::Ready(_) => self.activity.note_written(),
            Poll::Pending => self.activity.note_blocked(),
        }
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > filled {
            self.activity.note_read();
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, outlet, .. } = &mut *self;
        let written = match (stream, outlet) {
            (Stream::Tcp(stream), Some(outlet)) => outlet.poll_write(stream, context, bytes),
            (stream, _) => Pin::new(stream).poll_write_vectored(context, bytes),
        };
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
