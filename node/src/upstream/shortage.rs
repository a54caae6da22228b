//! What this node itself lacks in order to ask, told apart from what is wrong with an upstream.
//!
//! A failure for want of a file descriptor says nothing about the registry that was to be asked:
//! it must not open its breaker, nor be shown as its error. That holds for connections and for what
//! credentials take: a file, or a program that is run. A resolver that does not answer is no such
//! case: without it the upstream is out of reach, and is best left alone for a while.

use std::error::Error;
use std::fs::File;
use std::io;

use rustix::io::Errno;

use crate::telemetry::Seldom;

/// What this node lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// File descriptors, of the process or of the whole system.
    #[error("too many open files; raise the limit (LimitNOFILE= of systemd, ulimit -n)")]
    OpenFiles,
    /// Memory, of the kernel's networking for one.
    #[error("the system is out of memory for connections")]
    Memory,
    /// A local address with a free port.
    #[error(
        "no local address or port is free for a connection; widen net.ipv4.ip_local_port_range \
         or look for what holds connections"
    )]
    Ports,
    /// Processes or threads, of this user or of the control group.
    #[error("no more processes can be started; raise the limit (TasksMax= of systemd, ulimit -u)")]
    Processes,
}

impl Shortage {
    /// Finds one among the causes of a connection that could not be made.
    ///
    /// A resolver hides why it could not open its files; whether this process can open one is
    /// tried then.
    pub(super) fn behind(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let system = error.downcast_ref::<io::Error>();
            if let Some(found) = system.and_then(Self::of) {
                return Some(found);
            }
            cause = error.source();
        }
        File::open("/dev/null").err().as_ref().and_then(Self::of)
    }

    /// Finds one in the answer of the system to the start of a program.
    ///
    /// `EAGAIN` means this there only: elsewhere it is said of what has not come yet.
    pub(super) fn of_start(error: &io::Error) -> Option<Self> {
        match Errno::from_io_error(error)? {
            Errno::AGAIN => Some(Self::Processes),
            _ => Self::of(error),
        }
    }

    /// Finds one in the answer of the system to another call.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        match Errno::from_io_error(error)? {
            Errno::MFILE | Errno::NFILE => Some(Self::OpenFiles),
            Errno::NOMEM | Errno::NOBUFS => Some(Self::Memory),
            Errno::ADDRNOTAVAIL => Some(Self::Ports),
            _ => None,
        }
    }
}

/// Logs shortages, now and then: one concerns every request while it lasts.
#[derive(Debug, Default)]
pub(super) struct Alarm(Seldom);

impl Alarm {
    pub(super) fn raise(&self, shortage: Shortage) {
        if self.0.is_due() {
            tracing::error!(reason = %shortage, "no upstream can be asked; the cause is on this node");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect")]
    struct Wrapped(#[source] io::Error);

    #[test]
    fn only_what_this_node_lacks_is_a_shortage() {
        for (errno, found) in [
            (Errno::MFILE, Some(Shortage::OpenFiles)),
            (Errno::NFILE, Some(Shortage::OpenFiles)),
            (Errno::NOMEM, Some(Shortage::Memory)),
            (Errno::NOBUFS, Some(Shortage::Memory)),
            (Errno::ADDRNOTAVAIL, Some(Shortage::Ports)),
            (Errno::CONNREFUSED, None),
            (Errno::CONNRESET, None),
            (Errno::HOSTUNREACH, None),
            (Errno::NETUNREACH, None),
            (Errno::TIMEDOUT, None),
        ] {
            assert_eq!(Shortage::behind(&Wrapped(errno.into())), found, "{errno:?}");
        }
        let unresolved = io::Error::other("failed to lookup address information");
        assert_eq!(Shortage::behind(&Wrapped(unresolved)), None);
    }

    #[test]
    fn a_program_that_cannot_be_forked_is_a_shortage_and_one_that_is_missing_is_none() {
        for (errno, found) in [
            (Errno::AGAIN, Some(Shortage::Processes)),
            (Errno::NOMEM, Some(Shortage::Memory)),
            (Errno::MFILE, Some(Shortage::OpenFiles)),
            (Errno::NOENT, None),
            (Errno::ACCESS, None),
        ] {
            assert_eq!(Shortage::of_start(&errno.into()), found, "{errno:?}");
        }
        assert_eq!(Shortage::of(&Errno::AGAIN.into()), None);
    }
}
