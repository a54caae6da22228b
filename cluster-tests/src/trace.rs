//! What a process does to its files and in which order, as strace sees it: what is on the disk after a
//! power failure is decided by that.
//!
//! Writing, flushing, renaming and the making of folders; not reading. What must hold of the order is
//! for the tests to say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::component;
use crate::process::{behind, dying_with_parent};

/// The calls that are recorded; those that this machine does not have are left out.
const CALLS: &str = "trace=?write,?writev,?pwrite64,?pwritev,?pwritev2,?ftruncate,?fallocate,\
    ?copy_file_range,?sendfile,?fsync,?fdatasync,?rename,?renameat,?renameat2,?mkdir,?mkdirat";

/// Longer than any path that a test uses; longer strings are cut.
const STRING_BYTES: &str = "512";

/// Returns `command` to be run under strace, which writes to `file` and ends with it.
pub(crate) fn of(file: &Path, command: &Command) -> Result<Command> {
    let mut strace = Command::new(component::find("strace")?);
    strace.args([
        "-f",
        "-y",
        "--seccomp-bpf",
        "-s",
        STRING_BYTES,
        "-e",
        CALLS,
        "-o",
    ]);
    strace.arg(file).arg("--");
    Ok(behind(strace, &dying_with_parent(command)?))
}

/// Something that was done to a file or folder, with success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Its content or its length changed.
    Write(PathBuf),
    /// What was done before came to the disk.
    Flush(PathBuf),
    /// It has another name now.
    Rename(PathBuf, PathBuf),
    /// A folder was made.
    Make(PathBuf),
}

/// An act and when it happened, in numbers that grow; of two that overlap neither came first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed {
    /// When it began.
    pub began: usize,
    /// When it had ended.
    pub ended: usize,
    /// What was done.
    pub act: Act,
}

/// All that a process did below a folder.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// In the order of their ends.
    pub acts: Vec<Timed>,
}

impl Trace {
    pub(crate) fn read(file: &Path, root: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let trace = Self::parse(&String::from_utf8_lossy(&bytes), root);
        ensure!(!trace.acts.is_empty(), "strace has recorded nothing");
        Ok(trace)
    }

    fn parse(text: &str, root: &Path) -> Self {
        // What the threads are in the middle of.
        let mut begun: HashMap<&str, (usize, &str)> = HashMap::new();
        let mut acts = Vec::new();
        for (ended, line) in text.lines().enumerate() {
            let Some((thread, call)) = line.split_once(' ') else {
                continue;
            };
            let call = call.trim_start();
            if let Some(begin) = call.strip_suffix(" <unfinished ...>") {
                begun.insert(thread, (ended, begin));
                continue;
            }
            let resumed = call.split_once(" resumed>").map(|(_, rest)| rest);
            let (began, call) = match resumed {
                None => (ended, call.to_owned()),
                Some(rest) => match begun.remove(thread) {
                    Some((began, begin)) => (began, format!("{begin}{rest}")),
                    None => continue,
                },
            };
            let act = act(&call).filter(|act| act.path().starts_with(root));
            acts.extend(act.map(|act| Timed { began, ended, act }));
        }
        Self { acts }
    }

    /// Returns the acts of one kind, with the path that `kind` takes from it.
    pub fn of<'a, T>(
        &'a self,
        kind: impl Fn(&'a Act) -> Option<T>,
    ) -> impl Iterator<Item = (&'a Timed, T)> {
        let acts = self.acts.iter();
        acts.filter_map(move |timed| Some((timed, kind(&timed.act)?)))
    }

    /// Whether everything written to `path` before `until` was flushed by then.
    pub fn is_flushed(&self, path: &Path, until: usize) -> bool {
        let flushes = self.of(|act| matches!(act, Act::Flush(p) if p == path).then_some(()));
        let flushed = flushes.filter(|(timed, ())| timed.ended < until);
        let Some(flushed) = flushed.map(|(timed, ())| timed.began).max() else {
            return false;
        };
        let mut writes = self.of(|act| matches!(act, Act::Write(p) if p == path).then_some(()));
        writes.all(|(timed, ())| timed.ended < flushed || timed.began >= until)
    }

    /// Whether a folder was flushed between two moments.
    pub fn is_flushed_between(&self, folder: &Path, from: usize, until: usize) -> bool {
        let mut flushes = self.of(|act| matches!(act, Act::Flush(p) if p == folder).then_some(()));
        flushes.any(|(timed, ())| timed.began > from && timed.ended < until)
    }
}

impl Act {
    fn path(&self) -> &Path {
        match self {
            Self::Write(path) | Self::Flush(path) | Self::Rename(path, _) | Self::Make(path) => {
                path
            }
        }
    }
}

/// Reads a call that had success.
fn act(call: &str) -> Option<Act> {
    let (name, rest) = call.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    if result.starts_with('-') {
        return None;
    }
    let descriptor = || {
        let (_, path) = arguments.split_once('<')?;
        let (path, _) = path.split_once('>')?;
        Some(PathBuf::from(path))
    };
    let mut names = arguments.split('"').skip(1).step_by(2).map(PathBuf::from);
    Some(match name {
        "fsync" | "fdatasync" => Act::Flush(descriptor()?),
        "rename" | "renameat" | "renameat2" => Act::Rename(names.next()?, names.next()?),
        "mkdir" | "mkdirat" => Act::Make(names.next()?),
        _ => Act::Write(descriptor()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"7 mkdir("/d/a", 0700) = 0
7 pwritev2(9</d/a/x>, [{iov_base="\1>\"", iov_len=3}], 1, 0, 0) = 3
8 write(3</elsewhere>, "x", 1) = 1
7 fdatasync(9</d/a/x> <unfinished ...>
8 fsync(4</d/a/y>)  = -1 EIO (Input/output error)
7 <... fdatasync resumed>)               = 0
7 rename("/d/a/x", "/d/a/z") = 0
8 fsync(5</d/a>) = 0
7 +++ exited with 0 +++
"#;

    #[test]
    fn calls_are_read_with_their_begin_and_end() {
        let trace = Trace::parse(TEXT, Path::new("/d"));
        let [a, x, z] = ["/d/a", "/d/a/x", "/d/a/z"].map(PathBuf::from);
        let expected = [
            (0, 0, Act::Make(a.clone())),
            (1, 1, Act::Write(x.clone())),
            (3, 5, Act::Flush(x.clone())),
            (6, 6, Act::Rename(x.clone(), z)),
            (7, 7, Act::Flush(a.clone())),
        ];
        let expected = expected.map(|(began, ended, act)| Timed { began, ended, act });
        assert_eq!(trace.acts, expected);
        assert!(trace.is_flushed(&x, 6));
        assert!(!trace.is_flushed(&x, 5), "it was not over");
        assert!(trace.is_flushed_between(&a, 6, 8));
        assert!(!trace.is_flushed_between(&a, 7, 8));
    }

    #[test]
    fn what_is_written_behind_a_flush_is_not_flushed() {
        let text = "1 write(3</d/x>, \"\", 1) = 1\n\
                    1 fsync(3</d/x>) = 0\n\
                    1 write(3</d/x>, \"\", 1) = 1\n";
        let trace = Trace::parse(text, Path::new("/d"));
        assert!(trace.is_flushed(Path::new("/d/x"), 2));
        assert!(!trace.is_flushed(Path::new("/d/x"), 3));
    }
}
