//! What readers see: views, statuses, metrics. Written by the driver alone.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use millrace_protocol::membership::{self, Membership, Suspicion};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::placement::{Placement, Seat};
use tokio::sync::watch;

use super::Budgets;
use super::driver::Me;
use super::metrics::Metrics;
use super::reach::OwnAddresses;
use super::status::{JoinStatus, MemberStatus, State, Status};
use super::view::{Member, Standing, View, seats};

/// What the driver publishes and the handles read.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) view: ArcSwap<View>,
    pub(super) status: ArcSwap<Status>,
    /// Number of the newest view.
    pub(super) changes: watch::Sender<u64>,
    /// Whether everybody who was to be waited for was heard or tried.
    pub(super) settled: watch::Sender<bool>,
    pub(super) load: AtomicU32,
    /// Where rate limits are known, once that is said.
    pub(super) budgets: OnceLock<Arc<dyn Budgets>>,
    pub(super) metrics: Metrics,
}

/// The writing end.
pub(super) struct Publisher {
    shared: Arc<Shared>,
    /// Whether the newest view shows what this node says of itself.
    current: bool,
}

impl Publisher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            current: false,
        }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub(super) fn load(&self) -> u32 {
        self.shared.load.load(Ordering::Relaxed)
    }

    pub(super) fn budgets(&self) -> Option<Arc<dyn Budgets>> {
        self.shared.budgets.get().cloned()
    }

    pub(super) fn fingerprint(&self) -> u64 {
        self.shared.view.load().placement().fingerprint()
    }

    pub(super) fn has_published(&self) -> bool {
        self.current
    }

    /// Notes that this node itself has changed.
    pub(super) fn renew(&mut self) {
        self.current = false;
    }

    /// Nobody needs to be waited for any more.
    pub(super) fn settle(&self) {
        self.shared
            .settled
            .send_if_modified(|settled| !std::mem::replace(settled, true));
    }

    /// Returns everybody who belongs to the cluster, this node among them.
    pub(super) fn members(
        &self,
        me: &Me,
        addresses: &OwnAddresses,
        membership: &Membership,
    ) -> Vec<Member> {
        let others = membership
            .members()
            .map(|(id, member)| member_of(id, member));
        let generation = membership.generation();
        others
            .chain([self.myself(me, addresses, generation)])
            .collect()
    }

    fn myself(&self, me: &Me, addresses: &OwnAddresses, generation: u64) -> Member {
        Member {
            id: me.id,
            generation,
            zone: me.zone.clone(),
            addresses: addresses.get().to_vec(),
            weight: me.weight,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wire_version: millrace_protocol::wire::frame::VERSION,
            load: self.load(),
            standing: Standing::Alive,
        }
    }

    /// Replaces the view.
    pub(super) async fn publish(&mut self, members: Vec<Member>, healed: Option<Instant>) {
        let before = self.shared.view.load_full();
        let placement = placement(before.placement(), &members).await;
        self.replace(&before, members, (placement, healed));
        self.current = true;
    }

    fn replace(
        &self,
        before: &View,
        members: Vec<Member>,
        (placement, healed): (Arc<Placement>, Option<Instant>),
    ) {
        let number = before.number() + 1;
        let me = (before.me(), before.zone());
        let view = View::with_placement(number, me, members, placement).healed_at(healed);
        log_changes(before, &view);
        let alive = 1 + view.live().count();
        let suspect = view.members().len().saturating_sub(alive);
        self.shared.metrics.members(alive, suspect);
        self.shared.metrics.views.inc();
        self.shared.view.store(Arc::new(view));
        self.shared.changes.send_replace(number);
    }

    /// Replaces the status.
    pub(super) fn publish_status(
        &self,
        membership: &Membership,
        join: Vec<JoinStatus>,
        connections: usize,
    ) {
        let view = self.shared.view.load();
        let now = Instant::now();
        let status = |member: &Member| match member.id == view.me() {
            true => MemberStatus {
                load: self.load(),
                ..member_status(&view, membership, member, now)
            },
            false => member_status(&view, membership, member, now),
        };
        let connections = i64::try_from(connections).unwrap_or(i64::MAX);
        self.shared.metrics.connections.set(connections);
        let before = self.shared.status.load();
        self.shared.status.store(Arc::new(Status {
            view: view.number(),
            placement: format!("{:016x}", view.placement().fingerprint()),
            members: view.members().iter().map(status).collect(),
            join,
            denied: membership.denied().iter().copied().collect(),
            ..(**before).clone()
        }));
    }

    /// Notes that the driver has ended. What is served until the process ends may still need the
    /// members.
    pub(super) fn end(&self, state: State) {
        let status = (**self.shared.status.load()).clone();
        self.shared
            .status
            .store(Arc::new(Status { state, ..status }));
        self.settle();
    }

    /// Notes that this node has no cluster any more.
    pub(super) fn end_alone(&self, me: &Me, addresses: &OwnAddresses) {
        let before = self.shared.view.load_full();
        let members = vec![self.myself(me, addresses, 0)];
        let placement = Arc::new(Placement::new(seats(&members)));
        self.replace(&before, members, (placement, before.healed()));
        let status = (**self.shared.status.load()).clone();
        let members = status.members.iter().filter(|member| member.id == me.id);
        self.shared.status.store(Arc::new(Status {
            view: before.number() + 1,
            members: members.cloned().collect(),
            ..status
        }));
        self.end(State::Duplicate);
    }
}

/// Returns the placement of these members; builds it off the runtime, and only if it is another.
async fn placement(before: &Arc<Placement>, members: &[Member]) -> Arc<Placement> {
    let mut wanted: Vec<Seat> = seats(members).filter(|seat| seat.weight > 0).collect();
    wanted.sort();
    if wanted == before.seats() {
        return Arc::clone(before);
    }
    let building = tokio::task::spawn_blocking(move || Placement::new(wanted));
    match building.await {
        Ok(placement) => Arc::new(placement),
        // Only when the runtime is shutting down.
        Err(_) => Arc::clone(before),
    }
}

fn member_of(id: NodeId, member: &membership::Member) -> Member {
    let announcement = member.announcement.clone();
    Member {
        id,
        generation: announcement.generation,
        zone: announcement.zone,
        addresses: announcement.addresses,
        weight: announcement.weight,
        version: announcement.version,
        wire_version: announcement.wire_version,
        load: announcement.load,
        standing: match member.standing {
            membership::Standing::Alive => Standing::Alive,
            membership::Standing::Suspect(..) => Standing::Suspect,
        },
    }
}

fn member_status(
    view: &View,
    membership: &Membership,
    member: &Member,
    now: Instant,
) -> MemberStatus {
    let heard = membership.member(&member.id);
    let suspicion = heard.and_then(|heard| match heard.standing {
        membership::Standing::Alive => None,
        membership::Standing::Suspect(Suspicion::Silent, _) => Some("silent"),
        membership::Standing::Suspect(Suspicion::Unreachable, _) => Some("connection lost"),
    });
    let fingerprint = view.placement().fingerprint();
    let myself = member.id == view.me();
    MemberStatus {
        id: member.id,
        zone: member.zone.clone(),
        addresses: member.addresses.clone(),
        version: member.version.clone(),
        generation: member.generation,
        weight: member.weight,
        share: view.placement().share(&member.id),
        load: heard.map_or(member.load, |heard| heard.announcement.load),
        standing: member.standing,
        suspicion,
        silent: heard.map_or(Duration::ZERO, |heard| heard.silence(now)),
        connected: myself || membership.is_connected(&member.id),
        agrees: myself || heard.is_some_and(|heard| heard.announcement.placement == fingerprint),
    }
}

/// Says who came, stumbled, came back or went, once.
fn log_changes(before: &View, after: &View) {
    let others = |view: &View| -> Vec<Member> {
        let me = view.me();
        let others = view.members().iter().filter(move |member| member.id != me);
        others.cloned().collect()
    };
    for member in others(after) {
        let known = before.member(&member.id).map(|known| known.standing);
        let address = first_address(&member);
        match (known, member.standing) {
            (None, _) => {
                tracing::info!(peer.id = %member.id, zone = member.zone, address, "member joined");
            }
            (Some(Standing::Alive), Standing::Suspect) => {
                tracing::warn!(peer.id = %member.id, address, "member is suspect");
            }
            (Some(Standing::Suspect), Standing::Alive) => {
                tracing::info!(peer.id = %member.id, address, "member is back");
            }
            _ => {}
        }
    }
    for member in others(before) {
        if after.member(&member.id).is_none() {
            tracing::info!(peer.id = %member.id, address = first_address(&member), "member gone");
        }
    }
}

fn first_address(member: &Member) -> String {
    let first: Option<&SocketAddr> = member.addresses.first();
    first.map_or_else(String::new, ToString::to_string)
}
