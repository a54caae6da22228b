//! A disk that hangs: a file that nobody can open.

use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, OFlags};

/// A file of a store that nobody can open: whoever tries waits, as for a disk that hangs.
pub(crate) struct Hung(PathBuf);

impl Hung {
    pub(crate) fn at(path: PathBuf) -> Self {
        let folder = path.parent().expect("a file is in a folder");
        std::fs::create_dir_all(folder).expect("made");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).expect("made");
        Self(path)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // Both ends are open then, so nobody waits any more and the test can end.
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        rustix::fs::open(&self.0, flags, Mode::empty()).expect("opened");
    }
}
