//! Who may read: what a rule says of a caller. Decisions only.
//!
//! Whose word it is that somebody is `alice`, or that a rule is for this repository, is not
//! decided here.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Begins the name of a client certificate in a rule; names of users have no colon.
const CERTIFICATE: &str = "cert:";

/// One of those whom a rule lets read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum Reader {
    /// Whoever may use the listener.
    Anyone,
    /// Who comes through the listener for this host.
    Local,
    /// Who has shown a password or a certificate, and everybody where none is asked for.
    Authenticated,
    /// The user of this name.
    User(String),
    /// Who has a certificate with this name.
    Certificate(String),
}

/// The text names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected anyone, local, authenticated, a user or cert: and a name, found `{text}`")]
pub struct InvalidReader {
    text: String,
}

impl FromStr for Reader {
    type Err = InvalidReader;

    fn from_str(text: &str) -> Result<Self, InvalidReader> {
        Ok(match text {
            "anyone" => Self::Anyone,
            "local" => Self::Local,
            "authenticated" => Self::Authenticated,
            _ => match text.strip_prefix(CERTIFICATE) {
                Some(name) if !name.is_empty() => Self::Certificate(name.to_owned()),
                None if is_user_name(text) => Self::User(text.to_owned()),
                _ => {
                    return Err(InvalidReader {
                        text: text.to_owned(),
                    });
                }
            },
        })
    }
}

impl TryFrom<String> for Reader {
    type Error = InvalidReader;

    fn try_from(text: String) -> Result<Self, InvalidReader> {
        text.parse()
    }
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::Local => f.write_str("local"),
            Self::Authenticated => f.write_str("authenticated"),
            Self::User(name) => f.write_str(name),
            Self::Certificate(name) => write!(f, "{CERTIFICATE}{name}"),
        }
    }
}

/// Whether a user can have this name: it is not empty, has no colon and no control character,
/// does not begin with `#`, and is no word with a meaning in rules.
pub fn is_user_name(text: &str) -> bool {
    let plain = |c: char| c != ':' && !c.is_control();
    let reserved = ["anyone", "local", "authenticated"].contains(&text);
    !text.is_empty() && !reserved && !text.starts_with('#') && text.chars().all(plain)
}

/// What is known of who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller<'a> {
    /// Came through the listener for this host.
    pub is_local: bool,
    /// Has shown who it is, or came where nobody is asked to.
    pub is_authenticated: bool,
    /// The user whose password was right.
    pub user: Option<&'a str>,
    /// The names in the verified certificate; may be empty.
    pub certificate: &'a [String],
}

/// Whether one of `readers` is the caller.
pub fn permits(readers: &[Reader], caller: &Caller<'_>) -> bool {
    readers.iter().any(|reader| match reader {
        Reader::Anyone => true,
        Reader::Local => caller.is_local,
        Reader::Authenticated => caller.is_authenticated,
        Reader::User(name) => caller.user == Some(name),
        Reader::Certificate(name) => caller.certificate.contains(name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(readers: &[&str], caller: &Caller<'_>) -> bool {
        let readers: Vec<Reader> = readers
            .iter()
            .map(|text| text.parse().expect("a reader"))
            .collect();
        permits(&readers, caller)
    }

    #[test]
    fn each_word_means_its_own_callers() {
        let names = ["build7".to_owned()];
        let nobody = Caller::default();
        let local = Caller {
            is_local: true,
            ..nobody
        };
        let open = Caller {
            is_authenticated: true,
            ..nobody
        };
        let alice = Caller {
            user: Some("alice"),
            ..open
        };
        let host = Caller {
            certificate: &names,
            ..open
        };
        let callers = [nobody, local, open, alice, host];
        for (reader, allowed) in [
            ("anyone", [true; 5]),
            ("local", [false, true, false, false, false]),
            ("authenticated", [false, false, true, true, true]),
            ("alice", [false, false, false, true, false]),
            ("cert:build7", [false, false, false, false, true]),
            // A user and a certificate of the same name are two.
            ("build7", [false; 5]),
            ("cert:alice", [false; 5]),
        ] {
            assert_eq!(
                callers.map(|caller| may(&[reader], &caller)),
                allowed,
                "{reader}"
            );
        }
        assert!(!may(&[], &alice), "nobody is named");
        assert!(may(&["bob", "alice"], &alice));
    }

    #[test]
    fn readers_are_written_as_they_are_read() {
        for text in [
            "anyone",
            "local",
            "authenticated",
            "alice",
            "a b@c",
            "cert:x:y",
        ] {
            assert_eq!(text.parse::<Reader>().expect(text).to_string(), text);
        }
        for text in ["", "cert:", "user:alice", "a\nb", "#x"] {
            text.parse::<Reader>().expect_err(text);
        }
    }
}
