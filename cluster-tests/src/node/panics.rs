//! Panics of a node: a test in which one is not expected fails, whatever else it has found.
//!
//! A panic ends one task and is answered like a member that has gone, so pulls hide it. It is found
//! in what the node printed, by the words of its log and of the standard library.

use super::Node;

/// What a line about a panic has: after the log has begun, and before.
const WORDS: [&str; 2] = ["a thread has panicked", "panicked at"];

impl Node {
    /// Returns the lines about panics in what all runs of the node printed so far.
    pub fn panics(&self) -> Vec<String> {
        lines_about_panics(&self.log())
    }

    /// Lets the test go on that knows of this node's panics, and judges them itself.
    pub fn expect_panics(&mut self) {
        self.may_panic = true;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A test that fails already says enough.
        if !self.may_panic && !std::thread::panicking() {
            let panics = self.panics();
            assert!(panics.is_empty(), "{self:?} has panicked: {panics:#?}");
        }
    }
}

fn lines_about_panics(log: &str) -> Vec<String> {
    let lines = log.lines();
    let told = lines.filter(|line| WORDS.iter().any(|words| line.contains(words)));
    told.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_told_by_the_log_and_by_the_standard_library() {
        let log = "INFO listening for clients\n\
                   ERROR peer.serve: a thread has panicked panic.location=\"a.rs:1:2\"\n\
                   {\"level\":\"ERROR\",\"message\":\"a thread has panicked\"}\n\
                   thread 'main' panicked at src/main.rs:3:4:\nno reason\n";
        let lines = lines_about_panics(log);
        assert_eq!(lines.len(), 3, "{lines:#?}");
    }
}
