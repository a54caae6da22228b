//! When to leave a failing endpoint alone.
//!
//! A state machine without clock and network: `now` is an argument. It knows only whether
//! attempts succeeded; what counts as a failure is decided by `attempt`.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that open the breaker: one hiccup must not, a dead host must soon.
const FAILURES_TO_OPEN: u32 = 5;

/// How long the first opening lasts.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// How long an opening lasts at most: an upstream that came back is found within a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The breaker of one endpoint.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Length of the next opening.
    pause: Duration,
}

#[derive(Debug)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
    },
    /// One attempt is under way to find out.
    Probing,
}

/// What the breaker is doing, for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Attempts are made.
    Closed,
    /// One attempt is under way to find out whether the endpoint has come back.
    HalfOpen,
    /// No attempts are made.
    Open,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::Closed { failures: 0 },
            pause: FIRST_PAUSE,
        }
    }
}

impl Breaker {
    /// Returns whether an attempt may be made now; if so, the caller must report how it went.
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } if until <= now => {
                self.state = State::Probing;
                true
            }
            State::Open { .. } | State::Probing => false,
        }
    }

    /// Notes that the endpoint has answered.
    pub(super) fn handle_success(&mut self) {
        *self = Self::default();
    }

    /// Notes that an attempt has failed; those that began before the opening do not prolong it.
    pub(super) fn handle_failure(&mut self, now: Instant) {
        match &mut self.state {
            State::Closed { failures } => {
                *failures += 1;
                if *failures >= FAILURES_TO_OPEN {
                    self.open(now);
                }
            }
            State::Probing => self.open(now),
            State::Open { .. } => {}
        }
    }

    /// Notes that an attempt ended without saying anything about the endpoint.
    pub(super) fn handle_abandoned(&mut self, now: Instant) {
        if let State::Probing = self.state {
            self.state = State::Open { until: now };
        }
    }

    /// Returns what it is doing.
    pub(super) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Probing => BreakerState::HalfOpen,
            State::Open { .. } => BreakerState::Open,
        }
    }

    fn open(&mut self, now: Instant) {
        self.state = State::Open {
            until: now + self.pause,
        };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES_TO_OPEN {
            assert!(breaker.admit(now));
            breaker.handle_failure(now);
        }
        breaker
    }

    #[test]
    fn the_fifth_failure_in_a_row_opens() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            (0..4).for_each(|_| breaker.handle_failure(now));
            assert!(breaker.admit(now), "four failures are not five");
            breaker.handle_success();
        }
        assert!(!opened(now).admit(now));
    }

    #[test]
    fn after_the_pause_exactly_one_probe_goes() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(!breaker.admit(now + FIRST_PAUSE - Duration::from_nanos(1)));
        assert!(breaker.admit(now + FIRST_PAUSE));
        assert!(!breaker.admit(now + FIRST_PAUSE), "a second probe");
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        breaker.handle_success();
        assert!(breaker.admit(now + FIRST_PAUSE));
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_start_anew_after_success() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for seconds in [5, 10, 20, 40, 60, 60] {
            let pause = Duration::from_secs(seconds);
            assert!(
                !breaker.admit(now + pause - Duration::from_nanos(1)),
                "{seconds}"
            );
            now += pause;
            assert!(breaker.admit(now), "{seconds}");
            breaker.handle_failure(now);
        }
        breaker.handle_success();
        (0..FAILURES_TO_OPEN).for_each(|_| breaker.handle_failure(now));
        assert!(breaker.admit(now + FIRST_PAUSE));
    }

    #[test]
    fn late_failures_do_not_prolong_the_pause() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.handle_failure(now + Duration::from_secs(4));
        assert!(breaker.admit(now + FIRST_PAUSE));
    }

    #[test]
    fn an_abandoned_probe_leaves_room_for_another() {
        let now = Instant::now() + FIRST_PAUSE;
        let mut breaker = opened(now - FIRST_PAUSE);
        assert!(breaker.admit(now));
        breaker.handle_abandoned(now);
        assert!(breaker.admit(now));
    }
}
