//! From the text of a file to the tree of the configuration.
//!
//! The parser turns `0600` into a number and `on` into a truth value; here every scalar is cut from the
//! source instead, with the line of its key. Messages repeat nothing but keys, for a value may be a
//! password. What the keys are is not known here.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::tree::{Entry, Node, Origin, Scalar, Value};

/// Levels of nesting that a file may have; the deepest known key has six.
const MAX_DEPTH: usize = 32;

/// Why a text is not one YAML document.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) line: u64,
    pub(super) message: String,
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
}
