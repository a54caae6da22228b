//! The status as a person reads it, on a terminal of 100 columns.
//!
//! What is away, limited, slow or failing has its own lines; what is quiet is only counted or
//! named. Nothing is coloured: the text goes into mails and tickets as well. Here are the node
//! itself, its store and its transfers; `cluster` and `upstreams` have parts of their own, `page`
//! is what all write on.

mod cluster;
mod page;
mod upstreams;

use super::Report;
use crate::pull::{Source, TransferStatus};
use crate::registry::auth;
use crate::{store, tls};
use cluster::{render_cluster, render_distrusted, render_holdings, render_unreachable};
use page::{Page, bytes, date, percent, time};
use upstreams::render_upstreams;

/// Transfers that are listed; the oldest, because those are the slow ones.
const TRANSFERS: usize = 20;

/// Hexadecimal digits of a digest that tell it from others.
const DIGEST_DIGITS: usize = 12;

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
        "  {}  {progress:<32} {rate:>11}  {:>3} waiting  {}{}{}",
        digits.get(..DIGEST_DIGITS).unwrap_or(digits),
        transfer.waiters,
        time(transfer.age_seconds),
        if transfer.relayed { ", not kept" } else { "" },
        if transfer.queued { ", in a queue" } else { "" },
    ));
    let from = transfer.source.map_or("nobody yet", Source::as_str);
    page.line(format!(
        "      {} (from {from})",
        transfer.origins.join(" ")
    ));
}
