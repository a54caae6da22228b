//! The order in which content was last used, as numbers that only grow.
//!
//! A number is the time in seconds since 1970, unless that has been used already: then it is the next
//! one. So what is used now always comes last, also when the clock was set back, and numbers of
//! earlier runs and of files fit in. They order; they are not for telling the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Numbers uses.
#[derive(Debug)]
pub(super) struct Uses {
    last: AtomicU64,
    /// No use from before this run has a greater one.
    first: u64,
}

impl Uses {
    /// Numbers behind all that earlier runs have given, of which `greatest` is the last.
    pub(super) fn behind(greatest: u64) -> Self {
        Self::at(unix_now(), greatest)
    }

    fn at(now: u64, greatest: u64) -> Self {
        let first = now.max(greatest);
        Self {
            last: AtomicU64::new(first),
            first,
        }
    }

    /// Returns the number of a use that happens now: greater than all before.
    pub(super) fn next(&self) -> u64 {
        self.next_at(unix_now())
    }

    fn next_at(&self, now: u64) -> u64 {
        let following = |last: u64| now.max(last.saturating_add(1));
        let update = |last| Some(following(last));
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
        following(last.unwrap_or_else(|last| last))
    }

    /// Returns the number of a use before this run, of which only the time is known.
    pub(super) fn earlier(&self, time: SystemTime) -> u64 {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        // A file from the future: the clock was set back since.
        since.as_secs().min(self.first)
    }
}

fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_used_now_comes_last_whatever_the_clock_says() {
        let uses = Uses::at(1_000, 900);
        assert_eq!(uses.next_at(1_000), 1_001);
        assert_eq!(uses.next_at(1_000), 1_002, "in the same second");
        assert_eq!(uses.next_at(2_000), 2_000);
        assert_eq!(uses.next_at(500), 2_001, "the clock was set back");
        let in_the_past = Uses::at(500, 2_001);
        assert_eq!(in_the_past.next_at(500), 2_002);
    }

    #[test]
    fn files_from_the_future_come_before_what_is_used_now() {
        let uses = Uses::at(1_000, 0);
        let file = |seconds| uses.earlier(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!([file(10), file(1_000), file(5_000)], [10, 1_000, 1_000]);
        assert!(uses.next_at(1_000) > file(5_000));
    }
}
