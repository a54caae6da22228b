//! The configuration as a tree that remembers where each value was written.
//!
//! `yaml` makes it of a file; variables of the environment are put into the same tree. Scalars keep
//! the text as written, because only the key decides whether `0600` is a number. This file knows
//! neither which keys exist nor what their values mean.

use std::sync::Arc;

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A line of the file, counted from 1; 0 when it is not known.
    Line(u64),
    /// The variable of the environment with this name.
    Variable(Arc<str>),
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A scalar; a quoted one is never anything but text.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) quoted: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Where the key was written; its value may begin on a later line.
    pub(super) origin: Origin,
    pub(super) node: Node,
}

impl Node {
    pub(super) fn map(origin: Origin) -> Self {
        let value = Value::Map(Vec::new());
        Self { origin, value }
    }

    /// Gives everything in the value the origin of the node.
    pub(super) fn moved(self) -> Self {
        let below = |node: Self| Self {
            origin: self.origin.clone(),
            value: node.value,
        };
        let value = match self.value {
            Value::List(items) => {
                Value::List(items.into_iter().map(|item| below(item).moved()).collect())
            }
            Value::Map(entries) => {
                let entry = |entry: Entry| Entry {
                    key: entry.key,
                    origin: self.origin.clone(),
                    node: below(entry.node).moved(),
                };
                Value::Map(entries.into_iter().map(entry).collect())
            }
            scalar => scalar,
        };
        Self {
            origin: self.origin,
            value,
        }
    }

    /// Returns the entries of a mapping; everything else has none.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Returns the value at `path`, if it is there and not null.
    pub(super) fn find(&self, path: &[&str]) -> Option<&Self> {
        let Some((first, rest)) = path.split_first() else {
            return (!matches!(self.value, Value::Null)).then_some(self);
        };
        let entry = self.entries().iter().find(|entry| entry.key == *first)?;
        entry.node.find(rest)
    }

    /// Returns the text of the scalar at `path`, if it is there and not empty.
    pub(super) fn find_text(&self, path: &[&str]) -> Option<&str> {
        match &self.find(path)?.value {
            Value::Scalar(scalar) if !scalar.text.is_empty() => Some(&scalar.text),
            _ => None,
        }
    }

    /// Puts `node` at `path`, in place of what was there; what is not a mapping on the way becomes one.
    pub(super) fn set(&mut self, path: &[&str], node: Self) {
        let Some((first, rest)) = path.split_first() else {
            *self = node;
            return;
        };
        if !matches!(self.value, Value::Map(_)) {
            *self = Self::map(node.origin.clone());
        }
        let Value::Map(entries) = &mut self.value else {
            return;
        };
        let index = entries.iter().position(|entry| entry.key == *first);
        let index = index.unwrap_or_else(|| {
            entries.push(Entry {
                key: (*first).to_owned(),
                origin: node.origin.clone(),
                node: Self::map(node.origin.clone()),
            });
            entries.len() - 1
        });
        if rest.is_empty() {
            entries[index].origin = node.origin.clone();
        }
        entries[index].node.set(rest, node);
    }

    /// Takes the entry at the top away.
    pub(super) fn remove(&mut self, key: &str) -> Option<Self> {
        let Value::Map(entries) = &mut self.value else {
            return None;
        };
        let index = entries.iter().position(|entry| entry.key == key)?;
        Some(entries.remove(index).node)
    }

    /// Finds where the dotted `path` was written, or the nearest thing above it that was.
    ///
    /// Keys may contain dots themselves (`upstreams.docker.io.url`): the tree decides.
    pub(super) fn locate(&self, path: &str) -> &Origin {
        let after = |key: &str| -> Option<&str> {
            let rest = path.strip_prefix(key)?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
        };
        if let Value::List(items) = &self.value
            && let Some((index, rest)) = path.strip_prefix('[').and_then(|p| p.split_once(']'))
            && let Some(item) = index.parse().ok().and_then(|i: usize| items.get(i))
        {
            return item.locate(rest.trim_start_matches('.'));
        }
        let found = self
            .entries()
            .iter()
            .find_map(|e| Some((e, after(&e.key)?)));
        match found {
            Some((entry, "")) => &entry.origin,
            Some((entry, rest)) => match entry.node.entries() {
                [] if !rest.starts_with('[') => &entry.origin,
                _ => entry.node.locate(rest.trim_start_matches('.')),
            },
            None => &self.origin,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::yaml::parse;
    use super::*;

    #[test]
    fn a_path_with_dots_in_its_keys_is_found() {
        let yaml =
            "upstreams:\n  docker.io:\n    fallback:\n      - a\n      - b\n  docker:\n    x: 1\n";
        let tree = parse(yaml).expect("valid");
        for (path, line) in [
            ("upstreams.docker.io.fallback[1]", 5),
            ("upstreams.docker.io.fallback", 3),
            ("upstreams.docker.io.url", 3),
            ("upstreams.docker.x", 7),
        ] {
            assert_eq!(tree.locate(path), &Origin::Line(line), "{path}");
        }
    }

    fn text(origin: &Origin, text: &str) -> Node {
        let value = Value::Scalar(Scalar {
            text: text.to_owned(),
            quoted: true,
        });
        let origin = origin.clone();
        Node { origin, value }
    }

    #[test]
    fn set_replaces_and_creates() {
        let mut tree = parse("a: 1\nb: {c: 2}").expect("valid");
        let origin = Origin::Variable("V".into());
        tree.set(&["a", "x"], text(&origin, "y"));
        tree.set(&["b", "d"], text(&origin, "z"));
        assert_eq!(tree.find_text(&["a", "x"]), Some("y"));
        assert_eq!(tree.find_text(&["b", "c"]), Some("2"));
        assert_eq!(tree.find(&["b", "d"]).map(|n| &n.origin), Some(&origin));
    }
}
