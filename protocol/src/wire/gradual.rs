//! Reads a sequence without believing its announced length.
//!
//! serde reserves up to 1 MiB for a sequence before it has seen an element, so a frame of a few
//! bytes could cost that much. Here memory grows with the elements that really arrive.
//! `#[serde(deserialize_with = "gradual::read")]` on a field.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

/// Reads a sequence element by element.
///
/// # Errors
/// Only the deserializer's own.
pub(super) fn read<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_seq(Gradual(PhantomData))
}

struct Gradual<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Gradual<T> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = sequence.next_element()? {
            elements.push(element);
        }
        Ok(elements)
    }
}
