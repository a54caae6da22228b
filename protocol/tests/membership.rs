//! The rules of membership, among 10 and 100 nodes, in virtual time.

use std::time::Duration;

#[path = "membership/fleet.rs"]
mod fleet;

use fleet::Fleet;

/// Sizes and seeds that each scenario runs with; a failure names them.
const RUNS: &[(usize, u64)] = &[(10, 1), (10, 2), (10, 3), (10, 4), (100, 5)];

/// Within this after a failure nobody asks the failed node any more.
const NOT_ASKED: Duration = Duration::from_secs(4);

/// Within this after a failure the failed node has no seat any more.
const NOT_SEATED: Duration = Duration::from_secs(15);

/// Within this after the first one noticed, all believe the same.
const AGREED: Duration = Duration::from_secs(5);

/// Enough for everybody to have been dialled again.
const BACK: Duration = Duration::from_secs(15);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn all_agree(fleet: &Fleet) -> bool {
    fleet.beliefs().len() == 1
}

fn others(size: usize, index: usize) -> impl Iterator<Item = usize> {
    (0..size).filter(move |&other| other != index)
}

/// Runs a scenario with every size and seed, from a cluster that has found together.
fn each(scenario: impl Fn(&mut Fleet, usize)) {
    for &(size, seed) in RUNS {
        println!("{size} nodes, seed {seed}");
        let mut fleet = Fleet::new(size, seed);
        let joined = fleet.until(AGREED, |fleet| fleet.agrees_on(0..size));
        println!("joined after {joined:?}");
        fleet.run(seconds(8));
        assert!(fleet.agrees_on(0..size), "a cluster at rest stays together");
        scenario(&mut fleet, size);
    }
}

/// What must become of a node that has just failed in whatever way.
fn is_dropped(fleet: &mut Fleet, failed: usize) {
    let start = fleet.now;
    let left = |fleet: &Fleet, limit: Duration| limit - (fleet.now - start);
    fleet.until(NOT_ASKED, |fleet| {
        !all_agree(fleet) || !fleet.is_asked(failed)
    });
    let noticed = fleet.now;
    fleet.until(left(fleet, NOT_ASKED), |fleet| !fleet.is_asked(failed));
    assert!(fleet.is_seated(failed), "a stumble moves nothing");
    println!("nobody asks it after {:?}", fleet.now - start);
    fleet.until(AGREED, all_agree);
    assert!(fleet.now - noticed <= AGREED);
    fleet.until(left(fleet, NOT_SEATED), |fleet| {
        !all_agree(fleet) || !fleet.is_seated(failed)
    });
    let noticed = fleet.now;
    fleet.until(left(fleet, NOT_SEATED), |fleet| !fleet.is_seated(failed));
    println!("it has no seat after {:?}", fleet.now - start);
    assert!(fleet.now - noticed <= AGREED);
}

#[test]
fn a_crashed_node_is_asked_no_more_then_loses_its_seat() {
    each(|fleet, size| {
        fleet.crash(3);
        is_dropped(fleet, 3);
        assert!(fleet.agrees_on(others(size, 3)));
        fleet.start(3);
        fleet.until(AGREED, |fleet| fleet.agrees_on(0..size));
    });
}

#[test]
fn a_hung_node_is_dropped_alike_and_comes_back_by_itself() {
    each(|fleet, size| {
        fleet.stop(4);
        is_dropped(fleet, 4);
        fleet.run(seconds(30));
        fleet.resume(4);
        fleet.until(BACK, |fleet| fleet.agrees_on(0..size));
    });
}

#[test]
fn a_short_pause_costs_no_seat() {
    each(|fleet, size| {
        fleet.stop(2);
        fleet.until(NOT_ASKED, |fleet| !fleet.is_asked(2));
        fleet.run(seconds(3));
        assert!(fleet.is_seated(2));
        fleet.resume(2);
        fleet.run(Duration::from_millis(1));
        let mine = fleet.belief(2);
        assert_eq!(
            mine.values().filter(|alive| **alive).count(),
            size,
            "it blames nobody: {mine:?}"
        );
        fleet.until(seconds(2), |fleet| fleet.agrees_on(0..size));
    });
}

#[test]
fn one_that_leaves_is_gone_at_once_and_its_next_start_is_welcome() {
    each(|fleet, size| {
        fleet.leave(5);
        fleet.until(seconds(1), |fleet| fleet.agrees_on(others(size, 5)));
        fleet.run(seconds(2));
        assert!(
            fleet.agrees_on(others(size, 5)),
            "old words do not bring it back"
        );
        fleet.start(5);
        fleet.until(AGREED, |fleet| fleet.agrees_on(0..size));
    });
}

#[test]
fn a_crashed_node_that_is_back_at_once_is_the_same_member() {
    each(|fleet, size| {
        fleet.crash(6);
        fleet.run(Duration::from_millis(500));
        fleet.start(6);
        for _ in 0..100 {
            fleet.run(Duration::from_millis(100));
            assert!(fleet.is_seated(6));
        }
        assert!(fleet.agrees_on(0..size));
    });
}

#[test]
fn a_split_heals_whichever_side_was_joined_to() {
    each(|fleet, size| {
        fleet.split(|index| u8::from(index % 2 == 0));
        fleet.run(seconds(20));
        let side = |odd: usize| move |index: &usize| index % 2 == odd;
        let beliefs = fleet.beliefs();
        assert_eq!(beliefs.len(), 2, "each side is a cluster: {beliefs:?}");
        for odd in [0, 1] {
            let expected = (0..size)
                .filter(side(odd))
                .map(|index| (index, true))
                .collect();
            assert!(beliefs.contains(&expected));
        }
        fleet.run(seconds(60));
        fleet.split(|_| 0);
        let healed = fleet.until(BACK, |fleet| fleet.agrees_on(0..size));
        println!("healed after {healed:?}");
    });
}

#[test]
fn half_the_fleet_crashes() {
    each(|fleet, size| {
        for index in (1..size).step_by(2) {
            fleet.crash(index);
        }
        fleet.until(NOT_ASKED, |fleet| {
            (1..size).step_by(2).all(|index| !fleet.is_asked(index))
        });
        fleet.until(NOT_SEATED, |fleet| fleet.agrees_on((0..size).step_by(2)));
    });
}

#[test]
fn one_that_is_denied_anywhere_is_gone_everywhere_and_stays_out() {
    each(|fleet, size| {
        fleet.deny(1, 7);
        fleet.until(seconds(3), |fleet| {
            !fleet.is_asked(7) && !fleet.is_seated(7)
        });
        fleet.run(seconds(15));
        assert!(!fleet.is_seated(7));
        assert_eq!(fleet.belief(7).len(), 1, "it has nobody either");
        for index in others(size, 7) {
            assert_eq!(fleet.belief(index).len(), size - 1);
        }
        fleet.crash(1);
        fleet.run(seconds(14));
        assert!(!fleet.is_seated(7), "the word outlives who gave it");
    });
}

#[test]
fn the_traffic_of_a_cluster_at_rest_is_bounded() {
    let size = 100;
    let mut fleet = Fleet::new(size, 6);
    fleet.run(seconds(10));
    let before = fleet.delivered;
    fleet.run(seconds(10));
    let each = (fleet.delivered - before) / (10 * size as u64);
    println!("{each} messages a second arrive at each of {size} nodes");
    // A hundred announcements, each passed on by eight.
    assert!(each <= 900, "{each}");
}

#[test]
fn a_fleet_that_is_started_at_once_is_settled_when_each_has_found_all() {
    each(|fleet, size| {
        (0..size).for_each(|index| fleet.crash(index));
        fleet.run(seconds(1));
        // Machines of one kind do not take the same time to boot.
        let pause = seconds(2) / u32::try_from(size).expect("small");
        let knows_all_if_settled = |fleet: &Fleet| {
            for index in 0..size {
                let known = fleet.belief(index).len();
                assert!(
                    !fleet.is_settled(index) || known == size,
                    "{index}: {known}"
                );
            }
        };
        for index in 0..size {
            fleet.start(index);
            fleet.run(pause);
            knows_all_if_settled(fleet);
        }
        let settled = fleet.until(AGREED, |fleet| {
            knows_all_if_settled(fleet);
            (0..size).all(|index| fleet.is_settled(index))
        });
        println!("settled after {settled:?}");
    });
}

#[test]
fn a_member_that_is_gone_for_good_delays_the_start_of_others_by_seconds() {
    each(|fleet, size| {
        (0..size).for_each(|index| fleet.crash(index));
        others(size, 3).for_each(|index| fleet.start(index));
        let limit = Duration::from_millis(3_500);
        fleet.until(limit, |fleet| {
            others(size, 3).all(|index| fleet.is_settled(index))
        });
    });
}
