//! What a panic leaves behind: a line of the log like any other, and a count.
//!
//! A task that panics ends alone, and the node goes on. What that means for who waits for the task is
//! theirs to decide, not told here.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::sync::LazyLock;
use std::thread;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::Level;

/// Panics of this process: it has one hook, whatever runs in it.
static PANICS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Counts and logs the panics of this process from now on.
pub(super) fn follow() {
    let plain = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        PANICS.inc();
        // A filter may leave no error through; a panic is told of all the same.
        match tracing::enabled!(Level::ERROR) {
            true => log(panic),
            false => plain(panic),
        }
    }));
}

/// Writes what the standard library would: the backtrace only where `RUST_BACKTRACE` asks for one.
fn log(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let is_asked_for = backtrace.status() == BacktraceStatus::Captured;
    tracing::error!(
        panic.message = panic.payload_as_str(),
        panic.location = panic.location().map(tracing::field::display),
        thread.name = thread::current().name(),
        panic.backtrace = is_asked_for.then(|| tracing::field::display(&backtrace)),
        "a thread has panicked"
    );
}

pub(super) fn register(registry: &mut Registry) {
    registry.register(
        "millrace_telemetry_panics",
        "Panics of this process, each of them a defect; the log says where",
        PANICS.clone(),
    );
}
