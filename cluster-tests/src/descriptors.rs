//! Taking file descriptors away from a running process.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::condition::eventually;

/// How `/proc` writes the state of a socket that listens.
const LISTENS: &str = "0A";

/// A process that can hardly open a file any more, until this value is dropped.
#[derive(Debug)]
pub struct Starved {
    process: Pid,
    before: Rlimit,
}

impl Starved {
    /// Lets a process have `room` descriptors more than it has once nobody is connected to it.
    ///
    /// # Errors
    /// When the process is gone, or may not be limited by this one.
    ///
    /// # Panics
    /// When somebody stays connected.
    pub async fn leave(process_id: u32, room: usize) -> Result<Self> {
        let process = i32::try_from(process_id).ok().and_then(Pid::from_raw);
        let process = process.context("a process id")?;
        let alone = async || connections(process_id).is_ok_and(|count| count == 0);
        eventually("nobody is connected to the process", alone).await;
        // The limit is one for numbers, of which the lowest that is free is given out.
        let taken = descriptors(process_id)?;
        let free = (0..).filter(|number| !taken.contains(number));
        let limit = free.take(room + 1).last().context("a free number")?;
        let lowered = Rlimit {
            current: Some(limit),
            // A process inherits it, and only a privileged one could raise it again.
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        let before = prlimit(Some(process), Resource::Nofile, lowered)?;
        Ok(Self { process, before })
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        // A process that has ended needs nothing back.
        let _ = prlimit(Some(self.process), Resource::Nofile, self.before);
    }
}

/// Returns the descriptors that a process has.
fn descriptors(process_id: u32) -> Result<BTreeSet<u64>> {
    let mut taken = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{process_id}/fd"))? {
        taken.insert(entry?.file_name().to_string_lossy().parse()?);
    }
    Ok(taken)
}

/// Counts the TCP connections of a process.
fn connections(process_id: u32) -> Result<usize> {
    let mut own = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{process_id}/fd"))? {
        // One that was closed in between is none.
        if let Ok(target) = fs::read_link(entry?.path()) {
            own.insert(target.to_string_lossy().into_owned());
        }
    }
    let table = fs::read_to_string(format!("/proc/{process_id}/net/tcp"))?;
    let connected = table.lines().skip(1).filter(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let inode = fields.get(9).unwrap_or(&"");
        fields.get(3) != Some(&LISTENS) && own.contains(&format!("socket:[{inode}]"))
    });
    Ok(connected.count())
}
