//! One base URL of an upstream, with what is known about its health.
//!
//! Puts clock and locks around the machines of `breaker` and `budget`; decides nothing itself.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use millrace_protocol::membership::BudgetWord;
use millrace_protocol::node_id::NodeId;
use parking_lot::Mutex;
use tokio::time::Instant;
use url::Url;

use super::breaker::{Breaker, BreakerState};
use super::budget::{Allowance, Budget, OwnBudget, Pause};
use super::error::Limit;
use super::quota::{limit_of_refusal, retry_after};

/// A base URL and its health.
#[derive(Debug)]
pub(super) struct Endpoint {
    url: Url,
    breaker: Mutex<Breaker>,
    budget: Mutex<Budget>,
}

/// Something with the other node that a registry has told it to, if it was another.
pub(super) type ToldBy<T> = (T, Option<NodeId>);

/// Why an endpoint is not asked now.
#[derive(Clone, Copy, Debug)]
pub(super) enum Closed {
    Limited(Pause),
    BreakerOpen,
}

impl Endpoint {
    pub(super) fn new(url: Url) -> Self {
        Self {
            url,
            breaker: Mutex::default(),
            budget: Mutex::default(),
        }
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// Returns the URL of `path` below `/v2/`; `path` needs no escaping.
    pub(super) fn join(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!(
            "{}/v2/{path}",
            self.url.path().trim_end_matches('/')
        ));
        url.set_query(query.filter(|query| !query.is_empty()));
        url
    }

    /// Admits an attempt; `counts` says whether its request counts as a pull.
    ///
    /// # Errors
    /// Why the endpoint must not be asked now.
    pub(super) fn admit(&self, counts: bool) -> Result<Admission<'_>, Closed> {
        let now = Instant::now();
        if let Some(pause) = self.budget.lock().pause(counts, now) {
            return Err(Closed::Limited(pause));
        }
        if !self.breaker.lock().admit(now) {
            return Err(Closed::BreakerOpen);
        }
        Ok(Admission {
            endpoint: self,
            began: now,
            reported: false,
        })
    }

    pub(super) fn breaker_state(&self) -> BreakerState {
        self.breaker.lock().state()
    }

    /// Whether a limit stops every request, also those that count as no pull.
    pub(super) fn is_stopped(&self) -> bool {
        let budget = self.budget.lock();
        budget.pause(false, Instant::now()).is_some()
    }

    /// Reads the rate-limit headers of an answer; returns the pulls that are left if they say so.
    pub(super) fn handle_headers(&self, headers: &HeaderMap) -> Option<u64> {
        let mut budget = self.budget.lock();
        budget.handle_headers(headers, Instant::now());
        budget.allowance()?.remaining
    }

    /// Notes a 429; returns which limit it is and when it ends.
    pub(super) fn handle_refusal(&self, counts: bool, headers: &HeaderMap, body: &[u8]) -> Pause {
        let limit = limit_of_refusal(counts, headers, body);
        self.pause(limit, retry_after(headers, SystemTime::now()))
    }

    /// Stops the requests that `limit` concerns.
    pub(super) fn pause(&self, limit: Limit, pause: Option<Duration>) -> Pause {
        let until = self
            .budget
            .lock()
            .handle_refusal(limit, pause, Instant::now());
        Pause { limit, until }
    }

    /// Returns what the registry last said about its limit, and the limit in force, if any; each
    /// with the other node that was told so, if it was another.
    pub(super) fn budget(&self) -> (Option<ToldBy<Allowance>>, Option<ToldBy<Pause>>) {
        let budget = self.budget.lock();
        let allowance = budget.allowance().cloned();
        let pause = budget.pause(true, Instant::now());
        (
            allowance.map(|allowance| (allowance, budget.allowance_told())),
            pause.map(|pause| (pause, budget.limit_told(pause.limit))),
        )
    }

    /// Returns what the registry has told this node itself.
    pub(super) fn own_budget(&self, now: Instant) -> OwnBudget {
        self.budget.lock().own(now)
    }

    /// Counts the refusals with 429 that this node got.
    pub(super) fn refusals(&self) -> u64 {
        self.budget.lock().refusals()
    }

    /// Whether the registry counts this node as `source`.
    pub(super) fn is_counted_as(&self, source: Option<&str>) -> bool {
        self.budget.lock().is_counted_as(source)
    }

    /// Takes in what the registry has told another node that it counts as the same.
    pub(super) fn hear_budget(&self, from: NodeId, word: &BudgetWord, now: Instant) {
        self.budget.lock().handle_word(from, word, now);
    }
}

/// An attempt that was admitted; dropping it unreported says nothing about the endpoint.
#[derive(Debug)]
pub(super) struct Admission<'a> {
    endpoint: &'a Endpoint,
    began: Instant,
    reported: bool,
}

impl Admission<'_> {
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Reports that the endpoint has answered.
    pub(super) fn handle_answer(mut self) {
        self.reported = true;
        self.endpoint.breaker.lock().handle_success();
    }

    /// Reports that the endpoint has failed.
    pub(super) fn handle_failure(mut self) {
        self.reported = true;
        self.endpoint.breaker.lock().handle_failure(Instant::now());
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if !self.reported {
            self.endpoint
                .breaker
                .lock()
                .handle_abandoned(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_below_the_prefix() {
        for (base, joined) in [
            ("https://r.io", "https://r.io/v2/a/b/tags/list?n=1"),
            (
                "https://r.io/mirror/",
                "https://r.io/mirror/v2/a/b/tags/list?n=1",
            ),
        ] {
            let endpoint = Endpoint::new(base.parse().expect("a URL"));
            assert_eq!(endpoint.join("a/b/tags/list", Some("n=1")).as_str(), joined);
        }
        let endpoint = Endpoint::new("https://r.io".parse().expect("a URL"));
        assert_eq!(
            endpoint.join("a/x", Some("")).as_str(),
            "https://r.io/v2/a/x"
        );
    }
}
