//! How quantities are written in the configuration.
//!
//! Inside, a duration is a `Duration`; these adaptors are for the edges where a person reads or
//! writes it. They do not decide defaults or bounds.

/// Durations as text such as `5s`, `1h 30m` or `30d`: `#[serde(with = "units::duration")]`.
///
/// Also reads a bare `0`, which YAML makes a number. Works for `Duration` and
/// `Option<Duration>`; the latter needs `#[serde(default)]` beside it.
pub mod duration {
    use std::fmt;
    use std::time::Duration;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    /// A field that this adaptor reads and writes.
    pub trait Field: Sized {
        /// Wraps what was read.
        fn wrap(duration: Duration) -> Self;
        /// Returns what is to be written; `None` is written as null.
        fn unwrap(&self) -> Option<Duration>;
    }

    impl Field for Duration {
        fn wrap(duration: Duration) -> Self {
            duration
        }

        fn unwrap(&self) -> Option<Duration> {
            Some(*self)
        }
    }

    impl Field for Option<Duration> {
        fn wrap(duration: Duration) -> Self {
            Some(duration)
        }

        fn unwrap(&self) -> Option<Duration> {
            *self
        }
    }

    /// Writes a duration as text.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub fn serialize<F: Field, S: Serializer>(field: &F, serializer: S) -> Result<S::Ok, S::Error> {
        match field.unwrap() {
            Some(duration) => serializer.collect_str(&humantime::format_duration(duration)),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a duration from text.
    ///
    /// # Errors
    /// When the text is not numbers with units.
    pub fn deserialize<'de, F: Field, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<F, D::Error> {
        deserializer.deserialize_any(TextVisitor).map(F::wrap)
    }

    struct TextVisitor;

    impl Visitor<'_> for TextVisitor {
        type Value = Duration;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a duration with a unit, such as 5s, 90m or 30d")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
            humantime::parse_duration(text)
                .map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<Duration, E> {
            match number {
                0 => Ok(Duration::ZERO),
                _ => Err(E::invalid_value(
                    serde::de::Unexpected::Unsigned(number),
                    &self,
                )),
            }
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<Duration, E> {
            match number {
                0 => Ok(Duration::ZERO),
                _ => Err(E::invalid_value(
                    serde::de::Unexpected::Signed(number),
                    &self,
                )),
            }
        }
    }
}

/// Sizes as text such as `200GB`, `10GiB` or `512 MiB`: `#[serde(with = "units::size")]`.
///
/// `GB` is 10^9 bytes, `GiB` is 2^30; a bare number counts bytes. For `Option<ByteSize>`, which
/// needs `#[serde(default)]` on the struct.
pub mod size {
    use std::fmt;

    use bytesize::ByteSize;
    use serde::Deserializer;
    use serde::de::{Error, Unexpected, Visitor};

    /// Reads a size from text or a number of bytes; null is no size.
    ///
    /// # Errors
    /// When the text is not a number with a unit.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ByteSize>, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }

    struct SizeVisitor;

    impl Visitor<'_> for SizeVisitor {
        type Value = Option<ByteSize>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a size such as 200GB or 10GiB")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse()
                .map(Some)
                .map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
        }

        fn visit_u64<E: Error>(self, bytes: u64) -> Result<Self::Value, E> {
            Ok(Some(ByteSize(bytes)))
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Fields {
        #[serde(with = "super::duration")]
        plain: Duration,
        #[serde(with = "super::duration", default)]
        optional: Option<Duration>,
    }

    #[test]
    fn durations_are_read_with_units() {
        let fields: Fields = serde_saphyr::from_str("{plain: 1m 30s, optional: 0}").expect("valid");
        assert_eq!(fields.plain, Duration::from_secs(90));
        assert_eq!(fields.optional, Some(Duration::ZERO));
        let fields: Fields = serde_saphyr::from_str("{plain: 168h}").expect("valid");
        assert_eq!(
            (fields.plain.as_secs(), fields.optional),
            (168 * 3600, None)
        );
    }

    #[test]
    fn a_number_without_a_unit_is_refused() {
        let error = serde_saphyr::from_str::<Fields>("{plain: 5}").expect_err("no unit");
        assert!(error.to_string().contains("such as 5s"), "{error}");
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        let fields = Fields {
            plain: Duration::from_secs(3690),
            optional: None,
        };
        let text = serde_json::to_string(&fields).expect("serializes");
        assert_eq!(text, r#"{"plain":"1h 1m 30s","optional":null}"#);
    }
}
