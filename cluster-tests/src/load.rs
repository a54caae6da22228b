//! The load generator of the benchmarks: clients that cost little, rivals, and meters.
//!
//! Most clients are blocking threads that let the kernel discard what they receive, so that a table
//! shows what servers cost and not what clients do with the bytes. It measures; what is compared
//! with what, and against which target, is the benchmarks' part (`benches`).
//!
//! ```text
//! crowd      clients that compare every byte; for tests, and where bytes must be right
//! discard    clients that fetch bodies at full speed and throw them away
//! trickle    many clients at once that read a little at a time
//! rate       requests per second over kept connections (wrk)
//! relay      a link of limited rate that counts what it carries
//! nginx      the rival: static files, and a cache
//! seed       large blobs, the same in every run, put into a registry's storage
//! meter      CPU time and memory of processes, CPU time of the machine
//! machine    what a benchmark runs on
//! runs       repeating, interleaving, telling runs that mean little
//! table      figures, targets, the table
//! ```

mod head;

pub mod crowd;
pub mod discard;
pub mod machine;
pub mod meter;
pub mod nginx;
pub mod rate;
pub mod relay;
pub mod runs;
pub mod seed;
pub mod table;
pub mod trickle;
