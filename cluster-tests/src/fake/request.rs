//! The head of a request, read from bytes.

use super::record::Record;

/// Longest request head that is read; the node's are far shorter.
pub(super) const MAX_HEAD_BYTES: usize = 64 * 1024;

/// A request without its body; no client of a registry that is only read sends one.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
}

impl Request {
    /// Reads a head that ends with an empty line; `None` when it is no HTTP/1.1.
    pub(super) fn parse(head: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(head).ok()?;
        let mut lines = text.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let headers = lines.take_while(|line| !line.is_empty());
        let headers = headers.map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        });
        Some(Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: headers.collect::<Option<_>>()?,
        })
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.iter();
        let (_, value) = lines.find(|(line, _)| line.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    pub(super) fn path(&self) -> &str {
        let (path, _) = self.target.split_once('?').unwrap_or((&self.target, ""));
        path
    }

    /// Returns a parameter of the query as it stands, without decoding.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(key, _)| *key == name)?;
        Some(value)
    }

    pub(super) fn record(&self) -> Record {
        Record {
            method: self.method.clone(),
            target: self.target.clone(),
            headers: self.headers.clone(),
            status: None,
            sent_bytes: 0,
            end: None,
        }
    }
}
