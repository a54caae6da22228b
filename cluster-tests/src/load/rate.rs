//! Requests per second over kept connections, by wrk.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::component;
use crate::process;

/// What wrk may need beyond the time it was given, on a busy machine.
const GRACE: Duration = Duration::from_secs(30);

/// What wrk asks for.
#[derive(Clone, Debug)]
pub struct Load {
    /// The URL; of `https` any certificate is believed.
    pub url: String,
    /// Headers as they stand in a request.
    pub headers: Vec<String>,
    /// Connections at a time.
    pub connections: usize,
    /// How long, in whole seconds.
    pub duration: Duration,
}

/// What wrk got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Requests answered per second.
    pub requests: f64,
    /// Bytes read per second, heads included.
    pub bytes: f64,
}

impl Load {
    /// Asks again and again until the time is over.
    ///
    /// # Errors
    /// When wrk is missing, an answer is not a 2xx, or a connection breaks.
    pub async fn run(&self) -> Result<Rate> {
        let mut command = Command::new(component::find("wrk")?);
        command
            .args(["--threads", "1", "--timeout", "30s"])
            .args(["--connections", &self.connections.to_string()])
            .args(["--duration", &format!("{}s", self.duration.as_secs())]);
        for header in &self.headers {
            command.args(["--header", header]);
        }
        command.arg(&self.url);
        let report = process::run(&command, self.duration + GRACE).await?;
        Ok(Rate {
            requests: parse(&report)?,
            bytes: transferred(&report)?,
        })
    }
}

/// Asks for `path` over `connections` connections for `duration` (whole seconds) and returns the
/// requests answered per second.
///
/// # Errors
/// When wrk is missing, an answer is not a 2xx, or a connection breaks.
pub async fn requests_per_second(
    address: SocketAddr,
    path: &str,
    accept: &str,
    connections: usize,
    duration: Duration,
) -> Result<f64> {
    let load = Load {
        url: format!("http://{address}{path}"),
        headers: vec![format!("Accept: {accept}")],
        connections,
        duration,
    };
    Ok(load.run().await?.requests)
}

/// Reads the bytes per second, which wrk shows in powers of 1024.
fn transferred(report: &str) -> Result<f64> {
    let line = report
        .lines()
        .find_map(|line| line.trim().strip_prefix("Transfer/sec:"));
    let text = line.unwrap_or_default().trim();
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(0));
    let factor = match unit {
        "B" => 1.0,
        "KB" => 1024.0,
        "MB" => 1024.0 * 1024.0,
        "GB" => 1024.0 * 1024.0 * 1024.0,
        _ => f64::NAN,
    };
    let bytes = number.parse::<f64>().ok().map(|number| number * factor);
    bytes
        .filter(|bytes| bytes.is_finite())
        .with_context(|| format!("wrk reports no transfer:\n{report}"))
}

fn parse(report: &str) -> Result<f64> {
    for mark in ["Non-2xx", "Socket errors"] {
        ensure!(
            !report.contains(mark),
            "not every request was answered:\n{report}"
        );
    }
    let line = report
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    line.and_then(|number| number.trim().parse().ok())
        .with_context(|| format!("wrk reports no rate:\n{report}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let report = "  2 requests in 1.00s\nRequests/sec:  54321.50\nTransfer/sec:      9.66MB\n";
        assert_eq!(parse(report).expect("a rate"), 54321.5);
        assert_eq!(transferred(report).expect("a rate"), 9.66 * 1024.0 * 1024.0);
        transferred("Transfer/sec: 1.00XB\n").expect_err("an unknown unit");
        let failed = format!("  Non-2xx or 3xx responses: 7\n{report}");
        parse(&failed).expect_err("failed requests are no rate");
    }
}
