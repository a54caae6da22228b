//! What a look-up on the ring costs, and what building it costs: `cargo bench --bench placement`.
//!
//! Who is home and who is owner is looked up for each request, so both are judged; the program
//! fails when one takes too long. The rest happens once per view or per stored blob, and is shown.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest};
use millrace_protocol::placement::{Key, Placement, Seat};

/// Look-ups of one run; each of another key, so that the ring is not found in the nearest cache.
const LOOKUPS: u32 = 200_000;

/// The quickest run counts: what else the machine does can only make one slower.
const RUNS: usize = 7;

/// How long a look-up may take: well under 1 µs, up to the largest cluster.
const MOST: f64 = 500.0;

/// What operations on one ring cost, in nanoseconds each.
struct Costs {
    home: f64,
    owner: f64,
    told: f64,
}

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

/// Returns what `work` costs for one of `digests`, in nanoseconds.
fn cost(digests: &[Digest], mut work: impl FnMut(Key)) -> f64 {
    let runs = (0..RUNS).map(|_| {
        let start = Instant::now();
        for digest in digests {
            work(Key::of_digest(black_box(digest)));
        }
        start.elapsed()
    });
    let quickest = runs.min().unwrap_or(Duration::ZERO);
    quickest.as_secs_f64() * 1e9 / f64::from(LOOKUPS)
}

fn costs(placement: &Placement, digests: &[Digest]) -> Costs {
    Costs {
        home: cost(digests, |key| {
            black_box(placement.walk(key).next());
        }),
        owner: cost(digests, |key| {
            black_box(placement.owners("zone0", key).next());
        }),
        told: cost(digests, |key| {
            black_box(placement.told(key));
        }),
    }
}

fn main() -> ExitCode {
    let digests: Vec<Digest> = (0..LOOKUPS).map(digest).collect();
    let mut missed = false;
    println!(
        "nodes   build        home + owners of a digest (each <= {MOST} ns); who is told of it"
    );
    for count in [3, 10, 30, 100, 150] {
        let seats = seats(count);
        let start = Instant::now();
        let placement = Placement::new(seats);
        let build = start.elapsed();
        let Costs { home, owner, told } = costs(&placement, &digests);
        let verdict = if home.max(owner) > MOST { "MISSED" } else { "" };
        missed |= !verdict.is_empty();
        println!(
            "{count:>5}   {build:>9.1?}   {home:.0} ns + {owner:.0} ns; {told:.0} ns {verdict}"
        );
    }
    match missed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}
