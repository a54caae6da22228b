//! The rules, one by one; fleets in virtual time are in `tests/membership`.

use super::*;

const ME: NodeId = NodeId::new([1; 32]);
const OTHER: NodeId = NodeId::new([2; 32]);

#[expect(clippy::disallowed_methods, reason = "some origin for the test's time")]
fn start() -> (Membership, Instant) {
    let now = Instant::now();
    (Membership::new(ME, 5, 55, now), now)
}

fn announcement(generation: u64, sequence: u64) -> Announcement {
    Announcement {
        generation,
        sequence,
        instance: 66,
        presence: Presence::Here,
        zone: "fra1".to_owned(),
        addresses: vec!["10.0.0.1:5050".parse().expect("an address")],
        weight: 1,
        version: "0.1.0".to_owned(),
        wire_version: 1,
        load: 0,
        placement: 0,
        denied: Vec::new(),
    }
}

fn leaving(generation: u64, sequence: u64) -> Announcement {
    Announcement {
        presence: Presence::Leaving,
        ..announcement(generation, sequence)
    }
}

#[test]
fn order_is_by_generation_then_sequence() {
    let (mut membership, now) = start();
    let mut hear = |announcement| membership.handle_announcement(OTHER, announcement, now);
    assert_eq!(hear(announcement(2, 9)), Heard::Fresh);
    assert_eq!(hear(announcement(2, 9)), Heard::Stale);
    assert_eq!(hear(announcement(1, 10)), Heard::Stale);
    assert_eq!(hear(announcement(3, 0)), Heard::Fresh);
}

#[test]
fn only_a_later_start_takes_back_a_leave() {
    let (mut membership, now) = start();
    membership.handle_announcement(OTHER, announcement(2, 9), now);
    membership.handle_announcement(OTHER, leaving(2, 10), now);
    assert_eq!(membership.members().count(), 0);
    assert!(
        membership.poll_dials(now + POLITE).is_empty(),
        "nobody looks for it"
    );
    membership.handle_announcement(OTHER, announcement(2, 8), now);
    assert_eq!(membership.members().count(), 0);
    membership.handle_announcement(OTHER, announcement(3, 0), now);
    assert_eq!(membership.members().count(), 1);
}

/// Lets `membership` hear nothing until whoever was a member is dead.
fn silence(membership: &mut Membership, now: &mut Instant) {
    let end = *now + DEAD_AFTER;
    while *now < end {
        *now += TICK_EVERY;
        membership.handle_tick(*now);
    }
    assert_eq!(membership.members().count(), 0);
}

#[test]
fn who_comes_back_from_the_dead_as_the_same_run_was_cut_off() {
    let (mut membership, mut now) = start();
    membership.handle_announcement(OTHER, announcement(2, 1), now);
    assert_eq!(membership.healed(), None, "a new member");
    silence(&mut membership, &mut now);
    membership.handle_announcement(OTHER, announcement(2, 9), now);
    assert_eq!(membership.healed(), Some(now));
    let healed = now;
    now += TICK_EVERY;
    membership.handle_announcement(OTHER, announcement(2, 10), now);
    assert_eq!(membership.healed(), Some(healed), "once");
    silence(&mut membership, &mut now);
    membership.handle_announcement(OTHER, announcement(3, 1), now);
    assert_eq!(membership.healed(), Some(healed), "it was started anew");
}

#[test]
fn who_was_stopped_for_long_was_cut_off_itself() {
    let (mut membership, now) = start();
    let stopped = now + DEAD_AFTER * 2;
    membership.handle_tick(stopped);
    assert_eq!(membership.healed(), None, "it was alone");
    membership.handle_announcement(OTHER, announcement(2, 1), stopped);
    membership.handle_tick(stopped + SUSPECT_AFTER);
    assert_eq!(membership.healed(), None, "nobody gave it up so soon");
    let awake = stopped + DEAD_AFTER * 2;
    membership.handle_tick(awake);
    assert_eq!(membership.healed(), Some(awake));
}

#[test]
fn nonsense_makes_no_member_and_leaves_what_is_known() {
    let (mut membership, now) = start();
    let mut nonsense = announcement(1, 1);
    nonsense.addresses.clear();
    let heard = membership.handle_announcement(OTHER, nonsense, now);
    assert_eq!(heard, Heard::Invalid(InvalidAnnouncement::Addresses));
    assert_eq!(membership.members().count(), 0);
    assert!(membership.poll_dials(now).is_empty());
}

#[test]
fn who_is_heard_as_two_runs_is_told_of_the_newer_one_now_and_then() {
    let (mut membership, now) = start();
    let mut hear = |generation, sequence, instance, after| {
        let mut announcement = announcement(generation, sequence);
        announcement.instance = instance;
        membership.handle_announcement(OTHER, announcement, now + after)
    };
    let at_once = Duration::ZERO;
    assert_eq!(hear(5, 9, 55, at_once), Heard::Fresh);
    assert_eq!(hear(5, 9, 55, at_once), Heard::Stale, "an echo");
    assert_eq!(hear(6, 1, 66, at_once), Heard::Fresh);
    assert_eq!(hear(5, 10, 55, at_once), Heard::Former);
    assert_eq!(hear(5, 11, 55, TELL_AGAIN / 2), Heard::Stale, "just told");
    assert_eq!(hear(5, 12, 55, TELL_AGAIN), Heard::Former);
    assert_eq!(
        hear(6, 1, 77, TELL_AGAIN * 2),
        Heard::Former,
        "as often started, and another"
    );
    assert_eq!(membership.last_heard(&OTHER), Some((6, 66)));
}

#[test]
fn a_node_that_lost_its_counter_takes_up_where_others_saw_it() {
    let (mut membership, _) = start();
    let mut known_as = |known| membership.handle_known_as(known);
    assert_eq!(known_as(None), Recognised::Fine);
    assert_eq!(known_as(Some((4, 1))), Recognised::Fine);
    assert_eq!(known_as(Some((5, 55))), Recognised::Fine);
    assert_eq!(known_as(Some((9, 1))), Recognised::Raised(10));
    for nonsense in [MAX_GENERATION, u64::MAX] {
        assert_eq!(known_as(Some((nonsense, 1))), Recognised::Implausible);
    }
    assert_eq!(known_as(Some((10, 55))), Recognised::Fine);
    assert_eq!(known_as(Some((10, 1))), Recognised::Raised(11));
    assert_eq!(membership.generation(), 11);
}

#[test]
fn what_is_remembered_is_bounded_and_members_stay() {
    let (mut membership, now) = start();
    membership.handle_announcement(OTHER, announcement(1, 1), now);
    for number in 0..3 * MAX_ACQUAINTANCES as u64 {
        let mut bytes = [9; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let id = NodeId::new(bytes);
        let addresses = announcement(1, 1).addresses;
        membership.handle_contacts(vec![Contact { id, addresses }], now);
    }
    assert_eq!(membership.acquaintances.len(), MAX_ACQUAINTANCES);
    assert!(membership.acquaintances.contains_key(&OTHER));
    assert!(membership.contacts().len() <= MAX_CONTACTS_TOLD);
    assert_eq!(membership.contacts()[0].id, OTHER, "members come first");
    assert!(membership.poll_dials(now + POLITE).len() <= MAX_DIALS);
}

fn contact() -> Contact {
    Contact {
        id: OTHER,
        addresses: announcement(1, 1).addresses,
    }
}

#[test]
fn whom_a_node_remembers_it_expects_while_both_may_be_starting() {
    let (mut membership, start) = start();
    let at = |millis| start + Duration::from_millis(millis);
    membership.handle_remembered(vec![contact()], start);
    assert_eq!(membership.poll_dials(at(0)), [contact()]);
    membership.handle_dial_failed(OTHER, at(0));
    assert!(!membership.is_settled(at(2_999)), "it may be starting");
    assert_eq!(membership.poll_dials(at(1_000)), [contact()], "soon again");
    membership.handle_dial_failed(OTHER, at(1_000));
    assert!(membership.is_settled(at(3_000)), "it is away");
}

#[test]
fn whom_others_name_needs_to_be_tried_once() {
    let (mut membership, start) = start();
    let later = start + QUIET_FOR;
    membership.handle_contacts(vec![contact()], start);
    assert!(!membership.is_settled(later), "not yet tried");
    assert_eq!(membership.poll_dials(start), [contact()]);
    membership.handle_dial_failed(OTHER, start);
    assert!(membership.is_settled(later));
    assert!(membership.poll_dials(start + SUSPECT_AFTER).is_empty());
}

#[test]
fn nobody_is_settled_while_others_are_still_coming() {
    let (mut membership, start) = start();
    let nearly = QUIET_FOR - Duration::from_millis(1);
    assert!(!membership.is_settled(start + nearly), "just started");
    assert!(membership.is_settled(start + QUIET_FOR));
    let met = start + QUIET_FOR;
    membership.handle_announcement(OTHER, announcement(1, 1), met);
    assert!(
        !membership.is_settled(met + nearly),
        "who knows who comes with it"
    );
    membership.handle_announcement(OTHER, announcement(1, 2), met + nearly);
    assert!(membership.is_settled(met + QUIET_FOR), "known already");
}

/// After this nobody waits for the other end to dial first.
const POLITE: Duration = Duration::from_secs(1);

#[test]
fn a_node_that_was_stopped_itself_blames_nobody_for_the_silence() {
    let (mut membership, now) = start();
    membership.handle_announcement(OTHER, announcement(1, 1), now);
    membership.handle_tick(now);
    let standing = |membership: &Membership| membership.member(&OTHER).map(|m| m.standing);
    let mut later = now + Duration::from_secs(60);
    membership.handle_tick(later);
    assert_eq!(standing(&membership), Some(Standing::Alive));
    while later < now + Duration::from_secs(60) + SUSPECT_AFTER {
        later += TICK_EVERY;
        membership.handle_tick(later);
    }
    let suspect = Standing::Suspect(Suspicion::Silent, later);
    assert_eq!(
        standing(&membership),
        Some(suspect),
        "what comes after counts"
    );
}

#[test]
fn only_what_others_decide_by_counts_as_change() {
    let (mut membership, now) = start();
    membership.handle_announcement(OTHER, announcement(1, 1), now);
    assert!(membership.poll_changed());
    let mut busy = announcement(1, 2);
    busy.load = 7;
    membership.handle_announcement(OTHER, busy, now);
    assert!(!membership.poll_changed());
    let mut heavier = announcement(1, 3);
    heavier.weight = 2;
    membership.handle_announcement(OTHER, heavier, now);
    assert!(membership.poll_changed());
}
