//! Saying something now and then that is true of every request.
//!
//! What is said, and how loud, is its user's.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The least time between two lines.
const INTERVAL: Duration = Duration::from_secs(60);

/// Lets one line a minute through.
#[derive(Debug, Default)]
pub struct Seldom {
    last: Mutex<Option<Instant>>,
}

impl Seldom {
    /// Whether a line may be written now; if so, the next one may in a minute.
    pub fn is_due(&self) -> bool {
        self.is_due_at(Instant::now())
    }

    fn is_due_at(&self, now: Instant) -> bool {
        let mut last = self.last.lock();
        let is_due = last.is_none_or(|last| now.duration_since(last) >= INTERVAL);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_is_due() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        assert!(seldom.is_due_at(now));
        assert!(!seldom.is_due_at(now + INTERVAL - Duration::from_nanos(1)));
        assert!(seldom.is_due_at(now + INTERVAL));
    }
}
