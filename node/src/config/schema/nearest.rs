//! Finds the known key that was probably meant.

use super::table::{KEYS, Key};

/// Returns the known key nearest to the unknown one at the end of `path`.
///
/// First a key of the same section, then the same word at another level with its full path, then
/// whatever in the whole table has the most similar path. Keys that are not read are not suggested.
pub(in crate::config) fn nearest(path: &[String]) -> Option<String> {
    let (word, section) = path.split_last()?;
    let word = word.to_lowercase();
    let read = || KEYS.iter().filter(|key| key.is_read());
    let last = |key: &Key| key.steps().last().unwrap_or_default();
    let sibling = read()
        .filter(|key| is_in(key, section) && !matches!(last(key), "*" | "[]"))
        .map(|key| (strsim::osa_distance(&word, last(key)), key))
        .filter(|(distance, key)| *distance <= tolerance(last(key)))
        .min_by_key(|(distance, _)| *distance);
    let elsewhere = || {
        let same = read().filter(|key| last(key) == word);
        same.min_by_key(|key| unlike(key, path))
    };
    let anywhere = || read().min_by_key(|key| unlike(key, path));
    sibling
        .map(|(_, key)| key)
        .or_else(elsewhere)
        .or_else(anywhere)
        .map(|key| concrete(key, path))
}

/// Typing mistakes that a word of this length forgives.
fn tolerance(word: &str) -> usize {
    (word.len() / 3).max(1)
}

/// Whether `key` stands directly in the section at `path`.
fn is_in(key: &Key, path: &[String]) -> bool {
    let steps: Vec<_> = key.steps().collect();
    let Some((_, section)) = steps.split_last() else {
        return false;
    };
    section.len() == path.len()
        && section.iter().zip(path).all(|(step, name)| match *step {
            "*" => true,
            "[]" => name.starts_with('['),
            step => step == name,
        })
}

/// How different the path of `key` is from `path`, in characters.
fn unlike(key: &Key, path: &[String]) -> usize {
    strsim::osa_distance(&concrete(key, path), &path.join("."))
}

/// Writes the path of `key` with the names that `path` has where it agrees with it.
fn concrete(key: &Key, path: &[String]) -> String {
    let mut written = String::new();
    let mut agrees = true;
    for (index, step) in key.steps().enumerate() {
        let name = path.get(index).filter(|_| agrees).map(String::as_str);
        let (text, dot) = match (step, name) {
            ("*", Some(name)) => (name, true),
            ("*", None) => ("<name>", true),
            ("[]", Some(name)) if name.starts_with('[') => (name, false),
            ("[]", _) => ("[]", false),
            (step, _) => (step, true),
        };
        agrees &= matches!(step, "*" | "[]") || name == Some(step);
        if dot && !written.is_empty() {
            written.push('.');
        }
        written.push_str(text);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found() {
        for (unknown, meant) in [
            ("http.adr", "http.addr"),
            ("htpp", "http"),
            ("HTTP", "http"),
            ("cache.max-size", "cache.max_size"),
            ("cache.maxsize", "cache.max_size"),
            ("http.max_size", "cache.max_size"),
            ("max_size", "cache.max_size"),
            ("addr", "http.addr"),
            ("upstreams.corp.usrname", "upstreams.corp.username"),
            (
                "upstreams.corp.rootdirectory",
                "storage.filesystem.rootdirectory",
            ),
            ("rootdirectory", "storage.filesystem.rootdirectory"),
            (
                "upstreams.corp.timeouts.conect",
                "upstreams.corp.timeouts.connect",
            ),
            ("upstreams.corp.connect", "upstreams.corp.timeouts.connect"),
            ("cache.tags.[2].mtach", "cache.tags[2].match"),
            ("storage.rootdirectory", "storage.filesystem.rootdirectory"),
            ("remoteurl", "proxy.remoteurl"),
        ] {
            let path: Vec<_> = unknown.split('.').map(str::to_owned).collect();
            assert_eq!(nearest(&path).as_deref(), Some(meant), "{unknown}");
        }
    }
}
