//! A gate that a test opens, so that something happens when the test says and not after a while.

use tokio::sync::watch;

/// A closed gate; clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    open: watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            open: watch::Sender::new(false),
        }
    }
}

impl Gate {
    /// Opens the gate for everybody, for good.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until the gate is open.
    pub(super) async fn wait(&self) {
        let mut open = self.open.subscribe();
        // The sender lives as long as `self`, so the wait ends only when the gate is open.
        let _ = open.wait_for(|open| *open).await;
    }
}
