//! The part of the status about the other nodes: members, and whose content is not to be had.

use millrace_protocol::node_id::NodeId;

use super::page::{Page, time};
use crate::cluster::{MemberStatus, Standing, State, Status};
use crate::peer::PeerStatus;
use crate::pull::HoldingsStatus;

/// Says who is a member, who is suspect, and what this node has to do with it.
pub(super) fn render_cluster(page: &mut Page, cluster: &Status) {
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
pub(super) fn render_unreachable(page: &mut Page, peers: &[PeerStatus]) {
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
pub(super) fn render_holdings(page: &mut Page, holdings: &HoldingsStatus) {
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
pub(super) fn render_distrusted(page: &mut Page, distrusted: &[NodeId]) {
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
