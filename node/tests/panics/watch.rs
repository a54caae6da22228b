//! Notices panics of tasks, which tokio keeps to itself: nothing that anybody sends may cause one.

use std::panic;
use std::sync::Once;
use std::thread;

use parking_lot::Mutex;

/// Where panics were, in this process, since somebody began to watch.
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Fails a test, when it is dropped, if anything has panicked while it was there.
pub(crate) struct NoPanics {
    before: usize,
}

impl NoPanics {
    pub(crate) fn watch() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let plain = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                SEEN.lock().push(info.to_string());
                plain(info);
            }));
        });
        let before = SEEN.lock().len();
        Self { before }
    }
}

impl Drop for NoPanics {
    fn drop(&mut self) {
        // The panic of a test that fails is one as well, and says enough.
        if !thread::panicking() {
            let seen = SEEN.lock()[self.before..].to_vec();
            assert!(seen.is_empty(), "a task has panicked: {seen:#?}");
        }
    }
}
