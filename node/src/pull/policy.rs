//! How long an answer for a tag may be used: rules by pattern, and what they mean for one record.
//!
//! Decisions only: the time is an argument.

use std::collections::HashMap;
use std::time::Duration;

use millrace_protocol::oci::{RepositoryName, Tag};
use wildmatch::WildMatch;

use crate::upstream::{TagPolicy, TagRule};

use super::config::Config;

/// What may be done with a known answer for one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// The tag never moves: a known answer is good for ever.
    Immutable,
    /// Fresh for this long, then checked.
    Ttl(Duration),
    /// Checked on every request, and never answered without the upstream.
    Always,
}

impl Policy {
    /// Returns how old an answer may be that another node gives.
    pub(super) fn max_age(self) -> Duration {
        match self {
            Self::Immutable => Duration::MAX,
            Self::Ttl(ttl) => ttl,
            Self::Always => Duration::ZERO,
        }
    }

    /// Returns the policy when a split of the cluster has healed so long ago: either side may have
    /// learnt since the other's last check that the tag moves, so what is older is due.
    pub(super) fn after_healing(self, healed: Option<Duration>) -> Self {
        match (self, healed) {
            (Self::Ttl(ttl), Some(healed)) => Self::Ttl(ttl.min(healed)),
            (policy, _) => policy,
        }
    }
}

/// What a record is worth now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// To be used as it is.
    Fresh,
    /// To be checked first.
    Stale {
        /// Whether it may go out when the check is slow.
        if_slow: bool,
        /// Whether it may go out when the upstream is away or limits the rate.
        if_away: bool,
    },
}

/// The rules of all upstreams.
#[derive(Debug)]
pub(super) struct Policies {
    by_upstream: HashMap<String, Vec<Rule>>,
    general: Vec<Rule>,
    stale_slow: Duration,
    stale_away: Duration,
}

#[derive(Debug)]
struct Rule {
    pattern: WildMatch,
    /// Whether the pattern is over `repository:tag` rather than the repository alone.
    with_tag: bool,
    policy: Policy,
}

impl Rule {
    fn new(rule: &TagRule, default_ttl: Duration) -> Self {
        Self {
            pattern: WildMatch::new(&rule.pattern),
            with_tag: rule.pattern.contains(':'),
            policy: match rule.policy {
                TagPolicy::Immutable => Policy::Immutable,
                TagPolicy::Ttl => Policy::Ttl(rule.ttl.unwrap_or(default_ttl)),
                TagPolicy::Always => Policy::Always,
            },
        }
    }

    fn matches(&self, repository: &RepositoryName, tag: &Tag) -> bool {
        if self.with_tag {
            self.pattern.matches(&format!("{repository}:{tag}"))
        } else {
            self.pattern.matches(repository.as_str())
        }
    }
}

impl Policies {
    pub(super) fn new(config: &Config) -> Self {
        let rules = |rules: &[TagRule]| {
            let rules = rules.iter();
            rules
                .map(|rule| Rule::new(rule, config.default_ttl))
                .collect()
        };
        Self {
            by_upstream: config
                .upstream_tags
                .iter()
                .map(|(name, tags)| (name.clone(), rules(tags)))
                .collect(),
            general: rules(&config.tags),
            stale_slow: config.stale_slow,
            stale_away: config.stale_away,
        }
    }

    /// Returns the policy of a tag: the upstream's first rule that matches, else the first
    /// general one, else a plain lifetime.
    pub(super) fn of(&self, upstream: &str, repository: &RepositoryName, tag: &Tag) -> Policy {
        let own = self.by_upstream.get(upstream).into_iter().flatten();
        let mut rules = own.chain(&self.general);
        let rule = rules.find(|rule| rule.matches(repository, tag));
        rule.map_or(Policy::Ttl(Config::DEFAULT_TTL), |rule| rule.policy)
    }

    /// Returns what a record of this age is worth.
    ///
    /// One whose age is not known, because the clock was set back, counts as just due.
    pub(super) fn freshness(&self, policy: Policy, age: Option<Duration>) -> Freshness {
        let age = age.unwrap_or(policy.max_age());
        match policy {
            Policy::Immutable => Freshness::Fresh,
            Policy::Ttl(ttl) if age < ttl => Freshness::Fresh,
            Policy::Ttl(_) => Freshness::Stale {
                if_slow: age <= self.stale_slow,
                if_away: age <= self.stale_away,
            },
            Policy::Always => Freshness::Stale {
                if_slow: false,
                if_away: false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pattern: &str, policy: TagPolicy, ttl: Option<u64>) -> TagRule {
        TagRule {
            pattern: pattern.into(),
            policy,
            ttl: ttl.map(Duration::from_secs),
        }
    }

    fn policies() -> Policies {
        let own = vec![
            rule("release/*", TagPolicy::Immutable, None),
            rule("*:nightly-*", TagPolicy::Always, None),
        ];
        Policies::new(&Config {
            upstream_tags: HashMap::from([("corp".to_owned(), own)]),
            tags: vec![rule("*", TagPolicy::Ttl, Some(60))],
            stale_slow: Duration::from_secs(3_600),
            stale_away: Duration::from_secs(7_200),
            ..Config::default()
        })
    }

    fn of(upstream: &str, repository: &str, tag: &str) -> Policy {
        let repository = repository.parse().expect("valid name");
        policies().of(upstream, &repository, &tag.parse().expect("valid tag"))
    }

    #[test]
    fn the_first_rule_of_the_upstream_wins() {
        let minute = Policy::Ttl(Duration::from_secs(60));
        assert_eq!(of("corp", "release/app", "nightly-1"), Policy::Immutable);
        assert_eq!(of("corp", "team/app", "nightly-1"), Policy::Always);
        assert_eq!(of("corp", "team/app", "latest"), minute);
        assert_eq!(of("docker.io", "release/app", "latest"), minute);
    }

    #[test]
    fn a_healed_split_makes_older_answers_due() {
        let ttl = |seconds| Policy::Ttl(Duration::from_secs(seconds));
        let healed = Some(Duration::from_secs(5));
        assert_eq!(ttl(60).after_healing(healed), ttl(5));
        assert_eq!(ttl(3).after_healing(healed), ttl(3));
        assert_eq!(ttl(60).after_healing(None), ttl(60));
        for policy in [Policy::Immutable, Policy::Always] {
            assert_eq!(policy.after_healing(healed), policy);
        }
    }

    #[test]
    fn what_is_not_known_to_be_young_is_checked() {
        let stale = |if_slow, if_away| Freshness::Stale { if_slow, if_away };
        let of = |policy| policies().freshness(policy, None);
        let ttl = |seconds| Policy::Ttl(Duration::from_secs(seconds));
        assert_eq!(of(ttl(60)), stale(true, true));
        assert_eq!(of(ttl(10_000)), stale(false, false));
        assert_eq!(of(Policy::Always), stale(false, false));
        assert_eq!(of(Policy::Immutable), Freshness::Fresh);
    }

    #[test]
    fn records_age() {
        let stale = |if_slow, if_away| Freshness::Stale { if_slow, if_away };
        let ttl = Policy::Ttl(Duration::from_secs(60));
        let of = |policy, age| policies().freshness(policy, Some(Duration::from_millis(age)));
        assert_eq!(of(ttl, 59_999), Freshness::Fresh);
        assert_eq!(of(ttl, 60_000), stale(true, true));
        assert_eq!(of(ttl, 3_600_001), stale(false, true));
        assert_eq!(of(ttl, 7_200_001), stale(false, false));
        let short = Policy::Ttl(Duration::from_millis(900));
        assert_eq!(of(short, 899), Freshness::Fresh);
        assert_eq!(of(short, 900), stale(true, true));
        assert_eq!(of(Policy::Ttl(Duration::ZERO), 0), stale(true, true));
        assert_eq!(of(Policy::Immutable, u64::MAX), Freshness::Fresh);
        assert_eq!(of(Policy::Always, 0), stale(false, false));
    }
}
