//! Files and variables made by chance: none of them panics, none makes a message tell a secret.

use proptest::prelude::*;

use super::load;

/// Pieces of real files, so that what is made of them gets past the parser.
const PIECES: &[&str] = &[
    "http:",
    "addr:",
    "upstreams:",
    "docker.io:",
    "cache:",
    "tags:",
    "- {match: x, policy: ttl}",
    "proxy:",
    "remoteurl:",
    "https://quay.io",
    "storage:",
    "filesystem:",
    "password:",
    "hunter2",
    ": ",
    "\n",
    "\n  ",
    "\n    ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
    "!!binary ",
    "| ",
    "'",
    "\"",
    "#",
    "~",
    "0x7f",
    ".inf",
    "1e999",
    "\t",
    "\u{feff}",
    "---\n",
    "? ",
    "é",
    "5s",
    "health:",
    "log:",
    "level:",
    "debug",
    "auth:",
];

fn assembled() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(PIECES), 0..40)
        .prop_map(|pieces| pieces.concat())
}

fn name() -> impl Strategy<Value = String> {
    "(MILLRACE|REGISTRY)_[A-Zé]{0,9}(_[A-Z]{0,9}){0,4}".prop_map(|name| {
        let words = [
            ("HT", "HTTP"),
            ("UP", "UPSTREAMS"),
            ("CA", "CACHE"),
            ("PR", "PROXY"),
        ];
        let word = words.iter().find(|(short, _)| name.contains(short));
        word.map_or(name.clone(), |(short, long)| name.replace(short, long))
    })
}

proptest! {
    #[test]
    fn no_file_panics_or_tells_a_secret(yaml in assembled()) {
        if let Err(error) = load(&yaml, &[]) {
            let message = error.to_string();
            prop_assert!(!message.is_empty());
            prop_assert!(!error.mistakes().is_empty());
        }
    }

    #[test]
    fn no_text_panics(yaml in any::<String>()) {
        drop(load(&yaml, &[]));
    }

    #[test]
    fn no_variable_panics(name in name(), value in assembled()) {
        drop(load("", &[(&name, &value)]));
    }

    #[test]
    fn a_password_is_never_repeated(
        password in "[a-z]{3}@hunter2[:#@ \\[\\]{}\"'é]{0,6}",
        key in proptest::sample::select(&["username", "password", "password_file", "url", "pass", "ca"][..]),
    ) {
        let quoted = serde_json::to_string(&password).expect("text");
        let proxied = format!("proxy:\n  remoteurl: https://q.io\n  {key}: {quoted}");
        let listed = format!("upstreams:\n  q.io:\n    max_requests: x\n    {key}: {quoted}");
        for yaml in [proxied, listed] {
            if let Err(error) = load(&yaml, &[]) {
                prop_assert!(!error.to_string().contains("hunter2"), "{}", error);
            }
        }
    }
}
