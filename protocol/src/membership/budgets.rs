//! What members tell each other of their upstreams' rate limits.
//!
//! A registry counts an account wherever it is used from, and otherwise an address, which several
//! nodes may share. So each member tells what registries last said to itself, and whoever is
//! counted as the same believes it. Only names travel, no secrets. What a word means for a node's
//! own requests is the upstream room's.

use serde::{Deserialize, Serialize};

/// Largest message, in bytes: full in every respect it is smaller.
pub const MAX_BUDGETS_BYTES: usize = 8 * 1024;

/// Most upstreams that one member tells of.
pub const MAX_BUDGET_WORDS: usize = 12;

/// Longest name of an upstream, in bytes: a host name with a port fits.
const MAX_UPSTREAM_BYTES: usize = 260;

/// Longest credential id, in bytes.
const MAX_CREDENTIAL_BYTES: usize = 64;

/// Longest source, in bytes: an address or the id of an account.
pub const MAX_SOURCE_BYTES: usize = 128;

/// What one member has itself been told by registries, most urgent first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budgets {
    /// At most [`MAX_BUDGET_WORDS`].
    pub words: Vec<BudgetWord>,
}

/// What a registry last said to a member of its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetWord {
    /// Name of the configured upstream.
    pub upstream: String,
    /// Id of the credentials; no secret.
    pub credential: String,
    /// Whom the registry says that it counts.
    pub source: Option<String>,
    /// What it said of its limit of pulls.
    pub allowance: Option<AllowanceWord>,
    /// For how long nothing that counts as a pull may be asked, in milliseconds.
    pub pulls_wait_ms: Option<u64>,
    /// For how long nothing at all may be asked, in milliseconds.
    pub requests_wait_ms: Option<u64>,
}

/// What a registry said of its limit of pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowanceWord {
    /// How long ago, in milliseconds.
    pub age_ms: u64,
    /// Pulls allowed in the window.
    pub limit: Option<u64>,
    /// Pulls left in the window.
    pub remaining: Option<u64>,
    /// Length of the window.
    pub window_seconds: Option<u64>,
}

/// Why a message is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many words, or a name that is empty, too long or not printable")]
pub struct InvalidBudgets;

impl Budgets {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`InvalidBudgets`] when no healthy node says such a thing.
    pub fn check(&self) -> Result<(), InvalidBudgets> {
        let is_sound =
            self.words.len() <= MAX_BUDGET_WORDS && self.words.iter().all(BudgetWord::is_sound);
        if is_sound {
            Ok(())
        } else {
            Err(InvalidBudgets)
        }
    }
}

impl BudgetWord {
    /// Whether its names are short and printable, so that others believe it.
    pub fn is_sound(&self) -> bool {
        let is_name = |text: &str, most: usize| {
            (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let source = self.source.as_ref();
        is_name(&self.upstream, MAX_UPSTREAM_BYTES)
            && is_name(&self.credential, MAX_CREDENTIAL_BYTES)
            && source.is_none_or(|source| is_name(source, MAX_SOURCE_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{decode, encode};
    use super::*;

    fn word() -> BudgetWord {
        BudgetWord {
            upstream: "docker.io".to_owned(),
            credential: "anonymous".to_owned(),
            source: Some("192.0.2.1".to_owned()),
            allowance: Some(AllowanceWord {
                age_ms: 1_500,
                limit: Some(100),
                remaining: Some(0),
                window_seconds: Some(21_600),
            }),
            pulls_wait_ms: Some(60_000),
            requests_wait_ms: None,
        }
    }

    #[test]
    fn the_format_never_changes() {
        let budgets = Budgets {
            words: vec![word()],
        };
        let bytes = encode(&budgets);
        let expected = "010109646f636b65722e696f09616e6f6e796d6f757301093139322e302e322e3101fbdc0501640100\
                        01fb605401fb60ea00";
        assert_eq!(hex::encode(&bytes), expected);
        assert_eq!(decode(&bytes), Ok(budgets));
    }

    #[test]
    fn nonsense_is_refused() {
        let change = |change: fn(&mut BudgetWord)| {
            let mut word = word();
            change(&mut word);
            Budgets { words: vec![word] }.check()
        };
        assert_eq!(change(|_| ()), Ok(()));
        assert_eq!(change(|word| word.source = None), Ok(()));
        assert_eq!(change(|word| word.upstream.clear()), Err(InvalidBudgets));
        assert_eq!(
            change(|word| word.credential = "a b".into()),
            Err(InvalidBudgets)
        );
        assert_eq!(
            change(|word| word.source = Some("\u{1b}".into())),
            Err(InvalidBudgets)
        );
        assert_eq!(
            change(|word| word.source = Some("s".repeat(129))),
            Err(InvalidBudgets)
        );
        let words = vec![word(); MAX_BUDGET_WORDS + 1];
        assert_eq!(Budgets { words }.check(), Err(InvalidBudgets));
    }

    #[test]
    fn a_full_message_fits_into_its_bound() {
        let most = Some(u64::MAX);
        let full = BudgetWord {
            upstream: "u".repeat(MAX_UPSTREAM_BYTES),
            credential: "c".repeat(MAX_CREDENTIAL_BYTES),
            source: Some("s".repeat(MAX_SOURCE_BYTES)),
            allowance: Some(AllowanceWord {
                age_ms: u64::MAX,
                limit: most,
                remaining: most,
                window_seconds: most,
            }),
            pulls_wait_ms: most,
            requests_wait_ms: most,
        };
        let budgets = Budgets {
            words: vec![full; MAX_BUDGET_WORDS],
        };
        budgets.check().expect("sound");
        let bytes = encode(&budgets).len();
        assert!(bytes <= MAX_BUDGETS_BYTES, "{bytes}");
    }
}
