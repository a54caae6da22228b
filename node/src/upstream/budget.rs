//! What is left of a registry's rate limit, and when it may be asked again after a 429.
//!
//! A state machine without clock and network: `now` is an argument. What one answer says is read
//! in `quota`. Docker Hub has two limits: of
//! pulls, which only the `GET` of a manifest counts against, and of requests, against abuse.
//! Source: CLIENT-CONTRACT U6, U7.

use std::time::Duration;

use http::HeaderMap;
use millrace_protocol::membership::{BudgetWord, MAX_SOURCE_BYTES};
use millrace_protocol::node_id::NodeId;
use tokio::time::Instant;

use super::error::Limit;
use super::quota::quota;

/// How long to wait when a 429 does not say.
const DEFAULT_PAUSE: Duration = Duration::from_secs(60);

/// How long to believe a 429 at most, so that a wrong header does not end all pulls for a day.
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

/// The rate-limit budget of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Budget {
    allowance: Option<Told>,
    /// Whom the registry says that it counts when this node asks.
    source: Option<String>,
    pulls: Option<Stop>,
    requests: Option<Stop>,
    /// How often this node was refused.
    refusals: u64,
}

/// What the registry last said, and to whom.
#[derive(Debug)]
struct Told {
    allowance: Allowance,
    at: Instant,
    to: Option<NodeId>,
}

/// A limit in force, and the other node that was told of it, if it was not this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stop {
    until: Instant,
    told: Option<NodeId>,
}

/// What the registry has told this node itself.
#[derive(Debug, Default)]
pub(super) struct OwnBudget {
    pub(super) source: Option<String>,
    /// With its age.
    pub(super) allowance: Option<(Allowance, Duration)>,
    pub(super) pulls_wait: Option<Duration>,
    pub(super) requests_wait: Option<Duration>,
}

/// What the registry last said about its limit of pulls.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Allowance {
    /// Pulls allowed in the window.
    pub limit: Option<u64>,
    /// Pulls left in the window.
    pub remaining: Option<u64>,
    /// Length of the window.
    pub window_seconds: Option<u64>,
    /// Whom the registry counts: an address or an account id.
    pub source: Option<String>,
}

/// A limit that is in force, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) limit: Limit,
    pub(super) until: Instant,
}

impl Budget {
    /// Reads the rate-limit headers of any answer; without any, what was known stays.
    pub(super) fn handle_headers(&mut self, headers: &HeaderMap, now: Instant) {
        let source: Option<String> = headers
            .get("docker-ratelimit-source")
            .and_then(|value| value.to_str().ok())
            .map(|source| source.chars().take(MAX_SOURCE_BYTES).collect());
        if source.is_some() {
            self.source.clone_from(&source);
        }
        let limit = quota(headers, "ratelimit-limit");
        let remaining = quota(headers, "ratelimit-remaining");
        if limit.is_none() && remaining.is_none() {
            return;
        }
        let allowance = Allowance {
            limit: limit.map(|quota| quota.count),
            remaining: remaining.map(|quota| quota.count),
            window_seconds: limit.or(remaining).and_then(|quota| quota.window_seconds),
            source,
        };
        let (at, to) = (now, None);
        self.allowance = Some(Told { allowance, at, to });
    }

    /// Takes in what the registry has told another node that it counts as the same.
    ///
    /// The newest word on what is left counts, and of limits in force the one that ends last.
    pub(super) fn handle_word(&mut self, from: NodeId, word: &BudgetWord, now: Instant) {
        if let Some(heard) = word.allowance
            && let Some(at) = now.checked_sub(Duration::from_millis(heard.age_ms))
            && self.allowance.as_ref().is_none_or(|known| known.at < at)
        {
            let allowance = Allowance {
                limit: heard.limit,
                remaining: heard.remaining,
                window_seconds: heard.window_seconds,
                source: word.source.clone(),
            };
            let to = Some(from);
            self.allowance = Some(Told { allowance, at, to });
        }
        for (slot, wait) in [
            (&mut self.pulls, word.pulls_wait_ms),
            (&mut self.requests, word.requests_wait_ms),
        ] {
            let Some(wait) = wait else { continue };
            let until = now + Duration::from_millis(wait).min(LONGEST_PAUSE);
            if slot.is_none_or(|known| known.until < until) {
                let told = Some(from);
                *slot = Some(Stop { until, told });
            }
        }
    }

    /// Whether the registry counts this node as `source`.
    pub(super) fn is_counted_as(&self, source: Option<&str>) -> bool {
        source.is_some() && self.source.as_deref() == source
    }

    /// Returns what the registry has told this node itself, for others.
    pub(super) fn own(&self, now: Instant) -> OwnBudget {
        let told = self.allowance.as_ref().filter(|told| told.to.is_none());
        let left = |stop: Option<Stop>| {
            stop.filter(|stop| stop.told.is_none() && stop.until > now)
                .map(|stop| stop.until - now)
        };
        OwnBudget {
            source: self.source.clone(),
            allowance: told.map(|told| {
                let age = now.saturating_duration_since(told.at);
                (told.allowance.clone(), age)
            }),
            pulls_wait: left(self.pulls),
            requests_wait: left(self.requests),
        }
    }

    pub(super) fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Notes a 429; `pause` is what the registry asked for. Returns when the limit ends.
    pub(super) fn handle_refusal(
        &mut self,
        limit: Limit,
        pause: Option<Duration>,
        now: Instant,
    ) -> Instant {
        let until = now + pause.unwrap_or(DEFAULT_PAUSE).min(LONGEST_PAUSE);
        let slot = match limit {
            Limit::Pulls => &mut self.pulls,
            Limit::Requests => &mut self.requests,
        };
        *slot = Some(Stop { until, told: None });
        self.refusals += 1;
        until
    }

    /// Returns the limit that forbids a request now, if one does; `counts` says whether the
    /// request counts as a pull.
    pub(super) fn pause(&self, counts: bool, now: Instant) -> Option<Pause> {
        let pulls = self.pulls.filter(|_| counts).map(|stop| Pause {
            limit: Limit::Pulls,
            until: stop.until,
        });
        let requests = self.requests.map(|stop| Pause {
            limit: Limit::Requests,
            until: stop.until,
        });
        [requests, pulls]
            .into_iter()
            .flatten()
            .find(|pause| pause.until > now)
    }

    /// Returns what the registry last said.
    pub(super) fn allowance(&self) -> Option<&Allowance> {
        self.allowance.as_ref().map(|told| &told.allowance)
    }

    /// Returns the other node that the last word is of, if it is of another.
    pub(super) fn allowance_told(&self) -> Option<NodeId> {
        self.allowance.as_ref()?.to
    }

    /// Returns the other node that was told of a limit, if it was another.
    pub(super) fn limit_told(&self, limit: Limit) -> Option<NodeId> {
        match limit {
            Limit::Pulls => self.pulls?.told,
            Limit::Requests => self.requests?.told,
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::membership::AllowanceWord;

    use super::super::quota::headers;
    use super::*;

    #[test]
    fn docker_hubs_headers_become_an_allowance() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        budget.handle_headers(
            &headers(&[
                ("ratelimit-limit", "100;w=21600"),
                ("ratelimit-remaining", "76;w=21600"),
                ("docker-ratelimit-source", "192.0.2.1"),
            ]),
            now,
        );
        let known = Allowance {
            limit: Some(100),
            remaining: Some(76),
            window_seconds: Some(21600),
            source: Some("192.0.2.1".to_owned()),
        };
        assert_eq!(budget.allowance(), Some(&known));
        budget.handle_headers(&HeaderMap::new(), now);
        budget.handle_headers(&headers(&[("ratelimit-limit", "plenty")]), now);
        assert_eq!(
            budget.allowance(),
            Some(&known),
            "an answer that says nothing changes nothing"
        );
    }

    #[test]
    fn a_pull_limit_stops_only_what_counts() {
        let now = Instant::now();
        let mut budget = Budget::default();
        let until = budget.handle_refusal(Limit::Pulls, Some(Duration::from_secs(9)), now);
        assert_eq!(until, now + Duration::from_secs(9));
        assert_eq!(
            budget.pause(true, now),
            Some(Pause {
                limit: Limit::Pulls,
                until
            })
        );
        assert_eq!(budget.pause(false, now), None);
        assert_eq!(budget.pause(true, until), None, "over at the time it named");
    }

    #[test]
    fn abuse_stops_everything_for_a_minute_by_default_and_never_long() {
        let now = Instant::now();
        let mut budget = Budget::default();
        let until = budget.handle_refusal(Limit::Requests, None, now);
        assert_eq!(until, now + Duration::from_secs(60));
        assert_eq!(
            budget.pause(false, now),
            Some(Pause {
                limit: Limit::Requests,
                until
            })
        );
        assert_eq!(
            budget.pause(true, now),
            Some(Pause {
                limit: Limit::Requests,
                until
            })
        );
        let until = budget.handle_refusal(Limit::Requests, Some(Duration::from_secs(86_400)), now);
        assert_eq!(until, now + Duration::from_secs(900));
    }

    const OTHER: NodeId = NodeId::new([7; 32]);

    fn word(age_ms: u64, remaining: u64, pulls_wait_ms: Option<u64>) -> BudgetWord {
        BudgetWord {
            upstream: "docker.io".to_owned(),
            credential: "anonymous".to_owned(),
            source: Some("192.0.2.1".to_owned()),
            allowance: Some(AllowanceWord {
                age_ms,
                limit: Some(100),
                remaining: Some(remaining),
                window_seconds: None,
            }),
            pulls_wait_ms,
            requests_wait_ms: None,
        }
    }

    #[test]
    fn the_newest_word_counts_whoever_was_told() {
        let now = Instant::now() + Duration::from_secs(60);
        let mut budget = Budget::default();
        let left = |budget: &Budget| budget.allowance().and_then(|known| known.remaining);
        let own = headers(&[
            ("ratelimit-remaining", "50"),
            ("docker-ratelimit-source", "a"),
        ]);
        budget.handle_headers(&own, now);
        budget.handle_word(OTHER, &word(10, 60, None), now);
        assert_eq!((left(&budget), budget.allowance_told()), (Some(50), None));
        budget.handle_word(OTHER, &word(10, 40, None), now + Duration::from_secs(1));
        assert_eq!(
            (left(&budget), budget.allowance_told()),
            (Some(40), Some(OTHER))
        );
        assert!(budget.own(now).allowance.is_none(), "no echo");
        budget.handle_headers(&own, now + Duration::from_secs(2));
        assert_eq!((left(&budget), budget.allowance_told()), (Some(50), None));
        assert!(budget.is_counted_as(Some("a")) && !budget.is_counted_as(None));
    }

    #[test]
    fn a_limit_that_another_node_ran_into_holds_here_and_ends_as_it_does_there() {
        let now = Instant::now();
        let mut budget = Budget::default();
        budget.handle_word(OTHER, &word(0, 0, Some(9_000)), now);
        let until = now + Duration::from_secs(9);
        let pause = Pause {
            limit: Limit::Pulls,
            until,
        };
        assert_eq!(budget.pause(true, now), Some(pause));
        assert_eq!(budget.pause(false, now), None);
        assert_eq!(budget.limit_told(Limit::Pulls), Some(OTHER));
        assert_eq!(budget.own(now).pulls_wait, None, "no echo");
        // Said again a little later, it ends no later.
        let later = now + Duration::from_secs(5);
        budget.handle_word(OTHER, &word(0, 0, Some(4_000)), later);
        assert_eq!(budget.pause(true, later), Some(pause));
        assert_eq!(budget.pause(true, until), None);
        budget.handle_word(OTHER, &word(0, 0, Some(u64::MAX)), now);
        let longest = now + LONGEST_PAUSE;
        assert_eq!(
            budget.pause(true, now).map(|pause| pause.until),
            Some(longest)
        );
    }
}
