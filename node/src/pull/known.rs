//! A tag's record with its age, which does not depend on where the system's clock is set to.
//!
//! What was learnt since the start is aged by the clock that only measures, and a record from
//! before by the system's clock, once, when it is read. What an age allows is `policy`'s.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::store::TagRecord;

/// What both clocks say at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// Time since 1970, by the clock that may be set.
    unix: Duration,
    /// By the clock that measures; it stands still while the machine sleeps.
    instant: Instant,
}

impl Now {
    /// Looks at the clocks.
    pub(super) fn read() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            unix: unix.unwrap_or_default(),
            instant: Instant::now(),
        }
    }

    /// Returns the time so long ago as it is recorded: in whole seconds since 1970, rounded down, so
    /// that no record makes an answer younger.
    pub(super) fn seconds_before(self, age: Duration) -> u64 {
        self.unix.saturating_sub(age).as_secs()
    }
}

/// What is known of a tag.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// What is kept of it.
    pub(super) record: TagRecord,
    /// How old it was at `since`; `None`: it is from the future, so that cannot be said.
    age: Option<Duration>,
    since: Instant,
}

impl Known {
    /// Takes a record of what the upstream said so long before `now`.
    pub(super) fn told(record: TagRecord, age: Duration, now: Now) -> Self {
        Self {
            record,
            age: Some(age),
            since: now.instant,
        }
    }

    /// Takes a record that was kept, perhaps by an earlier run.
    pub(super) fn kept(record: TagRecord, now: Now) -> Self {
        let age = now.unix.checked_sub(Duration::from_secs(record.checked_at));
        Self {
            record,
            age,
            since: now.instant,
        }
    }

    /// Whether this was learnt later than what was so old at `now`, as far as that was measured.
    pub(super) fn is_younger_than(&self, age: Duration, now: Now) -> bool {
        self.measured(now).is_some_and(|own| own < age)
    }

    fn measured(&self, now: Now) -> Option<Duration> {
        Some(self.age? + now.instant.saturating_duration_since(self.since))
    }

    /// Returns the time since the upstream last said so, or almost a second more; `None` when that
    /// is not known, because the clock was set back.
    pub(super) fn age(&self, now: Now) -> Option<Duration> {
        let measured = self.measured(now)?;
        let checked_at = Duration::from_secs(self.record.checked_at);
        let by_date = now.unix.saturating_sub(checked_at);
        // The one is too little when the machine slept, the other when the clock was set back.
        Some(measured.max(by_date))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_protocol::oci::{Algorithm, Digest};

    const SECOND: Duration = Duration::from_secs(1);

    fn checked_at(checked_at: u64) -> TagRecord {
        TagRecord {
            digest: Digest::of(Algorithm::Sha256, b""),
            resolved_at: 0,
            checked_at,
        }
    }

    #[test]
    fn what_was_told_ages_whatever_the_clock_is_set_to() {
        let instant = Instant::now();
        let told = Known::told(
            checked_at(1_000),
            2 * SECOND,
            Now {
                unix: 1_002 * SECOND,
                instant,
            },
        );
        let after = |seconds: u32, unix: u32| {
            let (instant, unix) = (instant + seconds * SECOND, unix * SECOND);
            told.age(Now { unix, instant })
        };
        assert_eq!(after(5, 1_007), Some(7 * SECOND));
        assert_eq!(after(5, 500), Some(7 * SECOND), "it was set back");
        assert_eq!(after(5, 1_060), Some(60 * SECOND), "the machine slept");
    }

    #[test]
    fn no_record_makes_an_answer_younger() {
        let millis = Duration::from_millis;
        let instant = Instant::now();
        for (now, old) in [(5_000, 0), (5_999, 1), (5_100, 950), (5_900, 1_001)] {
            let at = |later| Now {
                unix: millis(now + later),
                instant: instant + millis(later),
            };
            let record = checked_at(at(0).seconds_before(millis(old)));
            for known in [
                Known::told(record.clone(), millis(old), at(0)),
                Known::kept(record.clone(), at(0)),
            ] {
                for later in [0, 99, 100, 901] {
                    let age = known.age(at(later)).expect("not from the future");
                    let truth = millis(old + later);
                    assert!(age >= truth, "{age:?}, not {truth:?}");
                    assert!(age < truth + SECOND, "{age:?}");
                }
            }
        }
    }

    #[test]
    fn the_age_of_a_record_from_the_future_is_not_known() {
        let instant = Instant::now();
        let at = |unix: u32, seconds: u32| Now {
            unix: unix * SECOND,
            instant: instant + seconds * SECOND,
        };
        let past = Known::kept(checked_at(1_000), at(1_010, 0));
        assert_eq!(past.age(at(1_010, 0)), Some(10 * SECOND));
        assert_eq!(past.age(at(500, 5)), Some(15 * SECOND));
        let future = Known::kept(checked_at(1_000), at(999, 0));
        assert_eq!(future.age(at(999, 0)), None);
        assert_eq!(future.age(at(1_001, 2)), None, "when was it kept?");
    }
}
