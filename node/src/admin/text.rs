//! The status as a person reads it, on a terminal of 100 columns.
//!
//! What is away, limited, slow or failing has its own lines; what is quiet is only counted or
//! named. Nothing is coloured: the text goes into mails and tickets as well.

use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use millrace_protocol::node_id::NodeId;

use super::Report;
use crate::cluster::{self, MemberStatus, Standing, State};
use crate::peer::PeerStatus;
use crate::pull::{HoldingsStatus, Source, TransferStatus};
use crate::registry::auth;
use crate::upstream::{self, BreakerState, EndpointStatus};
use crate::{store, tls};

/// Columns of a terminal on which no line wraps.
const COLUMNS: usize = 100;

/// Transfers that are listed; the oldest, because those are the slow ones.
const TRANSFERS: usize = 20;

/// Hexadecimal digits of a digest that tell it from others.
const DIGEST_DIGITS: usize = 12;

/// Characters of an error that are shown; the first words say what happened.
const MESSAGE_CHARS: usize = 300;

/// Renders `report`; ends with a line break, no line is longer than 100 characters.
pub(super) fn render(report: &Report) -> String {
    let mut page = Page::default();
    let node = &report.node;
    let started = humantime::format_rfc3339_seconds(node.started);
    page.line(format!(
        "millrace {}: {}, up {}, since {started}",
        node.version,
        report.phase,
        time(node.uptime.as_secs()),
    ));
    for listener in &node.listeners {
        page.line(format!(
            "{:<10} {}: {}",
            listener.name, listener.address, listener.admits
        ));
    }
    if let Some(tls) = &node.tls {
        render_tls(&mut page, tls);
    }
    if let Some(htpasswd) = &node.htpasswd {
        render_users(&mut page, htpasswd);
    }
    if let Some(store) = &node.store {
        render_store(&mut page, store);
    }
    if let Some(cluster) = &node.cluster {
        render_cluster(&mut page, cluster);
    }
    if let Some(peers) = &node.peers {
        render_unreachable(&mut page, &peers.peers);
    }
    if let Some(holdings) = node.pull.as_ref().and_then(|pull| pull.holdings.as_ref()) {
        render_holdings(&mut page, holdings);
    }
    if let Some(pull) = &node.pull {
        render_distrusted(&mut page, &pull.distrusted);
        render_transfers(&mut page, &pull.transfers);
    }
    render_upstreams(&mut page, &node.upstreams);
    page.text
}

/// Lines that fit.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, line: impl AsRef<str>) {
        // A name or an error may hold anything; a control character is not shown.
        let mut shown = line.as_ref().trim_end().chars().map(|c| match c {
            c if c.is_control() => '?',
            c => c,
        });
        self.text.extend(shown.by_ref().take(COLUMNS - 1));
        match (shown.next(), shown.next()) {
            (Some(last), None) => self.text.push(last),
            (Some(_), Some(_)) => self.text.push('…'),
            (None, _) => {}
        }
        self.text.push('\n');
    }

    /// Writes words after `indent` on as many lines as they need.
    fn wrapped<'a>(&mut self, indent: &str, words: impl Iterator<Item = &'a str>) {
        let mut line = indent.to_owned();
        for word in words {
            let is_first = line.len() == indent.len();
            if !is_first && line.chars().count() + word.chars().count() + 1 > COLUMNS {
                self.line(&line);
                line = indent.to_owned();
            } else if !is_first {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(line);
    }
}

fn date(unix_seconds: u64) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds))
}

fn render_users(page: &mut Page, htpasswd: &auth::Status) {
    page.line(format!(
        "users      {} in {}",
        htpasswd.users,
        htpasswd.path.display()
    ));
    if let Some(refused) = &htpasswd.refused {
        page.line(
            "           THE FILE HAS CHANGED AND CANNOT BE USED; the users stay as they were",
        );
        let line = format!("{}: {}", date(refused.at_unix_seconds), refused.message);
        page.wrapped("           ", line.split_whitespace());
    }
}

fn render_tls(page: &mut Page, tls: &tls::Status) {
    let end = date(tls.not_after_unix_seconds);
    page.line(format!("tls        the certificate is valid until {end}"));
    if let Some(refused) = &tls.refused {
        page.line("           THE FILES HAVE CHANGED AND CANNOT BE USED; the old ones stay");
        let line = format!("{}: {}", date(refused.at_unix_seconds), refused.message);
        page.wrapped("           ", line.split_whitespace());
    }
}

fn render_store(page: &mut Page, store: &store::Status) {
    let taken = store.blob_bytes + store.growing_bytes + store.suspended_bytes;
    let free = store.free_bytes.map_or("unknown".to_owned(), bytes);
    page.line("");
    page.line(format!("store      {}", store.root.display()));
    page.line(format!(
        "           {} blobs, {} of {} taken{}; {free} free on the disk, {} stay free",
        store.blobs,
        bytes(taken),
        bytes(store.max_bytes),
        percent(taken, store.max_bytes),
        bytes(store.min_free_bytes),
    ));
    if store.growing_bytes + store.suspended_bytes > 0 {
        page.line(format!(
            "           of that {} growing, {} suspended",
            bytes(store.growing_bytes),
            bytes(store.suspended_bytes),
        ));
    }
    if store.spared_bytes > 0 {
        page.line(format!(
            "           {} that no other node was found to have",
            bytes(store.spared_bytes),
        ));
    }
    if store
        .free_bytes
        .is_some_and(|free| free < store.min_free_bytes)
    {
        page.line("           THE DISK IS FULL: new blobs are passed on without being kept");
    }
    if !store.index_ready {
        page.line("           the index is being read; content is served meanwhile");
    }
}

fn render_cluster(page: &mut Page, cluster: &cluster::Status) {
    page.line("");
    let standing = |member: &&MemberStatus| member.standing == Standing::Suspect;
    let suspects = cluster.members.iter().filter(standing).count();
    let suspects = match suspects {
        0 => String::new(),
        count => format!(", {count} SUSPECT"),
    };
    page.line(format!(
        "cluster    {} members{suspects}; this node is {} in zone {} at {}",
        cluster.members.len(),
        cluster.id.short(),
        cluster.zone,
        cluster.listen,
    ));
    match cluster.state {
        State::Running => {}
        State::Left => page.line("           it has left"),
        State::Duplicate => {
            page.line("           IT TAKES NO PART: another node uses its identity, see the log")
        }
    }
    for member in &cluster.members {
        page.line(member_line(member));
    }
    for join in &cluster.join {
        if let Some(error) = &join.error {
            page.line(format!("           cannot join {}: {error}", join.address));
        }
    }
    for denied in &cluster.denied {
        page.line(format!("           {} is kept out", denied.short()));
    }
}

/// Names the peers whose content cannot be reached, for example because UDP is blocked.
fn render_unreachable(page: &mut Page, peers: &[PeerStatus]) {
    for peer in peers {
        if let Some(unreachable) = &peer.unreachable {
            let since = time(unreachable.since_seconds);
            let (id, reason) = (peer.id.short(), &unreachable.reason);
            page.line(format!(
                "           NO CONTENT FROM {id} for {since}: {reason}"
            ));
        }
    }
}

/// Says how many members need not be asked what they hold.
fn render_holdings(page: &mut Page, holdings: &HoldingsStatus) {
    if holdings.members > 0 {
        page.line(format!(
            "           {} of {} others have told what they hold: {} contents",
            holdings.in_sync, holdings.members, holdings.contents,
        ));
    }
    for id in &holdings.too_much {
        let id = id.short();
        page.line(format!(
            "           {id} HOLDS TOO MUCH to keep in mind, it is asked"
        ));
    }
}

/// Names the members that are not asked because of what they have said before.
fn render_distrusted(page: &mut Page, distrusted: &[NodeId]) {
    for id in distrusted {
        let id = id.short();
        page.line(format!(
            "           NO CONTENT IS TAKEN FROM {id}: it gave wrong content, or stalled"
        ));
    }
}

fn member_line(member: &MemberStatus) -> String {
    let address = member.addresses.first();
    let address = address.map_or_else(|| "no address yet".to_owned(), ToString::to_string);
    let mut line = format!(
        "  {} {:<21} {:<10} {:>5.1} %",
        member.id.short(),
        address,
        member.zone,
        member.share * 100.0,
    );
    if let Some(suspicion) = member.suspicion {
        line.push_str(&format!(
            ", SUSPECT: {suspicion} for {}",
            time(member.silent.as_secs())
        ));
    }
    if member.load > 0 {
        line.push_str(&format!(", {} on their way", member.load));
    }
    if !member.connected {
        line.push_str(", not connected");
    }
    if !member.agrees {
        line.push_str(", sees other members");
    }
    line
}

fn render_transfers(page: &mut Page, transfers: &[TransferStatus]) {
    let mut oldest: Vec<_> = transfers.iter().collect();
    oldest.sort_by_key(|transfer| std::cmp::Reverse(transfer.age_seconds));
    page.line("");
    page.line(format!("transfers  {}", transfers.len()));
    for transfer in oldest.iter().take(TRANSFERS) {
        render_transfer(page, transfer);
    }
    if oldest.len() > TRANSFERS {
        page.line(format!("  and {} younger ones", oldest.len() - TRANSFERS));
    }
}

fn render_transfer(page: &mut Page, transfer: &TransferStatus) {
    let digest = transfer.digest.to_string();
    let digits = digest.split_once(':').map_or("", |(_, digits)| digits);
    let received = transfer.received_bytes;
    let progress = match transfer.size_bytes {
        Some(size) => format!(
            "{} of {}{}",
            bytes(received),
            bytes(size),
            percent(received, size)
        ),
        None => format!("{} of unknown size", bytes(received)),
    };
    let rate = match received.checked_div(transfer.age_seconds) {
        Some(rate) => format!("{}/s", bytes(rate)),
        None => "just begun".to_owned(),
    };
    page.line(format!(
        "  {}  {progress:<32} {rate:>11}  {:>3} waiting  {}{}",
        digits.get(..DIGEST_DIGITS).unwrap_or(digits),
        transfer.waiters,
        time(transfer.age_seconds),
        if transfer.relayed { ", not kept" } else { "" },
    ));
    let from = transfer.source.map_or("nobody yet", Source::as_str);
    page.line(format!(
        "      {} (from {from})",
        transfer.origins.join(" ")
    ));
}

fn render_upstreams(page: &mut Page, upstreams: &[upstream::Status]) {
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
fn is_quiet(upstream: &upstream::Status) -> bool {
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

fn render_upstream(page: &mut Page, upstream: &upstream::Status) {
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

fn bytes(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}

fn percent(part: u64, whole: u64) -> String {
    let percent = (u128::from(part) * 100).checked_div(u128::from(whole));
    percent.map_or(String::new(), |percent| format!(" ({percent} %)"))
}

fn time(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}
