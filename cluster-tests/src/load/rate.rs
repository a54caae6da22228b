//! Requests per second over kept connections, by wrk.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::component;
use crate::process;

/// What wrk may need beyond the time it was given, on a busy machine.
const GRACE: Duration = Duration::from_secs(30);

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
    let mut command = Command::new(component::find("wrk")?);
    command
        .args(["--threads", "1", "--timeout", "30s"])
        .args(["--connections", &connections.to_string()])
        .args(["--duration", &format!("{}s", duration.as_secs())])
        .args(["--header", &format!("Accept: {accept}")])
        .arg(format!("http://{address}{path}"));
    let report = process::run(&command, duration + GRACE).await?;
    parse(&report)
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
        let failed = format!("  Non-2xx or 3xx responses: 7\n{report}");
        parse(&failed).expect_err("failed requests are no rate");
    }
}
