//! Settings of the log: `log`.

use serde::Deserialize;

use crate::telemetry::{Formatter, Level};

/// Settings of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Which lines are written, default `info`.
    pub level: Level,
    /// How a line looks, default `text`.
    pub formatter: Formatter,
    /// The line for each request.
    pub accesslog: AccessLogConfig,
}

/// Settings of the line for each request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLogConfig {
    /// Whether requests are not logged, default false.
    pub disabled: bool,
}
