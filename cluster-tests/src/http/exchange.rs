//! A response whose body is read on demand, and the framing of bodies in HTTP/1.1.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::{Answer, End, Head};

/// No answer in a test takes longer; a read that does is an error instead of a hang.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// A response head larger than this is a mistake of the server under test.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// How the rest of a body is framed.
#[derive(Clone, Copy, Debug)]
enum Framing {
    /// That many bytes are to come.
    Length(u64),
    /// Chunked; so many bytes of the current chunk are to come.
    Chunked(u64),
    /// Until the connection closes.
    Close,
    /// Nothing is to come.
    Done(End),
}

/// A response whose head has arrived and whose body is read on demand.
///
/// Dropping it closes the connection, as a client does that has seen enough.
#[derive(Debug)]
pub struct Exchange {
    head: Head,
    stream: TcpStream,
    buffer: BytesMut,
    framing: Framing,
}

impl Exchange {
    pub(super) async fn start(mut stream: TcpStream, is_head: bool) -> Result<Self> {
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if buffer.len() > MAX_HEAD_BYTES {
                bail!("the response head is longer than {MAX_HEAD_BYTES} bytes");
            }
            if read(&mut stream, &mut buffer).await? == 0 {
                bail!(
                    "closed before the head was complete: {:?}",
                    String::from_utf8_lossy(&buffer)
                );
            }
        };
        let head = Head::parse(&buffer.split_to(end))?;
        let framing = framing(&head, is_head)?;
        Ok(Self {
            head,
            stream,
            buffer,
            framing,
        })
    }

    /// Returns status and headers.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Returns the next bytes of the body, `None` at its end: then see [`Exchange::end`].
    ///
    /// # Errors
    /// When nothing arrives for a minute, or the framing is wrong.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Framing::Chunked(0) = self.framing {
            self.next_chunk_head().await?;
        }
        let wanted = match self.framing {
            Framing::Length(left) | Framing::Chunked(left) => left,
            Framing::Close => u64::MAX,
            Framing::Done(_) => return Ok(None),
        };
        if self.buffer.is_empty() && !self.fill().await? {
            return Ok(None);
        }
        let size = self
            .buffer
            .len()
            .min(usize::try_from(wanted).unwrap_or(usize::MAX));
        let bytes = self.buffer.split_to(size).freeze();
        self.consume(bytes.len()).await?;
        Ok(Some(bytes))
    }

    /// Returns how the body ended, `None` while it has not been read to its end.
    pub fn end(&self) -> Option<End> {
        match self.framing {
            Framing::Done(end) => Some(end),
            _ => None,
        }
    }

    /// Reads until at least `count` bytes have come or the body has ended.
    ///
    /// # Errors
    /// As [`Exchange::next`].
    pub async fn read_at_least(&mut self, count: usize) -> Result<Bytes> {
        let mut body = BytesMut::new();
        while body.len() < count {
            let Some(bytes) = self.next().await? else {
                break;
            };
            body.extend_from_slice(&bytes);
        }
        Ok(body.freeze())
    }

    /// Reads the rest of the body.
    ///
    /// # Errors
    /// As [`Exchange::next`].
    pub async fn finish(mut self) -> Result<Answer> {
        let body = self.read_at_least(usize::MAX).await?;
        let end = self.end().unwrap_or(End::Complete);
        Ok(Answer {
            head: self.head,
            body,
            end,
        })
    }

    /// Reads the rest of the body and throws it away; returns its size and how it ended.
    ///
    /// # Errors
    /// As [`Exchange::next`].
    pub async fn discard(mut self) -> Result<(u64, End)> {
        let mut size = 0;
        while let Some(bytes) = self.next().await? {
            size += bytes.len() as u64;
        }
        Ok((size, self.end().unwrap_or(End::Complete)))
    }

    /// Books `size` bytes of the body as read.
    async fn consume(&mut self, size: usize) -> Result<()> {
        self.framing = match self.framing {
            Framing::Length(left) if left == size as u64 => Framing::Done(End::Complete),
            Framing::Length(left) => Framing::Length(left - size as u64),
            Framing::Chunked(left) if left == size as u64 => {
                self.line().await?;
                self.chunk_framing(Framing::Chunked(0))
            }
            Framing::Chunked(left) => Framing::Chunked(left - size as u64),
            other => other,
        };
        Ok(())
    }

    /// Reads the size of the next chunk; the last one ends the body.
    async fn next_chunk_head(&mut self) -> Result<()> {
        let Some(line) = self.line().await? else {
            return Ok(());
        };
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(digits, 16)
            .with_context(|| format!("not a chunk size: {line:?}"))?;
        self.framing = if size == 0 {
            while self
                .line()
                .await?
                .is_some_and(|trailer| !trailer.is_empty())
            {}
            self.chunk_framing(Framing::Done(End::Complete))
        } else {
            Framing::Chunked(size)
        };
        Ok(())
    }

    /// Returns `next` unless the body has ended meanwhile.
    fn chunk_framing(&self, next: Framing) -> Framing {
        match self.framing {
            ended @ Framing::Done(_) => ended,
            _ => next,
        }
    }

    /// Reads one line of the chunked framing, `None` when the connection ended.
    async fn line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line = self.buffer.split_to(end + 2);
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Reads more bytes; at the end of the connection notes how the body ended and returns false.
    async fn fill(&mut self) -> Result<bool> {
        let end = match read(&mut self.stream, &mut self.buffer).await {
            Ok(0) if matches!(self.framing, Framing::Close) => End::Complete,
            Ok(0) => End::Short,
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => End::Reset,
            Err(error) => return Err(error).context("reading the body"),
        };
        self.framing = Framing::Done(end);
        Ok(false)
    }
}

/// Reads once from `stream`, with a limit.
async fn read(stream: &mut TcpStream, buffer: &mut BytesMut) -> std::io::Result<usize> {
    buffer.reserve(256 * 1024);
    tokio::time::timeout(READ_LIMIT, stream.read_buf(buffer))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

fn framing(head: &Head, is_head: bool) -> Result<Framing> {
    if is_head || head.status == 204 || head.status == 304 {
        return Ok(Framing::Done(End::Complete));
    }
    if head
        .all("transfer-encoding")
        .any(|coding| coding.eq_ignore_ascii_case("chunked"))
    {
        return Ok(Framing::Chunked(0));
    }
    let Some(length) = head.header("content-length") else {
        return Ok(Framing::Close);
    };
    match length
        .parse()
        .with_context(|| format!("not a length: {length:?}"))?
    {
        0 => Ok(Framing::Done(End::Complete)),
        length => Ok(Framing::Length(length)),
    }
}
