//! What a fake was asked, and what became of its answers.

use std::sync::Arc;

use parking_lot::Mutex;

/// One request and its answer.
#[derive(Clone, Debug)]
pub struct Record {
    /// The method.
    pub method: String,
    /// Path and query, as they came.
    pub target: String,
    /// Name and value of each header line, in order.
    pub headers: Vec<(String, String)>,
    /// Status of the answer, once it was sent.
    pub status: Option<u16>,
    /// Bytes of the body that were handed to the system so far.
    pub sent_bytes: u64,
    /// How the answer ended, `None` while it has not.
    pub end: Option<Ended>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All of it was sent.
    Sent,
    /// The script, or the end of the fake, broke it off.
    Broken,
    /// The other side went away first.
    Left,
}

impl Record {
    /// Returns the value of the first header line called `name`, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.iter();
        let (_, value) = lines.find(|(line, _)| line.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    /// Returns the first byte that a `Range: bytes=a-…` asks for.
    pub fn range_start(&self) -> Option<u64> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.split('-').next()?.parse().ok()
    }
}

/// All records of one fake.
#[derive(Debug, Default)]
pub(super) struct Log {
    records: Mutex<Vec<Record>>,
}

impl Log {
    pub(super) fn all(&self) -> Vec<Record> {
        self.records.lock().clone()
    }

    /// Adds a record; it is visible before anything is answered.
    pub(super) fn begin(self: &Arc<Self>, record: Record) -> Entry {
        let mut records = self.records.lock();
        records.push(record);
        Entry {
            log: self.clone(),
            index: records.len() - 1,
        }
    }
}

/// The record of a request that is being answered.
#[derive(Debug)]
pub(super) struct Entry {
    log: Arc<Log>,
    index: usize,
}

impl Entry {
    pub(super) fn handle_status(&self, status: u16) {
        self.log.records.lock()[self.index].status = Some(status);
    }

    pub(super) fn handle_sent(&self, bytes: usize) {
        self.log.records.lock()[self.index].sent_bytes += bytes as u64;
    }

    /// Notes how it ended; the first word counts.
    pub(super) fn handle_end(&self, end: Ended) {
        self.log.records.lock()[self.index].end.get_or_insert(end);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.handle_end(Ended::Broken);
    }
}
