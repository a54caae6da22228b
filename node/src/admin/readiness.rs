//! Whether the node can serve, and what it waits for if not.
//!
//! The parts of the node say what they have still to do; nobody asks them. An upstream that does
//! not answer is no reason: what is in the store can be served.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

/// The node's readiness; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    waiting_for: BTreeSet<&'static str>,
    draining: bool,
}

/// What the node is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Phase {
    /// It cannot serve yet.
    Starting {
        /// What has to be done before, in alphabetical order; not empty.
        waiting_for: Vec<&'static str>,
    },
    /// It serves.
    Ready,
    /// It finishes what it serves and takes nothing new; there is no way back.
    Draining,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting { waiting_for } => {
                write!(f, "starting, waiting for {}", waiting_for.join(", "))
            }
            Self::Ready => f.write_str("ready"),
            Self::Draining => f.write_str("draining"),
        }
    }
}

impl Readiness {
    /// Returns the readiness of a node that waits for these, such as `the store`.
    pub fn starting(waiting_for: impl IntoIterator<Item = &'static str>) -> Self {
        let state = State {
            waiting_for: waiting_for.into_iter().collect(),
            draining: false,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Says that the node need not wait for this any more.
    pub fn done(&self, waited_for: &str) {
        self.state.lock().waiting_for.remove(waited_for);
    }

    /// Says that the node takes nothing new.
    pub fn drain(&self) {
        self.state.lock().draining = true;
    }

    /// Returns what the node is doing now.
    pub fn phase(&self) -> Phase {
        let state = self.state.lock();
        if state.draining {
            return Phase::Draining;
        }
        if state.waiting_for.is_empty() {
            return Phase::Ready;
        }
        Phase::Starting {
            waiting_for: state.waiting_for.iter().copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_nothing_is_waited_for_and_never_after_drain() {
        let readiness = Readiness::starting(["the store", "the listener"]);
        let phase = readiness.phase().to_string();
        assert_eq!(phase, "starting, waiting for the listener, the store");
        readiness.done("the store");
        assert_ne!(readiness.phase(), Phase::Ready);
        readiness.done("the listener");
        assert_eq!(readiness.phase(), Phase::Ready);
        readiness.drain();
        readiness.done("the store");
        assert_eq!(readiness.phase(), Phase::Draining);
    }
}
