//! Taking file descriptors away from a running process.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// A process that can hardly open a file any more, until this value is dropped.
#[derive(Debug)]
pub struct Starved {
    process: Pid,
    before: Rlimit,
}

impl Starved {
    /// Lets a process have `room` descriptors more than it has now.
    ///
    /// # Errors
    /// When the process is gone, or may not be limited by this one.
    pub fn leave(process_id: u32, room: usize) -> Result<Self> {
        let process = i32::try_from(process_id).ok().and_then(Pid::from_raw);
        let process = process.context("a process id")?;
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
