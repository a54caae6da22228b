//! The part of the status about the upstreams: who is away, limits, fails or is crowded.

use millrace_protocol::node_id::NodeId;

use super::page::{Page, time};
use crate::upstream::{BreakerState, EndpointStatus, Status};

/// Characters of an error that are shown; the first words say what happened.
const MESSAGE_CHARS: usize = 300;

/// Lists the upstreams of which there is something to say, then names the others.
pub(super) fn render_upstreams(page: &mut Page, upstreams: &[Status]) {
    let away = upstreams.iter().filter(|upstream| upstream.away).count();
    page.line("");
    page.line(match away {
        0 => format!("upstreams  {}", upstreams.len()),
        away => format!("upstreams  {}, {away} AWAY", upstreams.len()),
    });
    let (quiet, loud): (Vec<_>, Vec<_>) = upstreams.iter().partition(|up| is_quiet(up));
    for upstream in loud {
        render_upstream(page, upstream);
    }
    if !quiet.is_empty() {
        let names = quiet.iter().map(|upstream| upstream.name.as_str());
        page.wrapped("  ", std::iter::once("quiet:").chain(names));
    }
}

/// Whether there is nothing to say about it.
fn is_quiet(upstream: &Status) -> bool {
    let plain = |endpoint: &EndpointStatus| {
        endpoint.breaker == BreakerState::Closed
            && endpoint.allowance.is_none()
            && endpoint.limited.is_none()
    };
    !upstream.away
        && upstream.in_flight + upstream.lasting_downloads == 0
        && upstream.last_error.is_none()
        && upstream.endpoints.iter().all(plain)
}

fn render_upstream(page: &mut Page, upstream: &Status) {
    let full = upstream.in_flight >= upstream.max_requests;
    let lasting = match upstream.lasting_downloads {
        0 => String::new(),
        count => format!(" and {count} long downloads"),
    };
    page.line(format!(
        "  {:<24} {:<5} {} of {} requests{lasting}{}",
        upstream.name,
        if upstream.away { "AWAY" } else { "ok" },
        upstream.in_flight,
        upstream.max_requests,
        if full {
            ", MORE WAIT (max_requests)"
        } else {
            ""
        },
    ));
    for endpoint in &upstream.endpoints {
        if let Some(words) = endpoint_words(endpoint) {
            let line = format!("{} {words}", endpoint.url);
            page.wrapped("      ", line.split(' '));
        }
    }
    if let Some(error) = &upstream.last_error {
        let at = humantime::format_rfc3339_seconds(error.at);
        let message: String = error.message.chars().take(MESSAGE_CHARS).collect();
        let line = format!("last error {at}: {message}");
        page.wrapped("      ", line.split_whitespace());
    }
}

fn endpoint_words(endpoint: &EndpointStatus) -> Option<String> {
    let mut words = Vec::new();
    match endpoint.breaker {
        BreakerState::Closed => {}
        BreakerState::HalfOpen => words.push("is tried again".to_owned()),
        BreakerState::Open => words.push("is NOT ASKED for a while".to_owned()),
    }
    if let Some(limited) = &endpoint.limited {
        let left = time(limited.seconds_left);
        let told = told(limited.told.as_ref());
        words.push(format!("RATE LIMIT: no {} for {left}{told}", limited.limit));
    }
    if let Some(allowance) = &endpoint.allowance
        && let Some(remaining) = allowance.remaining
    {
        let limit = allowance
            .limit
            .map_or(String::new(), |limit| format!(" of {limit}"));
        let window = allowance.window_seconds.map(time);
        let window = window.map_or(String::new(), |window| format!(" in {window}"));
        let told = told(endpoint.allowance_told.as_ref());
        words.push(format!("{remaining}{limit} pulls left{window}{told}"));
    }
    (!words.is_empty()).then(|| words.join("; "))
}

/// Says whose word something is, if it is another node's.
fn told(node: Option<&NodeId>) -> String {
    node.map_or(String::new(), |node| format!(" (told to {})", node.short()))
}
