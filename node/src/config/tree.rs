//! The configuration as a tree that remembers where each value was written.
//!
//! YAML is parsed once into [`Node`]s; variables of the environment are put into the same tree.
//! Scalars keep the text as written, because only the key decides whether `0600` is a number. This
//! file knows neither which keys exist nor what their values mean.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// Levels of nesting that a file may have; the deepest known key has six.
const MAX_DEPTH: usize = 32;

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

/// Why a text is not one YAML document.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) line: u64,
    pub(super) message: String,
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

/// Parses `text` as one YAML document; an empty one is an empty mapping.
///
/// # Errors
/// When it is not YAML, has duplicate keys, several documents, or more nesting or aliases than a
/// configuration can need. The message has one line and repeats nothing but keys.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = serde_saphyr::options! {
        with_snippet: false,
        reject_unsupported_tags: true,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH },
    };
    match serde_saphyr::from_str_with_options::<Option<Raw>>(text, options) {
        Ok(Some(raw)) => Ok(raw.into_node(text)),
        Ok(None) => Ok(Node::map(Origin::Line(0))),
        Err(error) => Err(SyntaxError {
            line: error.location().map_or(0, |location| location.line()),
            message: one_line(&error),
        }),
    }
}

/// The parser's message without its position, which stands before every message of ours.
fn one_line(error: &serde_saphyr::Error) -> String {
    let message = error.without_snippet().to_string();
    let first = message.lines().next().unwrap_or_default();
    // What follows speaks of the position, or to programmers.
    let ends = [" at line ", ", set "];
    let end = ends.iter().filter_map(|end| first.find(end)).min();
    first[..end.unwrap_or(first.len())]
        .trim_end_matches([',', ':', ' '])
        .to_owned()
}

/// A value as the parser hands it over.
struct Raw {
    location: Location,
    value: RawValue,
}

enum RawValue {
    Null,
    /// Plain scalar that the parser made something else of; its text is cut from the source.
    Plain(String),
    Text(String),
    List(Vec<Raw>),
    Map(Vec<(Raw, Raw)>),
}

impl Raw {
    fn into_node(self, source: &str) -> Node {
        let origin = Origin::Line(self.location.line());
        let written = self.written(source);
        let value = match self.value {
            RawValue::Null => Value::Null,
            RawValue::Plain(parsed) => Value::Scalar(Scalar {
                text: written.map_or(parsed, str::to_owned),
                quoted: false,
            }),
            // A number too large for the parser, which hands a canonical text over instead.
            RawValue::Text(text)
                if written.is_some_and(|w| w != text && w.parse::<f64>().is_ok()) =>
            {
                Value::Scalar(Scalar {
                    text: written.map_or(text, str::to_owned),
                    quoted: false,
                })
            }
            RawValue::Text(text) => Value::Scalar(Scalar {
                quoted: written != Some(text.as_str()),
                text,
            }),
            RawValue::List(items) => Value::List(
                items
                    .into_iter()
                    .map(|item| item.into_node(source))
                    .collect(),
            ),
            RawValue::Map(entries) => {
                let entry = |(key, value): (Self, Self)| Entry {
                    origin: Origin::Line(key.location.line()),
                    key: key.into_key(source),
                    node: value.into_node(source),
                };
                Value::Map(entries.into_iter().map(entry).collect())
            }
        };
        Node { origin, value }
    }

    fn into_key(self, source: &str) -> String {
        match self.into_node(source).value {
            Value::Scalar(scalar) => scalar.text,
            _ => String::new(),
        }
    }

    /// The text of a scalar as it stands in the source.
    fn written<'a>(&self, source: &'a str) -> Option<&'a str> {
        let span = self.location.span();
        let start = usize::try_from(span.byte_offset()?).ok()?;
        let len = usize::try_from(span.byte_len()?).ok()?;
        source.get(start..start.checked_add(len)?).map(str::trim)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<RawValue>::deserialize(deserializer)?;
        Ok(Self {
            location: spanned.defined,
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawValue;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_none<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
        Ok(RawValue::Plain(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<RawValue, E> {
        Ok(RawValue::Plain(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<RawValue, E> {
        Ok(RawValue::Plain(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<RawValue, E> {
        Ok(RawValue::Plain(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<RawValue, E> {
        Ok(RawValue::Plain(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<RawValue, E> {
        Ok(RawValue::Plain(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<RawValue, E> {
        Ok(RawValue::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawValue, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(RawValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawValue, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(RawValue::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(yaml: &str, path: &[&str]) -> (String, bool, Origin) {
        let tree = parse(yaml).expect("valid YAML");
        let node = tree.find(path).expect("is there");
        match &node.value {
            Value::Scalar(scalar) => (scalar.text.clone(), scalar.quoted, node.origin.clone()),
            other => panic!("not a scalar: {other:?}"),
        }
    }

    #[test]
    fn scalars_keep_the_text_as_written() {
        for (yaml, text, quoted) in [
            ("a: 0600", "0600", false),
            ("a: on", "on", false),
            ("a: :5000", ":5000", false),
            ("a: 1e999", "1e999", false),
            (
                "a: 12345678901234567890123",
                "12345678901234567890123",
                false,
            ),
            ("a: 0.10 # note", "0.10", false),
            ("a: '0600'", "0600", true),
            ("a: \"on\"", "on", true),
            ("x: &x 007\na: *x", "007", false),
            ("a: 30s", "30s", false),
        ] {
            let (found, is_quoted, _) = scalar(yaml, &["a"]);
            assert_eq!((found.as_str(), is_quoted), (text, quoted), "{yaml}");
        }
    }

    #[test]
    fn a_file_may_say_more_in_comments_than_in_keys() {
        let comments = "# note\n  # note\n".repeat(500);
        let yaml = format!("{comments}a:\n{comments}  b: 1\n{comments}c: [\n{comments}2]\n");
        assert_eq!(scalar(&yaml, &["a", "b"]).0, "1");
        assert!(parse(&yaml).expect("valid YAML").find(&["c"]).is_some());
    }

    #[test]
    fn values_know_their_lines_also_through_merges() {
        let yaml = "base: &b\n  k: 1\nown:\n  <<: *b\n  l: 2\n";
        assert_eq!(scalar(yaml, &["own", "l"]).2, Origin::Line(5));
        assert_eq!(scalar(yaml, &["own", "k"]).2, Origin::Line(2));
    }

    #[test]
    fn an_empty_file_is_an_empty_mapping() {
        for yaml in ["", "# nothing\n", "---\n", "\u{feff}"] {
            assert!(parse(yaml).expect("valid").entries().is_empty(), "{yaml:?}");
        }
    }

    #[test]
    fn mistakes_have_a_line_and_no_excerpt() {
        for (yaml, line) in [
            ("a: 1\na: hunter2\n", 2),
            ("a: [hunter2\n", 2),
            ("a: b\n  hunter2: x\n", 2),
            ("a: \"hunter2\n", 2),
            ("a: *hunter\n", 1),
            ("a: 1\n---\nb: 2\n", 3),
        ] {
            let error = parse(yaml).expect_err(yaml);
            assert!(!error.message.contains("hunter2"), "{}", error.message);
            assert!(!error.message.contains('\n') && !error.message.is_empty());
            assert!(error.line.abs_diff(line) <= 1, "{yaml:?} {error:?}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = "[".repeat(100_000);
        parse(&deep).expect_err("too deep");
        let block: String = (0..200).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        parse(&block).expect_err("too deep");
    }

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
