//! Dialling the addresses that the configuration names: it is not known who is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use millrace_protocol::node_id::NodeId;

use super::reach::Resolved;
use super::status::JoinStatus;

/// Pause after the first failure; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest pause: how long a node may be up before one that waits to join finds it.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The configured addresses and what is known of them.
#[derive(Debug, Default)]
pub(super) struct Joining {
    resolved: Vec<Resolved>,
    targets: BTreeMap<SocketAddr, Target>,
}

#[derive(Debug)]
struct Target {
    next: Instant,
    failures: u32,
    dialling: bool,
    error: Option<String>,
    found: Found,
}

/// Who is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nobody,
    /// This node itself: an address of a service has all its nodes behind it.
    Myself,
    Node(NodeId),
}

impl Joining {
    /// Takes in what the resolver found.
    pub(super) fn resolve(&mut self, resolved: Vec<Resolved>, now: Instant) {
        let found = resolved.iter().flat_map(|entry| &entry.addresses);
        let found: BTreeSet<SocketAddr> = found.copied().collect();
        self.targets.retain(|address, _| found.contains(address));
        for address in found {
            self.targets.entry(address).or_insert(Target {
                next: now,
                failures: 0,
                dialling: false,
                error: None,
                found: Found::Nobody,
            });
        }
        self.resolved = resolved;
    }

    /// Hands out which addresses to dial now.
    pub(super) fn poll_dials(
        &mut self,
        now: Instant,
        is_connected: impl Fn(&NodeId) -> bool,
    ) -> Vec<SocketAddr> {
        let due = self.targets.iter_mut().filter(|(_, target)| {
            let wanted = match &target.found {
                Found::Nobody => true,
                Found::Myself => false,
                Found::Node(id) => !is_connected(id),
            };
            wanted && !target.dialling && target.next <= now
        });
        due.map(|(address, target)| {
            target.dialling = true;
            *address
        })
        .collect()
    }

    /// Takes in who was found at an address.
    pub(super) fn reached(&mut self, address: SocketAddr, id: NodeId, now: Instant) {
        if let Some(target) = self.targets.get_mut(&address) {
            target.dialling = false;
            target.failures = 0;
            target.error = None;
            target.found = Found::Node(id);
            // Nobody knows yet whether the connection lasts.
            target.next = now + FIRST_PAUSE;
        }
    }

    /// Takes in that an address leads to this node itself.
    pub(super) fn is_mine(&mut self, address: SocketAddr) {
        if let Some(target) = self.targets.get_mut(&address) {
            target.dialling = false;
            target.error = None;
            target.found = Found::Myself;
        }
    }

    /// Takes in that a dial has failed; returns whether that is news.
    pub(super) fn failed(&mut self, address: SocketAddr, error: String, now: Instant) -> bool {
        let Some(target) = self.targets.get_mut(&address) else {
            return false;
        };
        let pause = FIRST_PAUSE * (1 << target.failures.min(8));
        target.next = now + pause.min(LONGEST_PAUSE);
        target.failures = target.failures.saturating_add(1);
        target.dialling = false;
        let news = target.error.as_ref() != Some(&error);
        target.error = Some(error);
        news
    }

    /// Whether all addresses are known and lead to this node only.
    pub(super) fn leads_nowhere_else(&self) -> bool {
        let is_known = |entry: &Resolved| entry.failure.is_none();
        let resolved = !self.resolved.is_empty() && self.resolved.iter().all(is_known);
        let mut targets = self.targets.values();
        resolved && targets.all(|target| target.found == Found::Myself)
    }

    pub(super) fn status(&self) -> Vec<JoinStatus> {
        let status = |entry: &Resolved| {
            let addresses = entry.addresses.iter();
            let mut targets = addresses.filter_map(|address| self.targets.get(address));
            let error = || targets.find_map(|target| target.error.clone());
            JoinStatus {
                address: entry.join.to_string(),
                resolved: entry.addresses.clone(),
                error: entry.failure.clone().or_else(error),
            }
        };
        self.resolved.iter().map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn resolved(addresses: &[SocketAddr]) -> Vec<Resolved> {
        vec![Resolved {
            join: "build1:5050".parse().expect("an address"),
            addresses: addresses.to_vec(),
            failure: None,
        }]
    }

    #[test]
    fn an_address_is_dialled_until_somebody_is_there() {
        let (mut joining, now) = (Joining::default(), Instant::now());
        let id = NodeId::new([2; 32]);
        joining.resolve(resolved(&[address(1)]), now);
        assert_eq!(joining.poll_dials(now, |_| false), [address(1)]);
        assert_eq!(joining.poll_dials(now, |_| false), [], "under way");
        assert!(joining.failed(address(1), "refused".into(), now));
        assert_eq!(joining.poll_dials(now, |_| false), [], "not at once again");
        let later = now + FIRST_PAUSE;
        assert_eq!(joining.poll_dials(later, |_| false), [address(1)]);
        assert!(
            !joining.failed(address(1), "refused".into(), later),
            "no news"
        );
        let later = later + LONGEST_PAUSE;
        assert_eq!(joining.poll_dials(later, |_| false), [address(1)]);
        joining.reached(address(1), id, later);
        let later = later + LONGEST_PAUSE;
        assert_eq!(joining.poll_dials(later, |known| *known == id), []);
        assert_eq!(
            joining.poll_dials(later, |_| false),
            [address(1)],
            "it went away"
        );
    }

    #[test]
    fn a_node_that_is_told_to_join_itself_has_nobody_to_wait_for() {
        let (mut joining, now) = (Joining::default(), Instant::now());
        assert!(!joining.leads_nowhere_else(), "nothing is known yet");
        joining.resolve(resolved(&[address(1)]), now);
        assert!(!joining.leads_nowhere_else());
        joining.poll_dials(now, |_| false);
        joining.is_mine(address(1));
        assert!(joining.leads_nowhere_else());
        assert_eq!(joining.poll_dials(now + LONGEST_PAUSE, |_| false), []);
    }

    #[test]
    fn a_name_without_an_answer_keeps_no_address_from_being_dialled() {
        let (mut joining, now) = (Joining::default(), Instant::now());
        let mut entries = resolved(&[address(1)]);
        entries.push(Resolved {
            join: "build2:5050".parse().expect("an address"),
            addresses: Vec::new(),
            failure: Some("no answer".to_owned()),
        });
        joining.resolve(entries, now);
        assert_eq!(joining.poll_dials(now, |_| false), [address(1)]);
        joining.is_mine(address(1));
        assert!(!joining.leads_nowhere_else(), "the name may lead elsewhere");
    }

    #[test]
    fn what_is_resolved_no_more_is_not_dialled() {
        let (mut joining, now) = (Joining::default(), Instant::now());
        joining.resolve(resolved(&[address(1), address(2)]), now);
        joining.resolve(resolved(&[address(2)]), now);
        assert_eq!(joining.poll_dials(now, |_| false), [address(2)]);
    }
}
