//! A registry that does exactly what a test tells it, over raw TCP.
//!
//! It writes its own HTTP so that it can lie about lengths, break off and fall silent. It keeps
//! what it was asked; it knows nothing of images.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millrace::task::Tasks;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::Span;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    headers: HashMap<String, String>,
}

impl Seen {
    /// Returns a header, or the empty text.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// How a reply ends.
#[derive(Clone, Copy, Debug)]
enum End {
    KeepAlive,
    Close,
    Stall,
}

/// What the fake answers.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    pub(crate) length: Option<usize>,
    end: End,
    silent: bool,
    /// The answer is held back until this is true.
    gate: Option<watch::Receiver<bool>>,
    /// The body is held back from this byte on until this is true.
    pause: Option<(usize, watch::Receiver<bool>)>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let length = Some(body.len());
        Self {
            status,
            headers: Vec::new(),
            body,
            length,
            end: End::KeepAlive,
            silent: false,
            gate: None,
            pause: None,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// States a length that is not the body's and closes after the body.
    pub(crate) fn stating(mut self, length: Option<usize>) -> Self {
        self.length = length;
        self.end = End::Close;
        self
    }

    /// States a length and falls silent after the body.
    pub(crate) fn stalling(mut self, length: usize) -> Self {
        self.length = Some(length);
        self.end = End::Stall;
        self
    }

    /// Answers only when `gate` is open.
    pub(crate) fn after(mut self, gate: watch::Receiver<bool>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Sends so many bytes of the body, and the rest when `gate` is open.
    pub(crate) fn pausing(mut self, bytes: usize, gate: watch::Receiver<bool>) -> Self {
        self.pause = Some((bytes, gate));
        self
    }

    /// Never answers.
    pub(crate) fn silence() -> Self {
        Self {
            silent: true,
            ..Self::new(200, "")
        }
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} Fake\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(length) = self.length {
            head.push_str(&format!("content-length: {length}\r\n"));
        }
        head + "\r\n"
    }
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A running fake; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Fake {
    address: SocketAddr,
    log: Log,
}

/// What a fake was asked and what it sent; clones share it.
#[derive(Clone, Default)]
struct Log {
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Bytes of bodies.
    sent: Arc<AtomicU64>,
}

impl Fake {
    /// Starts a fake on a free loopback port.
    pub(crate) async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(handler, None).await
    }

    /// Starts a fake that speaks TLS.
    pub(crate) async fn start_tls(
        acceptor: TlsAcceptor,
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(handler, Some(acceptor)).await
    }

    async fn listen(
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
        acceptor: Option<TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let fake = Self {
            address,
            log: Log::default(),
        };
        let (log, handler): (_, Arc<Handler>) = (fake.log.clone(), Arc::new(handler));
        let tasks = Tasks::default();
        tasks.clone().spawn(Span::none(), async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, handler, acceptor) = (log.clone(), handler.clone(), acceptor.clone());
                tasks.spawn(Span::none(), async move {
                    match acceptor {
                        None => serve(stream, log, handler).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, log, handler).await;
                            }
                        }
                    }
                });
            }
        });
        fake
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the requests so far whose target contains `part`.
    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        let seen = self.log.seen.lock();
        seen.iter()
            .filter(|seen| seen.target.contains(part))
            .cloned()
            .collect()
    }

    /// Returns how many bytes of bodies it has sent, whoever took them in.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.log.sent.load(Ordering::Relaxed)
    }
}

async fn serve<S>(mut stream: S, log: Log, handler: Arc<Handler>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(request) = read_request(&mut stream).await {
        log.seen.lock().push(request.clone());
        let reply = handler(&request);
        if reply.silent {
            std::future::pending::<()>().await;
        }
        if let Some(mut gate) = reply.gate.clone() {
            // Who could open it is gone: the test is over.
            let _ = gate.wait_for(|open| *open).await;
        }
        let mut bytes = reply.head().into_bytes();
        let mut body = &reply.body[..];
        if request.method == "HEAD" {
            body = &[];
        }
        if let Some((first, mut gate)) = reply.pause.clone() {
            let (now, later) = body.split_at(first.min(body.len()));
            bytes.extend_from_slice(now);
            if stream.write_all(&bytes).await.is_err() {
                return;
            }
            log.sent.fetch_add(now.len() as u64, Ordering::Relaxed);
            let _ = gate.wait_for(|open| *open).await;
            (bytes, body) = (Vec::new(), later);
        }
        bytes.extend_from_slice(body);
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
        log.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
        match reply.end {
            End::KeepAlive => {}
            End::Close => return,
            End::Stall => std::future::pending().await,
        }
    }
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(head).ok()?;
    let mut lines = text.lines();
    let mut request = lines.next()?.split(' ');
    let (method, target) = (request.next()?.to_owned(), request.next()?.to_owned());
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    };
    Some(Seen {
        method,
        target,
        headers: lines.filter_map(header).collect(),
    })
}
