//! The line between two sites: packets are carried late, lost, counted, or not carried at all.
//!
//! Each site's end is a TUN device that socat joins to a socket of ours, so every protocol travels
//! through as it is. It carries some 300 Mbit/s, which is more than tests set their links to.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::command::{inside, ip};
use crate::component;
use crate::process::Process;

/// Packets under way in one direction; more are dropped. 80 ms of 300 Mbit/s are 2,000 packets of
/// 1,500 bytes; twice that is what a router keeps.
const QUEUE_PACKETS: usize = 4096;

/// Larger than any packet of a TUN device.
const PACKET_BYTES: usize = 65_536;

/// A line between two sites; it ends with the value.
#[derive(Debug)]
pub struct Wan {
    line: Arc<Line>,
    _ends: Vec<Process>,
    _tasks: JoinSet<()>,
    _folder: TempDir,
}

/// What both directions share.
#[derive(Debug, Default)]
struct Line {
    /// One way, in microseconds.
    delay: AtomicU64,
    /// One packet of so many is lost; 0 for none.
    lost_of: AtomicU64,
    is_cut: AtomicBool,
    packets: AtomicU64,
    carried: AtomicU64,
}

impl Wan {
    /// Makes a device `wan0` in both namespaces and carries packets between them at once.
    pub(super) async fn between(left: &str, right: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("millrace-wan-").tempdir()?;
        let line = Arc::<Line>::default();
        let path = |name: &str| folder.path().join(name);
        let mut ends = Vec::new();
        let mut sockets = Vec::new();
        for (side, namespace) in [("left", left), ("right", right)] {
            let (ours, theirs) = (path(side), path(&format!("{side}-tun")));
            sockets.push(Arc::new(
                UnixDatagram::bind(&ours).context("a socket for a WAN")?,
            ));
            ends.push(end(namespace, side, folder.path(), (&ours, &theirs)).await?);
        }
        let mut tasks = JoinSet::new();
        for (from, to, name) in [(0, 1, "right-tun"), (1, 0, "left-tun")] {
            let (queue, queued) = mpsc::channel(QUEUE_PACKETS);
            tasks.spawn(receive(
                Arc::clone(&sockets[from]),
                Arc::clone(&line),
                queue,
            ));
            tasks.spawn(deliver(Arc::clone(&sockets[to]), path(name), queued));
        }
        Ok(Self {
            line,
            _ends: ends,
            _tasks: tasks,
            _folder: folder,
        })
    }

    /// Lets a packet and its answer take `round_trip` longer together.
    pub fn set_round_trip(&self, round_trip: Duration) {
        let micros = u64::try_from(round_trip.as_micros() / 2).unwrap_or(u64::MAX);
        self.line.delay.store(micros, Ordering::Relaxed);
    }

    /// Loses one packet of `count`; 0 loses none.
    pub fn lose_one_of(&self, count: u64) {
        self.line.lost_of.store(count, Ordering::Relaxed);
    }

    /// Carries nothing any more, or again.
    pub fn cut(&self, is_cut: bool) {
        self.line.is_cut.store(is_cut, Ordering::Relaxed);
    }

    /// Returns how many bytes were carried, both ways together, headers of packets included.
    pub fn carried_bytes(&self) -> u64 {
        self.line.carried.load(Ordering::Relaxed)
    }
}

impl Line {
    /// Decides about a packet: when it arrives, if it does.
    fn admit(&self, size: usize) -> Option<Instant> {
        let number = self.packets.fetch_add(1, Ordering::Relaxed);
        let lost_of = self.lost_of.load(Ordering::Relaxed);
        let is_lost = lost_of > 0 && scatter(number).is_multiple_of(lost_of);
        if is_lost || self.is_cut.load(Ordering::Relaxed) {
            return None;
        }
        self.carried.fetch_add(size as u64, Ordering::Relaxed);
        let delay = Duration::from_micros(self.delay.load(Ordering::Relaxed));
        Some(Instant::now() + delay)
    }
}

/// Turns a packet's number into one without order, the same in every run (Fibonacci hashing).
fn scatter(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

/// Joins a device in `namespace` to our socket and waits until it is there.
async fn end(
    namespace: &str,
    side: &str,
    folder: &Path,
    (ours, theirs): (&Path, &Path),
) -> Result<Process> {
    let mut socat = Command::new(component::find("socat")?);
    socat
        .args(["-b", &PACKET_BYTES.to_string()])
        .arg("TUN,iff-up,iff-no-pi,tun-type=tun,tun-name=wan0")
        .arg(format!(
            "UNIX-SENDTO:{},bind={}",
            ours.display(),
            theirs.display()
        ));
    let mut process = Process::start(side, &inside(namespace, &socat)?, folder)?;
    process
        .ready(async || {
            ip(&["-n", namespace, "link", "show", "wan0"]).ok()?;
            theirs.exists().then_some(())
        })
        .await?;
    Ok(process)
}

async fn receive(
    socket: Arc<UnixDatagram>,
    line: Arc<Line>,
    queue: mpsc::Sender<(Instant, Bytes)>,
) {
    let mut packet = vec![0; PACKET_BYTES];
    while let Ok(size) = socket.recv(&mut packet).await {
        if let Some(due) = line.admit(size) {
            // Full: dropped, as a router does.
            let _ = queue.try_send((due, Bytes::copy_from_slice(&packet[..size])));
        }
    }
}

async fn deliver(
    socket: Arc<UnixDatagram>,
    to: PathBuf,
    mut queued: mpsc::Receiver<(Instant, Bytes)>,
) {
    while let Some((due, packet)) = queued.recv().await {
        tokio::time::sleep_until(due).await;
        // The other end goes away only when the whole line does.
        let _ = socket.send_to(&packet, &to).await;
    }
}
