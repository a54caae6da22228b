//! Log and metrics of the process: how lines look, which are written, and the one registry.
//!
//! Lines go to standard error, as text or JSON. What a line or a metric says is decided by the
//! room that writes it; this room knows none of them. Its own are those about panics.

mod panics;
mod seldom;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde::de::Error as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

pub use seldom::Seldom;

/// Which lines are written.
///
/// One of `error`, `warn`, `info`, `debug`, `trace`, or directives such as
/// `info,millrace::pull=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(String);

impl Default for Level {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl Level {
    /// Returns the level as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The filter it means: a plain word is about Millrace, its libraries stay at `info` or above.
    fn directives(&self) -> String {
        match self.0.as_str() {
            word @ ("debug" | "trace") => {
                format!("info,millrace={word},millrace_protocol={word}")
            }
            directives => directives.to_owned(),
        }
    }
}

/// The text is neither a level nor directives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected error, warn, info, debug or directives such as info,millrace::pull=debug, found `{text}`"
)]
pub struct LevelError {
    text: String,
}

impl FromStr for Level {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        // The registry's logger knows further words for the same levels.
        let word = match text.to_ascii_lowercase().as_str() {
            "warning" => "warn".to_owned(),
            "panic" | "fatal" => "error".to_owned(),
            word @ ("error" | "warn" | "info" | "debug" | "trace" | "off") => word.to_owned(),
            _ => text.to_owned(),
        };
        let level = Self(word);
        // A word that is no level would be taken for the name of a module.
        let is_filter = level.0.contains('=')
            || matches!(
                level.0.as_str(),
                "error" | "warn" | "info" | "debug" | "trace" | "off"
            );
        if is_filter && EnvFilter::try_new(level.directives()).is_ok() {
            return Ok(level);
        }
        let text = text.to_owned();
        Err(LevelError { text })
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Formatter {
    /// For people; in colour on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    #[serde(alias = "logstash")]
    Json,
}

impl Formatter {
    /// Returns the word of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// The log was started before in this process.
#[derive(Debug, thiserror::Error)]
#[error("the log is already running")]
pub struct AlreadyRunning(#[source] tracing_subscriber::util::TryInitError);

/// Starts the log of this process, to standard error; panics are lines of it from then on.
///
/// # Errors
/// When something started it before.
pub fn start(level: &Level, formatter: Formatter) -> Result<(), AlreadyRunning> {
    use std::io::IsTerminal;

    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::new(level.directives()));
    match formatter {
        Formatter::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .finish()
            .try_init(),
        Formatter::Json => builder.json().flatten_event(true).finish().try_init(),
    }
    .map_err(AlreadyRunning)?;
    panics::follow();
    Ok(())
}

/// All metrics of the process; clones share them.
///
/// The rooms register theirs while the node is put together; after that it is only read.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
}

impl Metrics {
    /// The media type of [`Metrics::encode`]'s text.
    pub const CONTENT_TYPE: &'static str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Collects what `register` puts into the registry, which calls every other room once.
    ///
    /// Names are taken as they are: rooms begin theirs with `millrace_`.
    pub fn new(register: impl FnOnce(&mut Registry)) -> Self {
        let mut registry = Registry::default();
        panics::register(&mut registry);
        register(&mut registry);
        Self {
            registry: Arc::new(registry),
        }
    }

    /// Writes all metrics as OpenMetrics text.
    ///
    /// # Errors
    /// Only when a metric of a room cannot be written.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn levels_are_words_or_directives() {
        for (text, level) in [
            ("info", "info"),
            ("WARNING", "warn"),
            ("fatal", "error"),
            ("info,millrace::pull=debug", "info,millrace::pull=debug"),
        ] {
            assert_eq!(text.parse::<Level>().expect(text).as_str(), level);
        }
        for text in ["", "loud", "millrace=loud", "inof"] {
            text.parse::<Level>().expect_err(text);
        }
    }

    #[test]
    fn debug_is_about_millrace_only() {
        let level: Level = "debug".parse().expect("a level");
        assert!(level.directives().starts_with("info,millrace=debug"));
    }

    #[test]
    fn metrics_are_openmetrics_text() {
        let counter = Counter::<u64>::default();
        counter.inc();
        let metrics = Metrics::new(|registry| {
            registry.register("millrace_test_pulls", "Pulls", counter);
        });
        let text = metrics.encode().expect("writable");
        assert!(text.contains("millrace_test_pulls_total 1\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
