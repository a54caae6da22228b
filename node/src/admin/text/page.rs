//! The page that a status is written on: lines that do not wrap, and how quantities are spelt.
//!
//! Knows nothing of what a node has to tell.

use std::time::{Duration, SystemTime};

use bytesize::ByteSize;

/// Columns of a terminal on which no line wraps.
const COLUMNS: usize = 100;

/// Lines that fit.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) text: String,
}

impl Page {
    /// Writes one line, cut where it would wrap.
    pub(super) fn line(&mut self, line: impl AsRef<str>) {
        // A name or an error may hold anything; a control character is not shown.
        let mut shown = line.as_ref().trim_end().chars().map(|c| match c {
            c if c.is_control() => '?',
            c => c,
        });
        self.text.extend(shown.by_ref().take(COLUMNS - 1));
        match (shown.next(), shown.next()) {
            (Some(last), None) => self.text.push(last),
            (Some(_), Some(_)) => self.text.push('…'),
            (None, _) => {}
        }
        self.text.push('\n');
    }

    /// Writes words after `indent` on as many lines as they need.
    pub(super) fn wrapped<'a>(&mut self, indent: &str, words: impl Iterator<Item = &'a str>) {
        let mut line = indent.to_owned();
        for word in words {
            let is_first = line.len() == indent.len();
            if !is_first && line.chars().count() + word.chars().count() + 1 > COLUMNS {
                self.line(&line);
                line = indent.to_owned();
            } else if !is_first {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(line);
    }
}

/// Renders a point in time.
pub(super) fn date(unix_seconds: u64) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds))
}

/// Renders a size.
pub(super) fn bytes(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}

/// Renders a share of a whole; nothing when there is no whole.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let percent = (u128::from(part) * 100).checked_div(u128::from(whole));
    percent.map_or(String::new(), |percent| format!(" ({percent} %)"))
}

/// Renders a length of time.
pub(super) fn time(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}
