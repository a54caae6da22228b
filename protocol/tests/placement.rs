//! The figures that the ring must reach, and the answers that must never change.

use std::collections::BTreeSet;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest};
use millrace_protocol::placement::{Key, MAX_SEATS, MAX_WEIGHT, Placement, Seat};
use proptest::prelude::*;

/// The name of the `index`th node of the fleet `fleet`; as good as random.
fn node(fleet: u32, index: u32) -> NodeId {
    let name = format!("fleet {fleet} node {index}");
    let digest = Digest::of(Algorithm::Sha256, name.as_bytes());
    NodeId::new(digest.hash().try_into().expect("32 bytes"))
}

fn seat(fleet: u32, index: u32) -> Seat {
    Seat {
        id: node(fleet, index),
        zone: ["fra1", "ams2", "lon3"][index as usize % 3].to_owned(),
        weight: 1,
    }
}

fn fleet(fleet: u32, size: u32) -> Vec<Seat> {
    (0..size).map(|index| seat(fleet, index)).collect()
}

fn key(number: u32) -> Key {
    Key::of_digest(&Digest::of(Algorithm::Sha256, &number.to_le_bytes()))
}

/// Who is told of a key is who may be asked for it, on every node alike.
#[test]
fn told_are_the_first_homes_and_the_first_owners_of_each_zone() {
    let seats = fleet(3, 12);
    let placement = Placement::new(seats.clone());
    for key in (0..200).map(key) {
        let told = placement.told(key);
        let mut expected: Vec<NodeId> = placement.walk(key).take(2).collect();
        for zone in ["ams2", "fra1", "lon3"] {
            expected.extend(placement.owners(zone, key).take(2));
        }
        let asked: BTreeSet<NodeId> = expected.into_iter().collect();
        assert_eq!(told.iter().copied().collect::<BTreeSet<_>>(), asked);
        assert_eq!(told.len(), asked.len(), "each once");
        for seat in &seats {
            assert_eq!(placement.is_told(&seat.id, key), asked.contains(&seat.id));
        }
    }
    assert!(Placement::new([]).told(key(1)).is_empty());
    assert!(!placement.is_told(&node(9, 9), key(1)));
}

fn first(placement: &Placement, key: Key) -> NodeId {
    placement.walk(key).next().expect("somebody has a seat")
}

/// Which nodes of `nodes` these are.
fn indexes(ids: impl Iterator<Item = NodeId>, nodes: &[Seat]) -> Vec<usize> {
    let index = |id| nodes.iter().position(|seat| seat.id == id);
    ids.map(|id| index(id).expect("a seat")).collect()
}

/// The numbers were printed by the first release that had them. A release that answers otherwise
/// disagrees with its neighbours during an upgrade: such a change needs a new wire version.
#[test]
fn answers_never_change() {
    let seats = fleet(0, 7);
    let placement = Placement::new(seats.clone());
    let walks: Vec<_> = (0..6)
        .map(|k| indexes(placement.walk(key(k)), &seats))
        .collect();
    let owners: Vec<_> = (0..6)
        .map(|k| indexes(placement.owners("fra1", key(k)), &seats))
        .collect();
    let library = "library/alpine".parse().expect("a name");
    let tag = "3.20".parse().expect("a tag");
    let tag = Key::of_tag("docker.io", &library, &tag);
    let sha512 = Key::of_digest(&Digest::of(Algorithm::Sha512, b"millrace"));
    let expected = [
        [6, 5, 4, 0],
        [3, 6, 1, 2],
        [4, 3, 5, 0],
        [6, 0, 5, 3],
        [2, 6, 1, 5],
        [6, 2, 0, 1],
    ];
    assert_eq!(walks, expected);
    let expected = [
        [6, 0, 3],
        [3, 6, 0],
        [3, 0, 6],
        [6, 0, 3],
        [6, 3, 0],
        [6, 0, 3],
    ];
    assert_eq!(owners, expected);
    assert_eq!(indexes(placement.walk(tag), &seats), [3, 6, 0, 4]);
    assert_eq!(indexes(placement.walk(sha512), &seats), [6, 3, 2, 1]);
    assert_eq!(placement.fingerprint(), 0x62ed_2870_83aa_fc94);
}

#[test]
fn a_join_moves_only_what_the_new_node_takes_and_not_much() {
    for number in 0..8 {
        let mut total = 0.0;
        let mut before = Placement::new(fleet(number, 1));
        for size in 2..=33 {
            let after = Placement::new(fleet(number, size));
            let new = node(number, size - 1);
            let fair = 1.0 / f64::from(size);
            let moved = after.share(&new);
            assert!(
                moved <= 1.25 * fair,
                "fleet {number}: node {size} takes {moved}"
            );
            total += moved / fair;
            for key in (0..500).map(key) {
                let home = first(&after, key);
                assert!(
                    home == new || home == first(&before, key),
                    "moved between others"
                );
            }
            before = after;
        }
        let mean = total / 32.0;
        assert!(
            mean <= 1.05,
            "fleet {number}: joins move {mean} of the ideal"
        );
    }
}

#[test]
fn a_hundred_equal_nodes_have_nearly_equal_shares() {
    for number in 0..8 {
        let seats = fleet(number, 100);
        let placement = Placement::new(seats.clone());
        let shares: Vec<f64> = seats.iter().map(|seat| placement.share(&seat.id)).collect();
        let whole: f64 = shares.iter().sum();
        assert!((whole - 1.0).abs() < 1e-9, "shares add up to {whole}");
        let peak = shares.iter().copied().fold(0.0, f64::max) * 100.0;
        assert!(
            peak <= 1.15,
            "fleet {number}: peak is {peak} times the mean"
        );
    }
}

#[test]
fn a_share_is_what_keys_see() {
    const KEYS: u32 = 100_000;
    let mut seats = fleet(3, 10);
    seats[4].weight = 3;
    let placement = Placement::new(seats.clone());
    let counted = (0..KEYS)
        .filter(|&k| first(&placement, key(k)) == seats[4].id)
        .count();
    let counted = counted as f64 / f64::from(KEYS);
    let share = placement.share(&seats[4].id);
    assert!(
        (counted - share).abs() < 0.005,
        "{counted} of the keys, {share} of the ring"
    );
    assert!(
        (share - 3.0 / 12.0).abs() < 0.02,
        "three of twelve parts: {share}"
    );
}

#[test]
fn nobody_and_nothing() {
    let placement = Placement::new([]);
    assert_eq!(placement.walk(key(0)).count(), 0);
    assert_eq!(placement.owners("fra1", key(0)).count(), 0);
    assert_eq!(placement.share(&node(0, 0)), 0.0);
    let mut light = seat(0, 0);
    light.weight = 0;
    assert_eq!(Placement::new([light]).walk(key(0)).count(), 0);
    let placement = Placement::new(fleet(0, 1));
    assert_eq!(placement.walk(key(0)).count(), 1);
    assert_eq!(placement.owners("nowhere", key(0)).count(), 0);
}

#[test]
fn what_members_say_of_themselves_is_bounded() {
    let mut greedy = fleet(0, 2);
    greedy[0].weight = u32::MAX;
    let mut bounded = fleet(0, 2);
    bounded[0].weight = MAX_WEIGHT;
    let (greedy, bounded) = (Placement::new(greedy), Placement::new(bounded));
    let share = |placement: &Placement| placement.share(&node(0, 0));
    assert_eq!(share(&greedy), share(&bounded));
    let seats = u32::try_from(MAX_SEATS).expect("small") + 3;
    assert_eq!(Placement::new(fleet(0, seats)).seats().len(), MAX_SEATS);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_walk_names_distinct_members_and_skipping_one_is_removing_it(
        number in 0_u32..1_000_000,
        size in 2_u32..24,
    ) {
        let seats = fleet(number, size);
        let placement = Placement::new(seats.clone());
        for key in (0..16).map(key) {
            let walk: Vec<NodeId> = placement.walk(key).collect();
            let distinct: BTreeSet<&NodeId> = walk.iter().collect();
            prop_assert_eq!(distinct.len(), walk.len());
            prop_assert_eq!(walk.len(), 4.min(size as usize));
            let without = seats.iter().filter(|seat| seat.id != walk[0]).cloned();
            let without: Vec<NodeId> = Placement::new(without).walk(key).collect();
            prop_assert_eq!(&without[..walk.len() - 1], &walk[1..]);
        }
    }

    #[test]
    fn the_owners_of_a_zone_are_its_members_in_the_order_of_the_walk(
        number in 0_u32..1_000_000,
        size in 1_u32..24,
    ) {
        let seats = fleet(number, size);
        let placement = Placement::new(seats.clone());
        let zone_of = |id: NodeId| seats.iter().find(|seat| seat.id == id).expect("a seat").zone.as_str();
        for key in (0..3).map(key) {
            let mut all = Vec::new();
            // The whole walk, one first member after the other.
            let mut left = seats.clone();
            while !left.is_empty() {
                let next = first(&Placement::new(left.clone()), key);
                left.retain(|seat| seat.id != next);
                all.push(next);
            }
            for zone in ["fra1", "ams2", "lon3"] {
                let expected: Vec<NodeId> =
                    all.iter().copied().filter(|id| zone_of(*id) == zone).take(3).collect();
                let owners: Vec<NodeId> = placement.owners(zone, key).collect();
                prop_assert_eq!(&owners, &expected, "{}", zone);
            }
        }
    }

    #[test]
    fn the_order_of_seats_does_not_matter_and_their_content_does(
        seats in Just(fleet(5, 12)).prop_shuffle(),
        changed in 0_usize..12,
    ) {
        let placement = Placement::new(seats.clone());
        let sorted = Placement::new(fleet(5, 12));
        prop_assert_eq!(placement.fingerprint(), sorted.fingerprint());
        let walk = |placement: &Placement| placement.walk(key(1)).collect::<Vec<_>>();
        prop_assert_eq!(walk(&placement), walk(&sorted));
        let mut heavier = seats.clone();
        heavier[changed].weight += 1;
        prop_assert_ne!(Placement::new(heavier).fingerprint(), sorted.fingerprint());
        let mut elsewhere = seats;
        elsewhere[changed].zone.push('x');
        prop_assert_ne!(Placement::new(elsewhere).fingerprint(), sorted.fingerprint());
    }
}
