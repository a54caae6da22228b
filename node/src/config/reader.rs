//! Reads typed structs from the tree, so that each mistake knows where it was made.
//!
//! An implementation of serde's `Deserializer` over [`Node`]. The type that is asked for decides
//! what a plain scalar is: `0600` is text for a `String` and a number for a `u64`. A key whose
//! value is null counts as absent.

use std::fmt;

use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::tree::{Entry, Node, Origin, Scalar, Value};

/// Reads a `T` from `node`.
///
/// # Errors
/// The first mistake, with its path below `node`.
pub(super) fn read<'a, T: Deserialize<'a>>(node: &'a Node) -> Result<T, ReadError> {
    T::deserialize(Reader { node }).map_err(|error| error.at(node))
}

/// A value that is not what its key needs.
#[derive(Debug)]
pub(super) struct ReadError {
    pub(super) message: String,
    pub(super) origin: Option<Origin>,
    /// Keys and `[index]`es from the innermost outwards.
    steps: Vec<String>,
}

impl ReadError {
    /// Returns the path of the key below `root`, with dots.
    pub(super) fn path(&self, root: &str) -> String {
        let mut path = root.to_owned();
        for step in self.steps.iter().rev() {
            if !path.is_empty() && !step.starts_with('[') {
                path.push('.');
            }
            path.push_str(step);
        }
        path
    }

    fn at(mut self, node: &Node) -> Self {
        if self.origin.is_none() {
            self.origin = Some(node.origin.clone());
            self.message = redacted(self.message, node);
        }
        self
    }

    fn below(mut self, step: String, node: &Node) -> Self {
        self = self.at(node);
        self.steps.push(step);
        self
    }
}

/// Messages of serde repeat the value: not when it may be an address with a password.
fn redacted(message: String, node: &Node) -> String {
    match &node.value {
        Value::Scalar(scalar) if scalar.text.contains('@') => message
            .replace(&format!("{:?}", scalar.text), "\"***\"")
            .replace(&scalar.text, "***"),
        _ => message,
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            message: message.to_string(),
            origin: None,
            steps: Vec::new(),
        }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {}", Found(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format_args!("needs the key {field}"))
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        let expected = expected.join(", ");
        Self::custom(format_args!("`{found}` is not one of {expected}"))
    }
}

/// What was found, in the words of a person who writes YAML.
struct Found<'a>(Unexpected<'a>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Str(text) => write!(f, "`{text}`"),
            Unexpected::Unsigned(number) => write!(f, "`{number}`"),
            Unexpected::Signed(number) => write!(f, "`{number}`"),
            Unexpected::Unit => f.write_str("nothing"),
            Unexpected::Seq => f.write_str("a list"),
            Unexpected::Map => f.write_str("a mapping"),
            other => other.fmt(f),
        }
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
}

impl<'a> Reader<'a> {
    fn found(self) -> Unexpected<'a> {
        match &self.node.value {
            Value::Null => Unexpected::Unit,
            Value::Scalar(scalar) => Unexpected::Str(&scalar.text),
            Value::List(_) => Unexpected::Seq,
            Value::Map(_) => Unexpected::Map,
        }
    }

    fn mistake<T>(self, expected: &'static str) -> Result<T, ReadError> {
        Err(de::Error::invalid_type(self.found(), &expected))
    }

    fn number<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Scalar(scalar) => match (scalar.text.parse::<u64>(), scalar.text.parse::<i64>())
            {
                (Ok(number), _) => visitor.visit_u64(number),
                (_, Ok(number)) => visitor.visit_i64(number),
                _ => self.mistake("a whole number"),
            },
            _ => self.mistake("a whole number"),
        }
    }

    fn list<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let items: &[Node] = match &self.node.value {
            Value::List(items) => items,
            Value::Null => &[],
            _ => return self.mistake("a list"),
        };
        visitor.visit_seq(Items {
            items: items.iter().enumerate(),
        })
    }

    fn mapping<V: Visitor<'a>>(self, visitor: V, skip_null: bool) -> Result<V::Value, ReadError> {
        if !matches!(self.node.value, Value::Map(_) | Value::Null) {
            return self.mistake("a mapping");
        }
        visitor.visit_map(Entries {
            entries: self.node.entries().iter(),
            current: None,
            skip_null,
        })
    }
}

impl<'a> Deserializer<'a> for Reader<'a> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Scalar(Scalar { text, quoted: true }) => visitor.visit_borrowed_str(text),
            Value::Scalar(Scalar { text, .. }) => {
                match (text.parse::<u64>(), text.parse::<i64>()) {
                    (Ok(number), _) => visitor.visit_u64(number),
                    (_, Ok(number)) => visitor.visit_i64(number),
                    _ => visitor.visit_borrowed_str(text),
                }
            }
            Value::List(_) => self.list(visitor),
            Value::Map(_) => self.mapping(visitor, false),
        }
    }

    fn deserialize_bool<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let Value::Scalar(scalar) = &self.node.value else {
            return self.mistake("true or false");
        };
        // The words of YAML 1.1, which the Docker registry reads too.
        match scalar.text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => visitor.visit_bool(true),
            "false" | "no" | "off" | "n" => visitor.visit_bool(false),
            _ => self.mistake("true or false"),
        }
    }

    fn deserialize_i64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.number(visitor)
    }

    fn deserialize_u8<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.number(visitor)
    }

    fn deserialize_u16<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.number(visitor)
    }

    fn deserialize_u32<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.number(visitor)
    }

    fn deserialize_u64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.number(visitor)
    }

    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Scalar(scalar) => visitor.visit_borrowed_str(&scalar.text),
            _ => self.mistake("text"),
        }
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.mapping(visitor, false)
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.mapping(visitor, true)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Scalar(scalar) => {
                let text: StrDeserializer<'_, ReadError> = scalar.text.as_str().into_deserializer();
                visitor.visit_enum(text)
            }
            _ => Err(de::Error::invalid_type(
                self.found(),
                &format!("one of {}", variants.join(", ")).as_str(),
            )),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        i8 i16 i32 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
        identifier
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'a> de::SeqAccess<'a> for Items<'a> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'a>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        let Some((index, node)) = self.items.next() else {
            return Ok(None);
        };
        let item = seed.deserialize(Reader { node });
        item.map(Some)
            .map_err(|error| error.below(format!("[{index}]"), node))
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, Entry>,
    current: Option<&'a Entry>,
    skip_null: bool,
}

impl<'a> de::MapAccess<'a> for Entries<'a> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        let skip_null = self.skip_null;
        self.current = self
            .entries
            .find(|entry| !skip_null || !matches!(entry.node.value, Value::Null));
        let Some(entry) = self.current else {
            return Ok(None);
        };
        let key: StrDeserializer<'_, ReadError> = entry.key.as_str().into_deserializer();
        seed.deserialize(key)
            .map(Some)
            .map_err(|error| error.below(entry.key.clone(), &entry.node))
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let Some(entry) = self.current else {
            return Err(de::Error::custom("value without a key"));
        };
        seed.deserialize(Reader { node: &entry.node })
            .map_err(|error| error.below(entry.key.clone(), &entry.node))
    }
}
