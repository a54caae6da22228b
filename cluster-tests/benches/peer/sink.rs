//! What both receivers do with the bytes: hash once, write.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::Bytes;
use millrace_protocol::chunk::ChainHasher;
use millrace_protocol::oci::{Algorithm, Digest};

/// What a receiver reports, as one line.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    digest: Digest,
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.seconds, self.bytes, self.digest)
    }
}

impl FromStr for Received {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split(' ');
        let mut word = || words.next().context("three words");
        Ok(Self {
            seconds: word()?.parse()?,
            bytes: word()?.parse()?,
            digest: word()?.parse()?,
        })
    }
}

/// Hashes and writes.
pub(crate) struct Sink {
    file: File,
    hasher: ChainHasher,
    began: Instant,
}

impl Sink {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        // What the last run wrote is written over: where a machine is virtual, memory that it has
        // not used before costs eight times the copy, and hits whoever comes first.
        let mut options = File::options();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        Ok(Self {
            file,
            hasher: ChainHasher::new(Algorithm::Sha256),
            began: Instant::now(),
        })
    }

    /// Adds bytes that are together.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes, |_| ());
        self.file.write_all(bytes)
    }

    /// Adds bytes that are in pieces.
    pub(crate) fn add_pieces(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        for piece in pieces {
            self.hasher.update(piece, |_| ());
        }
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let written = self.file.write_vectored(rest)?;
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Received {
        Received {
            seconds: self.began.elapsed().as_secs_f64(),
            bytes: self.hasher.hashed(),
            digest: self.hasher.finish(),
        }
    }
}
