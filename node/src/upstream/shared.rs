//! What this node's budgets and those of other nodes have to do with each other.
//!
//! A registry counts an account wherever it is used from; without one it counts addresses, and
//! what it calls this node's is in its answers. A word counts here if it is about the same. What
//! is heard is never told on: whoever was told by the registry says so itself.

use std::time::Duration;

use millrace_protocol::membership::{AllowanceWord, BudgetWord, MAX_BUDGET_WORDS};
use millrace_protocol::node_id::NodeId;
use tokio::time::Instant;

use super::{Inner, Upstream, Upstreams};

impl Upstreams {
    /// Returns what registries have told this node itself, limits in force first; at most
    /// [`MAX_BUDGET_WORDS`].
    pub fn budget_words(&self) -> Vec<BudgetWord> {
        let now = Instant::now();
        let words = self.all.iter();
        let mut words: Vec<_> = words
            .filter_map(|upstream| upstream.inner.budget_word(now))
            .filter(BudgetWord::is_sound)
            .collect();
        let is_calm =
            |word: &BudgetWord| word.pulls_wait_ms.is_none() && word.requests_wait_ms.is_none();
        words.sort_by_key(is_calm);
        words.truncate(MAX_BUDGET_WORDS);
        words
    }

    /// Counts the refusals with 429 so far: another count means news.
    pub fn budget_refusals(&self) -> u64 {
        let all = self.all.iter();
        all.map(|upstream| upstream.inner.endpoints[0].refusals())
            .sum()
    }

    /// Takes in what registries have told another node.
    pub fn hear_budgets(&self, from: NodeId, words: &[BudgetWord]) {
        let now = Instant::now();
        for word in words {
            if let Some(upstream) = self.by_name.get(&word.upstream)
                && upstream.name() == word.upstream
            {
                upstream.inner.hear_budget(from, word, now);
            }
        }
    }
}

impl Upstream {
    /// Returns whom the registry says that it counts when this node asks, if it has said so.
    pub fn source(&self) -> Option<String> {
        self.inner.endpoints[0].own_budget(Instant::now()).source
    }

    /// Whether a limit that a node with the same credential ran into, which the registry counts as
    /// `source`, is this node's as well.
    pub fn shares_limits(&self, source: Option<&str>) -> bool {
        self.inner.shares_limits(source)
    }
}

impl Inner {
    fn shares_limits(&self, source: Option<&str>) -> bool {
        !self.credential.is_anonymous() || self.endpoints[0].is_counted_as(source)
    }

    fn budget_word(&self, now: Instant) -> Option<BudgetWord> {
        let own = self.endpoints[0].own_budget(now);
        if own.allowance.is_none() && own.pulls_wait.is_none() && own.requests_wait.is_none() {
            return None;
        }
        let allowance = own.allowance.map(|(allowance, age)| AllowanceWord {
            age_ms: millis(age),
            limit: allowance.limit,
            remaining: allowance.remaining,
            window_seconds: allowance.window_seconds,
        });
        Some(BudgetWord {
            upstream: self.name.as_ref().to_owned(),
            credential: self.credential.as_str().to_owned(),
            source: own.source,
            allowance,
            pulls_wait_ms: own.pulls_wait.map(millis),
            requests_wait_ms: own.requests_wait.map(millis),
        })
    }

    fn hear_budget(&self, from: NodeId, word: &BudgetWord, now: Instant) {
        let is_same = word.credential == self.credential.as_str();
        if is_same && self.shares_limits(word.source.as_deref()) {
            self.endpoints[0].hear_budget(from, word, now);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
