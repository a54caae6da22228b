//! What processes and the machine spent, as the kernel counts it (`/proc`).
//!
//! It only reads; to say which process is the server is the caller's part.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The unit of CPU times in `/proc`: USER_HZ, which is 100 on every Linux that Debian builds.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the kernel knows about one process.
#[derive(Clone, Copy, Debug)]
struct Stat {
    parent: u32,
    /// User and system time of all its threads.
    ticks: u64,
    /// The same of children that have ended and were waited for.
    ended_children_ticks: u64,
}

/// Returns the CPU time that process `id` and all its living descendants have used.
///
/// Threads that have ended count; children that have ended do not.
/// # Errors
/// When there is no such process.
pub fn cpu_time(id: u32) -> Result<Duration> {
    let (stats, family) = family(id)?;
    Ok(ticks(family.iter().map(|id| stats[id].ticks).sum()))
}

/// Returns memory that process `id` and its living descendants hold: the sum of `VmRSS`, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn resident_bytes(id: u32) -> Result<u64> {
    sum_of_status(id, "VmRSS:")
}

/// Returns the most that [`resident_bytes`] ever was, since the process started or
/// [`forget_peak`]: the sum of `VmHWM`, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn peak_resident_bytes(id: u32) -> Result<u64> {
    sum_of_status(id, "VmHWM:")
}

/// Makes [`peak_resident_bytes`] start anew.
///
/// # Errors
/// When there is no such process, or it is somebody else's.
pub fn forget_peak(id: u32) -> Result<()> {
    for id in family(id)?.1 {
        // 5: reset the peak resident set size (proc(5), clear_refs).
        std::fs::write(format!("/proc/{id}/clear_refs"), "5")
            .with_context(|| format!("resetting the peak of process {id}"))?;
    }
    Ok(())
}

/// Returns the bytes that came in and went out over `link` of the network that process `id` is in,
/// headers of packets included.
///
/// # Errors
/// When there is no such process or link.
pub fn link_bytes(id: u32, link: &str) -> Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{id}/net/dev"))
        .with_context(|| format!("looking at the links of process {id}"))?;
    parse_link(&text, link).with_context(|| format!("process {id} has no link {link}"))
}

/// Reads `name: bytes packets …`: eight numbers of what was received, then eight of what was sent.
fn parse_link(text: &str, link: &str) -> Option<(u64, u64)> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, numbers) = lines.find(|(name, _)| name.trim() == link)?;
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    let number = |at: usize| numbers.get(at)?.parse().ok();
    Some((number(0)?, number(8)?))
}

/// A moment in the life of the machine, to tell how busy others were since.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    at: Instant,
    /// All CPU time of the machine that was not idle, stolen time included.
    busy: Duration,
    /// What of it was spent by this process, its children and theirs.
    ours: Duration,
}

impl Moment {
    /// Returns the present moment.
    ///
    /// # Errors
    /// When `/proc` is not readable.
    pub fn now() -> Result<Self> {
        let id = std::process::id();
        let (stats, family) = family(id)?;
        let living: u64 = family.iter().map(|id| stats[id].ticks).sum();
        let ended: u64 = family.iter().map(|id| stats[id].ended_children_ticks).sum();
        Ok(Self {
            at: Instant::now(),
            busy: ticks(busy_ticks()?),
            ours: ticks(living + ended),
        })
    }

    /// Returns the shares of the machine that were used since then.
    ///
    /// # Errors
    /// When `/proc` is not readable.
    pub fn shares(&self) -> Result<Shares> {
        let now = Self::now()?;
        let cpus = std::thread::available_parallelism()?.get() as f64;
        let available = (now.at - self.at).as_secs_f64() * cpus;
        let busy = now.busy.saturating_sub(self.busy);
        let foreign = busy.saturating_sub(now.ours.saturating_sub(self.ours));
        let share = |time: Duration| (time.as_secs_f64() / available).min(1.0);
        Ok(Shares {
            busy: share(busy),
            foreign: share(foreign),
        })
    }

    /// Returns the share of the machine that others used since then: 0.0 to 1.0 of all CPUs.
    ///
    /// # Errors
    /// When `/proc` is not readable.
    pub fn foreign_share(&self) -> Result<f64> {
        Ok(self.shares()?.foreign)
    }
}

/// What of the machine was used, 0.0 to 1.0 of all CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    /// By anybody.
    pub busy: f64,
    /// By others than this process and its children.
    pub foreign: f64,
}

impl fmt::Display for Shares {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (busy, foreign) = (self.busy * 100.0, self.foreign * 100.0);
        write!(formatter, "machine {busy:.0} %, others {foreign:.0} %")
    }
}

fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(count as f64 / TICKS_PER_SECOND)
}

/// Returns what is known of all processes, and the ids of `root` and its descendants.
fn family(root: u32) -> Result<(BTreeMap<u32, Stat>, Vec<u32>)> {
    let stats = all_stats()?;
    anyhow::ensure!(stats.contains_key(&root), "no process {root}");
    let mut family = vec![root];
    let mut looked_at = 0;
    while let Some(&parent) = family.get(looked_at) {
        let children = stats.iter().filter(|(_, stat)| stat.parent == parent);
        family.extend(children.map(|(id, _)| *id));
        looked_at += 1;
    }
    Ok((stats, family))
}

fn all_stats() -> Result<BTreeMap<u32, Stat>> {
    let mut stats = BTreeMap::new();
    for entry in Path::new("/proc").read_dir().context("reading /proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end between the listing and the look.
        let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        if let Some(stat) = parse_stat(&text) {
            stats.insert(id, stat);
        }
    }
    Ok(stats)
}

/// Reads `pid (name) state ppid …`; the name may contain anything, so it is cut off at its end.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // Numbers of proc(5) minus 3, because state, the third field, is the first here.
    let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)?,
        ended_children_ticks: number(13)? + number(14)?,
    })
}

/// Sums everything but idle and iowait in the first line of `/proc/stat`. Guest time is part of
/// user time already.
fn busy_ticks() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let numbers = text.lines().next().unwrap_or_default();
    let numbers: Vec<u64> = numbers
        .split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect();
    anyhow::ensure!(numbers.len() >= 8, "/proc/stat has an unknown format");
    let [user, nice, system, irq, softirq, steal] = [0, 1, 2, 5, 6, 7].map(|at| numbers[at]);
    Ok(user + nice + system + irq + softirq + steal)
}

fn sum_of_status(id: u32, field: &str) -> Result<u64> {
    let mut sum = 0;
    for id in family(id)?.1 {
        let text = std::fs::read_to_string(format!("/proc/{id}/status"))
            .with_context(|| format!("looking at process {id}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kibibytes: u64 = kibibytes
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("process {id} has no {field}"))?;
        sum += kibibytes * 1024;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::eventually;
    use crate::process::Process;
    use std::process::Command;

    #[test]
    fn a_stat_line_with_an_odd_name_is_read() {
        let line = "7 (a) b (c) S 3 7 7 0 -1 0 1 2 3 4 50 60 7 8 20 0 1 0 99";
        let stat = parse_stat(line).expect("a stat line");
        assert_eq!(
            (stat.parent, stat.ticks, stat.ended_children_ticks),
            (3, 110, 15)
        );
    }

    #[test]
    fn bytes_of_a_link_are_read_in_both_directions() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n\
                    \x20   lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n\
                    \x20data0: 50 6 0 0 0 0 0 0 70 8 0 0 0 0 0 0\n";
        assert_eq!(parse_link(text, "data0"), Some((50, 70)));
        assert_eq!(parse_link(text, "data"), None);
    }

    #[tokio::test]
    async fn the_work_of_a_grandchild_counts() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut shell = Command::new("sh");
        shell.args(["-c", "sh -c 'while :; do :; done' & wait"]);
        let process = Process::start("busy", &shell, folder.path()).expect("sh starts");
        eventually("the grandchild worked for 50 ms", async || {
            cpu_time(process.id()).expect("it runs") >= Duration::from_millis(50)
        })
        .await;
        assert!(resident_bytes(process.id()).expect("it runs") > 100_000);
        forget_peak(process.id()).expect("it is ours");
        assert!(peak_resident_bytes(process.id()).expect("it runs") > 100_000);
    }

    #[test]
    fn own_work_is_ours_and_keeps_the_machine_busy() {
        let before = Moment::now().expect("a readable /proc");
        let worked = || {
            let now = Moment::now().expect("a readable /proc");
            let ours = now.ours.saturating_sub(before.ours);
            (ours, now.busy.saturating_sub(before.busy))
        };
        while worked().0 < Duration::from_millis(100) {
            std::hint::black_box(before);
        }
        let (ours, busy) = worked();
        // Both clocks count in hundredths of a second, and not at the same moment.
        assert!(
            busy + Duration::from_millis(40) >= ours,
            "{busy:?} {ours:?}"
        );
        let share = before.foreign_share().expect("a readable /proc");
        assert!((0.0..1.0).contains(&share), "{share}");
    }
}
