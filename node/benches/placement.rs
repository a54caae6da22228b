//! What a look-up on the ring costs, and what building it costs: `cargo bench --bench placement`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest};
use millrace_protocol::placement::{Key, Placement, Seat};

/// Look-ups of one run; each of another key, so that the ring is not found in the nearest cache.
const LOOKUPS: u32 = 200_000;

fn digest(number: u32) -> Digest {
    Digest::of(Algorithm::Sha256, &number.to_le_bytes())
}

fn seats(count: u32) -> Vec<Seat> {
    let seat = |number| Seat {
        id: NodeId::new(digest(number).hash().try_into().expect("32 bytes")),
        zone: format!("zone{}", number % 3),
        weight: 1,
    };
    (0..count).map(seat).collect()
}

fn each(total: Duration, count: u32) -> f64 {
    total.as_secs_f64() * 1e9 / f64::from(count)
}

fn main() {
    println!("nodes   build        home + owners of a digest; who is told of it");
    for count in [3, 10, 30, 100, 150] {
        let seats = seats(count);
        let start = Instant::now();
        let placement = Placement::new(seats);
        let build = start.elapsed();
        let digests: Vec<Digest> = (0..LOOKUPS).map(digest).collect();
        let start = Instant::now();
        for digest in &digests {
            let key = Key::of_digest(black_box(digest));
            black_box(placement.walk(key).next());
        }
        let home = each(start.elapsed(), LOOKUPS);
        let start = Instant::now();
        for digest in &digests {
            let key = Key::of_digest(black_box(digest));
            black_box(placement.owners("zone0", key).next());
        }
        let owner = each(start.elapsed(), LOOKUPS);
        let start = Instant::now();
        for digest in &digests {
            let key = Key::of_digest(black_box(digest));
            black_box(placement.told(key));
        }
        let told = each(start.elapsed(), LOOKUPS);
        println!("{count:>5}   {build:>9.1?}   {home:.0} ns + {owner:.0} ns; {told:.0} ns");
    }
}
