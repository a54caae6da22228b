//! Which members should have some content: one consistent-hash ring for the whole cluster.
//!
//! A key's *walk* is the first distinct members clockwise from it; the first live one is the home.
//! The owner of a key in a zone is the first live member of that zone on the same walk. Who is
//! live is not decided here: a placement is made from everybody who has a seat, so that a member
//! that stumbles for a moment moves nothing.
//!
//! The same seats give the same answer on every node, platform and release: only bytes written by
//! hand are hashed, by SipHash-2-4 with a zero key, and `tests/placement.rs` pins the numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};

use hashring::{DefaultHashBuilder, HashRing};
use serde::{Deserialize, Serialize};

use crate::node_id::NodeId;
use crate::oci::{Digest, RepositoryName, Tag};

/// Points on the ring for each unit of weight.
///
/// A share varies by 1/√points: at 1024 the largest of 100 equal nodes stays below 1.15 times the
/// mean with four standard deviations to spare; at 512 it does not always.
pub const POINTS_PER_WEIGHT: u32 = 1024;

/// Greatest weight that counts; a greater one counts as this.
///
/// Bounds the ring that one member can demand: 16 × 1024 points.
pub const MAX_WEIGHT: u32 = 16;

/// Most seats that a ring has; those with the greatest ids beyond it are left out.
pub const MAX_SEATS: usize = 1024;

/// Members that a walk names: two homes, and two that may be passed over.
pub const WALK_LENGTH: usize = 4;

/// Members that the owners of a zone are chosen from: two, and one that may be passed over.
pub const OWNERS_LENGTH: usize = 3;

/// Homes, and owners of each zone, that are told by everybody who has what they are responsible
/// for: as many as are asked before a node goes on by itself.
pub const TOLD_LENGTH: usize = 2;

/// A member's place on the ring.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat {
    /// The member.
    pub id: NodeId,
    /// Its zone.
    pub zone: String,
    /// Its share relative to others; 0 takes no place at all.
    pub weight: u32,
}

/// What is placed: a digest, or a tag of a repository.
///
/// Of a digest, it is also the short name by which members tell each other what they hold: two
/// digests with one key are as good as never met, and would cost a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key(u64);

impl Key {
    /// Places the content that has this digest.
    pub fn of_digest(digest: &Digest) -> Self {
        let algorithm = digest.algorithm().name().as_bytes();
        Self(hash_of([b"digest", algorithm, digest.hash()]))
    }

    /// Places the knowledge of what this tag points to.
    pub fn of_tag(upstream: &str, repository: &RepositoryName, tag: &Tag) -> Self {
        let parts: [&str; 3] = [upstream, repository.as_str(), tag.as_str()];
        let [upstream, repository, tag] = parts.map(str::as_bytes);
        Self(hash_of([b"tag", upstream, repository, tag]))
    }
}

/// Who has a seat, and who is responsible for which key.
///
/// Immutable. Building takes tens of milliseconds for a hundred members; a look-up is one binary
/// search, because every point of the ring carries the members that follow it.
#[derive(Clone)]
pub struct Placement {
    /// In order of their ids.
    seats: Vec<Seat>,
    /// Fraction of all keys whose walk begins with the seat of the same index.
    shares: Vec<f64>,
    ring: Ring<WALK_LENGTH>,
    /// The points of one zone alone lead from any key to the same members as the whole ring
    /// without those of other zones.
    zones: BTreeMap<String, Ring<OWNERS_LENGTH>>,
    fingerprint: u64,
}

impl Placement {
    /// Builds the ring.
    ///
    /// Seats of weight 0 take part in nothing; of seats with one id the first counts.
    pub fn new(seats: impl IntoIterator<Item = Seat>) -> Self {
        let mut seats: Vec<Seat> = seats.into_iter().filter(|seat| seat.weight > 0).collect();
        seats.sort_by_key(|seat| seat.id);
        seats.dedup_by_key(|seat| seat.id);
        seats.truncate(MAX_SEATS);
        let points = points(&seats);
        let zones: BTreeMap<String, _> = by_zone(&seats, &points)
            .into_iter()
            .map(|(zone, points)| (zone.to_owned(), Ring::new(&points)))
            .collect();
        Self {
            shares: shares(&points, seats.len()),
            ring: Ring::new(&points),
            zones,
            fingerprint: fingerprint(&seats),
            seats,
        }
    }

    /// Returns the first distinct members clockwise from `key`: at most [`WALK_LENGTH`], and none
    /// only if nobody has a seat.
    pub fn walk(&self, key: Key) -> impl Iterator<Item = NodeId> {
        self.ring.get(key).map(|seat| self.seats[seat].id)
    }

    /// Returns the first distinct members of `zone` clockwise from `key`: at most
    /// [`OWNERS_LENGTH`].
    pub fn owners(&self, zone: &str, key: Key) -> impl Iterator<Item = NodeId> {
        let ring = self.zones.get(zone);
        let found = ring.into_iter().flat_map(move |ring| ring.get(key));
        found.map(|seat| self.seats[seat].id)
    }

    /// Returns the members that everybody tells whether they hold what has this key: the first
    /// [`TOLD_LENGTH`] of the walk, then those of each zone; each once, none without seats.
    pub fn told(&self, key: Key) -> Vec<NodeId> {
        let homes = self.ring.get(key).take(TOLD_LENGTH);
        let zones = self.zones.values();
        let owners = zones.flat_map(|zone| zone.get(key).take(TOLD_LENGTH));
        let mut told: Vec<NodeId> = Vec::with_capacity(TOLD_LENGTH * (1 + self.zones.len()));
        for id in homes.chain(owners).map(|seat| self.seats[seat].id) {
            if !told.contains(&id) {
                told.push(id);
            }
        }
        told
    }

    /// Whether a member is one of [`Placement::told`].
    pub fn is_told(&self, id: &NodeId, key: Key) -> bool {
        let Ok(seat) = self.seats.binary_search_by_key(id, |seat| seat.id) else {
            return false;
        };
        let homes = self.walk(key).take(TOLD_LENGTH);
        let owners = self.owners(&self.seats[seat].zone, key).take(TOLD_LENGTH);
        homes.chain(owners).any(|told| told == *id)
    }

    /// Whether a member has a seat, so that some keys are its.
    pub fn has_seat(&self, id: &NodeId) -> bool {
        self.seats.binary_search_by_key(id, |seat| seat.id).is_ok()
    }

    /// Returns the fraction of all keys that a member is the first for; 0 without a seat.
    pub fn share(&self, id: &NodeId) -> f64 {
        let seat = self.seats.binary_search_by_key(id, |seat| seat.id);
        seat.map_or(0.0, |seat| self.shares[seat])
    }

    /// Returns the seats in order of their ids.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Returns a number that two placements share exactly if their seats are the same.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placement")
            .field("seats", &self.seats)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// Points with the members that follow each of them.
#[derive(Clone)]
struct Ring<const N: usize>(HashRing<Stop<N>>);

impl<const N: usize> Ring<N> {
    /// Goes backwards over the points, which are in ring order, and remembers who comes next.
    ///
    /// The first members from a point on are its own and then those from the next point on without
    /// it, so moving the own one to the front is all there is to do. The first round only finds
    /// out whom the last point wraps around to.
    fn new(points: &[Point]) -> Self {
        let mut following = Following::default();
        for point in points.iter().rev() {
            following.lead_with(point.seat);
        }
        let mut stops = Vec::with_capacity(points.len());
        for point in points.iter().rev() {
            following.lead_with(point.seat);
            let number = point.number;
            stops.push(Stop { number, following });
        }
        stops.reverse();
        let mut ring = HashRing::new();
        ring.batch_add(stops);
        Self(ring)
    }

    fn get(&self, key: Key) -> impl Iterator<Item = usize> {
        let stop = self.0.get(&RingKey(key.0));
        stop.into_iter().flat_map(|stop| stop.following.seats())
    }
}

/// A point as it stands on the ring.
#[derive(Clone, Copy)]
struct Stop<const N: usize> {
    number: u64,
    following: Following<N>,
}

impl<const N: usize> Hash for Stop<N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        RingKey(self.number).hash(state);
    }
}

/// The first distinct seats from a point on.
#[derive(Clone, Copy)]
struct Following<const N: usize> {
    seats: [u16; N],
    /// How many of them there are.
    length: u8,
}

impl<const N: usize> Default for Following<N> {
    fn default() -> Self {
        Self {
            seats: [0; N],
            length: 0,
        }
    }
}

impl<const N: usize> Following<N> {
    /// Puts `seat` first; the others keep their order, and the last one drops off a full list.
    fn lead_with(&mut self, seat: u16) {
        let length = usize::from(self.length);
        let known = self.seats[..length].iter().position(|&other| other == seat);
        let last = match known {
            Some(at) => at,
            None if length < N => {
                self.length += 1;
                length
            }
            None => N - 1,
        };
        self.seats.copy_within(..last, 1);
        self.seats[0] = seat;
    }

    fn seats(&self) -> impl Iterator<Item = usize> + use<N> {
        let seats = self.seats.into_iter().take(usize::from(self.length));
        seats.map(usize::from)
    }
}

/// A number as the ring hashes it: little-endian bytes, on every platform.
#[derive(Clone, Copy)]
struct RingKey(u64);

impl Hash for RingKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0.to_le_bytes());
    }
}

/// One point of a seat.
#[derive(Clone, Copy)]
struct Point {
    /// Where it lies on the ring.
    position: u64,
    /// What the ring hashes to get there.
    number: u64,
    /// Index of the seat.
    seat: u16,
}

/// Returns all points in ring order.
fn points(seats: &[Seat]) -> Vec<Point> {
    let mut points = Vec::new();
    for (seat, index) in seats.iter().zip(0_u16..) {
        for replica in 0..seat.weight.min(MAX_WEIGHT) * POINTS_PER_WEIGHT {
            let number = hash_of([b"point", seat.id.as_bytes(), &replica.to_le_bytes()]);
            points.push(Point {
                position: DefaultHashBuilder.hash_one(RingKey(number)),
                number,
                seat: index,
            });
        }
    }
    // Where two points fall together, the order of ids decides, on every node alike.
    points.sort_by_key(|point| point.position);
    points
}

fn by_zone<'a>(seats: &'a [Seat], points: &[Point]) -> BTreeMap<&'a str, Vec<Point>> {
    let mut zones: BTreeMap<&str, Vec<Point>> = BTreeMap::new();
    for point in points {
        let zone = seats[usize::from(point.seat)].zone.as_str();
        zones.entry(zone).or_default().push(*point);
    }
    zones
}

/// Adds up, for each seat, the arcs that end at its points.
fn shares(points: &[Point], seats: usize) -> Vec<f64> {
    let mut arcs = vec![0_u128; seats];
    let mut before = points.last().map_or(0, |last| last.position);
    for point in points {
        arcs[usize::from(point.seat)] += u128::from(point.position.wrapping_sub(before));
        before = point.position;
    }
    let whole: u128 = arcs.iter().sum();
    let share = |arc: u128| arc as f64 / whole.max(1) as f64;
    arcs.into_iter().map(share).collect()
}

fn fingerprint(seats: &[Seat]) -> u64 {
    let mut all = 0_u64;
    for seat in seats {
        let (zone, weight) = (seat.zone.as_bytes(), seat.weight.to_le_bytes());
        let one = hash_of([b"seat", seat.id.as_bytes(), zone, &weight]);
        all = hash_of([b"seats", &all.to_le_bytes(), &one.to_le_bytes()]);
    }
    all
}

/// Hashes parts with their lengths, so that no two lists of parts look alike.
fn hash_of<const N: usize>(parts: [&[u8]; N]) -> u64 {
    let mut hasher = DefaultHashBuilder.build_hasher();
    for part in parts {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        hasher.write(&length.to_le_bytes());
        hasher.write(part);
    }
    hasher.finish()
}
