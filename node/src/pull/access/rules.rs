//! Which rule is for a repository, and whom it lets read.
//!
//! Decisions only. Without a rule, content that was fetched anonymously is for whoever may use the
//! listener; content that was fetched with this node's credentials is for this host and for those
//! who have shown who they are.

use std::collections::HashMap;

use millrace_protocol::access::{Caller, Reader, permits};
use wildmatch::WildMatch;

use crate::store::Provenance;
use crate::upstream::AccessRule;

use super::super::origin::Origin;

/// Readers of what anybody could fetch.
const PUBLIC: &[Reader] = &[Reader::Anyone];

/// Readers of what was fetched with credentials.
const PRIVATE: &[Reader] = &[Reader::Local, Reader::Authenticated];

/// The rules of all upstreams.
#[derive(Debug)]
pub(super) struct Rules {
    by_upstream: HashMap<String, Vec<Rule>>,
}

#[derive(Debug)]
struct Rule {
    pattern: WildMatch,
    readers: Vec<Reader>,
}

impl Rules {
    pub(super) fn new(rules: &HashMap<String, Vec<AccessRule>>) -> Self {
        let compiled = |rule: &AccessRule| Rule {
            pattern: WildMatch::new(&rule.pattern),
            readers: rule.read.clone(),
        };
        let by_upstream = rules.iter().map(|(name, rules)| {
            let rules = rules.iter().map(compiled);
            (name.clone(), rules.collect())
        });
        Self {
            by_upstream: by_upstream.collect(),
        }
    }

    /// Whether some rule keeps somebody out.
    pub(super) fn restrict(&self) -> bool {
        let mut rules = self.by_upstream.values().flatten();
        rules.any(|rule| !rule.readers.contains(&Reader::Anyone))
    }

    /// Whether the caller may read what is fetched from this origin.
    pub(super) fn permit(&self, origin: &Origin, caller: &Caller<'_>) -> bool {
        let upstream = &origin.upstream;
        let is_anonymous = upstream.credential().is_anonymous();
        let repository = origin.repository.as_str();
        permits(
            self.readers(upstream.name(), repository, is_anonymous),
            caller,
        )
    }

    /// Whether whoever may use a listener may read what was fetched as this.
    pub(super) fn is_open(&self, provenance: &Provenance) -> bool {
        let Provenance {
            upstream,
            repository,
            credential,
        } = provenance;
        let is_anonymous = credential == "anonymous";
        self.readers(upstream, repository.as_str(), is_anonymous)
            .contains(&Reader::Anyone)
    }

    /// Returns the readers by the first rule that matches.
    pub(super) fn readers(
        &self,
        upstream: &str,
        repository: &str,
        is_anonymous: bool,
    ) -> &[Reader] {
        let mut rules = self.by_upstream.get(upstream).into_iter().flatten();
        match rules.find(|rule| rule.pattern.matches(repository)) {
            Some(rule) => &rule.readers,
            None if is_anonymous => PUBLIC,
            None => PRIVATE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(upstream: &str, repository: &str, credential: &str) -> Provenance {
        Provenance {
            upstream: upstream.to_owned(),
            repository: repository.parse().expect("a name"),
            credential: credential.to_owned(),
        }
    }

    fn rules(of_corp: &[(&str, &[Reader])]) -> Rules {
        let rule = |(pattern, read): &(&str, &[Reader])| AccessRule {
            pattern: (*pattern).to_owned(),
            read: read.to_vec(),
        };
        Rules::new(&HashMap::from([(
            "corp".to_owned(),
            of_corp.iter().map(rule).collect(),
        )]))
    }

    #[test]
    fn without_a_rule_the_credentials_decide() {
        let rules = rules(&[]);
        assert!(!rules.restrict());
        assert!(rules.is_open(&provenance("corp", "a", "anonymous")));
        assert!(!rules.is_open(&provenance("corp", "a", "1234")));
        assert_eq!(rules.readers("corp", "a", false), PRIVATE);
        assert_eq!(rules.readers("unknown", "a", true), PUBLIC);
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let alice = Reader::User("alice".to_owned());
        let rules = rules(&[
            ("team-a/open", &[Reader::Anyone]),
            ("team-a/*", std::slice::from_ref(&alice)),
        ]);
        assert!(rules.restrict());
        assert_eq!(rules.readers("corp", "team-a/x/y", true), [alice]);
        assert_eq!(rules.readers("corp", "team-b/x", true), PUBLIC);
        assert_eq!(rules.readers("other", "team-a/x", true), PUBLIC);
        assert!(rules.is_open(&provenance("corp", "team-a/open", "1234")));
        assert!(!rules.is_open(&provenance("corp", "team-a/x", "anonymous")));
    }
}
